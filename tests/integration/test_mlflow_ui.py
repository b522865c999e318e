"""MLflow's own interface in a browser shows the curves, and the completions with their images."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from medr1.generation.child_process import free_port
from medr1.tracking.tracker import Tracker

pytest.importorskip("mlflow")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH"), pytest.mark.long]

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    "--window-size=1500,1100",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tracker, Path]:
    folder = tmp_path_factory.mktemp("ui")
    with Tracker.start(f"sqlite:///{folder}/mlflow.db", "cross modality", "grpo on ct", folder / "run") as tracker:
        tracker.log_params({"algorithm": {"name": "grpo", "beta": 0.04}})
        for step in range(60):
            tracker.log_metrics({"reward/total": 1 - math.exp(-step / 20), "completion/length": 60.0 + step % 7}, step)
        for step in (0, 50):
            rows = [{"completion": f"sampled text {step} {letter}", "correct": letter == "A"} for letter in "AB"]
            tracker.log_completions(rows, [[Image.radial_gradient("L").resize((84, 84))]] * 2, step)
        tracker.log_text("seed: 1\n", "config/resolved.yaml")
    return tracker, folder


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def page(run: tuple[Tracker, Path]) -> Iterator[str]:
    """The address of the run's page on a server that ``ui_command`` started, on a free port."""
    tracker, folder = run
    port = free_port()
    command, _, page = tracker.ui_command().partition("  # ")
    arguments = shlex.split(command.replace("--port 5000", f"--port {port}"))[1:]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments, "--workers", "1"],
            cwd=folder,
            env=os.environ | quiet,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError):
                assert server.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
                time.sleep(0.2)
        yield page.replace(":5000", f":{port}")
    finally:
        stop(server)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One browser profile for all tests, so that MLflow's scripts are cached and use up no virtual time."""
    return tmp_path_factory.mktemp("profile")


def browse(command: list[str]) -> str:
    """What the browser prints, "" if it does not end: on a busy machine its virtual time sometimes stands still."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.communicate(timeout=120)[0].decode()
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return ""


def open_page(url: str, profile: Path, screenshot: Path, expected: list[str]) -> str:
    """The page's content when it has all expected texts, or after 300 s."""
    assert BROWSER is not None
    deadline = time.monotonic() + 300
    budget = 4000
    while True:
        options = [f"--user-data-dir={profile}", f"--virtual-time-budget={budget}", f"--screenshot={screenshot}"]
        content = browse([BROWSER, *FLAGS, *options, "--dump-dom", url])
        if all(text in content for text in expected) or time.monotonic() > deadline:
            return content
        budget = min(2 * budget, 64000)


def test_the_curves_are_shown(page: str, profile: Path, tmp_path: Path) -> None:
    expected = ["grpo on ct", "(reward/total)", "(completion/leng", "scatterlayer"]
    content = open_page(page.replace("?", "/model-metrics?"), profile, tmp_path / "page.png", expected)
    assert [text for text in expected if text not in content] == []
    assert len(re.findall(r'class="[^"]*\bscatterlayer\b', content)) >= 2, "one drawn curve for each metric"
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_the_run_page_names_metrics_parameters_and_status(page: str, profile: Path, tmp_path: Path) -> None:
    expected = ["grpo on ct", "reward/total", "completion/length", "algorithm.beta", "0.04", "Finished"]
    content = open_page(page, profile, tmp_path / "page.png", expected)
    assert [text for text in expected if text not in content] == []


def test_completions_are_shown_beside_their_images(page: str, profile: Path, tmp_path: Path) -> None:
    expected = ["config", "completions.json", "sampled text 0 A", "sampled text 50 B", "View as table"]
    content = open_page(page.replace("?", "/artifacts/completions.json?"), profile, tmp_path / "page.png", expected)
    assert [text for text in expected if text not in content] == []
    sources = re.findall(r'<img[^>]*src="(get-artifact\?[^"]*table_images[^"]*)"', content)
    assert len(sources) == 4
    address = page.partition("#")[0] + sources[0].replace("&amp;", "&")
    with urllib.request.urlopen(address, timeout=20) as answer, Image.open(answer) as image:
        assert image.size == (84, 84)
