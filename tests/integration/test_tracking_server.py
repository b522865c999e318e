"""A team's MLflow: a real server over PostgreSQL, and servers that are killed while somebody trains."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from medr1 import tracking_outbox
from medr1.errors import TrackingError
from medr1.run_directory import RunDirectory
from medr1.sweep import State, SweepDirectory
from medr1.tracking import Tracker
from medr1.tracking_address import stored_run
from medr1.tracking_outbox import unsent
from tests.integration.conftest import command, only_run, read_json, run_command

SMALL = ("debug=quick", "data.train_images_per_modality=10", "data.test_images_per_modality=1", "evaluation.limit=1")


class Server:
    """``mlflow server`` as a team starts it, on a free port of this machine."""

    def __init__(self, folder: Path, store: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri, self.folder, self.store = f"http://127.0.0.1:{self.port}", folder, store
        self.start()

    def start(self) -> None:
        where = ["--backend-store-uri", self.store, "--artifacts-destination", str(self.folder / "artifacts")]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *where, "--port", str(self.port), "--workers", "1"],
                cwd=self.folder,
                env={**os.environ, **quiet},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                said = (self.folder / "server.log").read_text()
                assert self.process.poll() is None and time.monotonic() < deadline, said
                time.sleep(0.1)

    def kill(self) -> None:
        """With all its workers."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.uri)

    def steps(self, run_id: str, curve: str) -> list[int]:
        return sorted(point.step for point in self.client.get_metric_history(run_id, curve))

    def files(self, run_id: str, folder: str | None = None) -> set[str]:
        return {file.path for file in self.client.list_artifacts(run_id, folder)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Over SQLite. Whoever kills it starts it again."""
    folder = tmp_path_factory.mktemp("server")
    made = Server(folder, f"sqlite:///{folder}/mlflow.db")
    yield made
    made.kill()


def test_a_server_that_comes_back_gets_what_it_missed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking_outbox, "_FIRST_WAIT", 0.0)
    picture = Image.new("L", (8, 8), 3)
    (tmp_path / "file.txt").write_text("old")
    with Tracker.start(server.uri, "tests", "r", tmp_path) as tracker:
        tracker.metrics({"a": 0.5}, 0)
        tracker.flush()
        server.kill()
        tracker.metrics({"a": 1.0}, 1)
        tracker.flush()
        tracker.metrics({"a": float("nan"), "b": float("inf")}, 2)
        tracker.flush()
        tracker.params({"x": 1})
        tracker.tags({"t": "1"})
        tracker.artifact(tmp_path / "file.txt", "folder")
        tracker.completions_table([{"text": "A"}], [picture], 1)
        tracker.completions_table([{"text": "B"}], [picture], 2)
        (tmp_path / "file.txt").write_text("new")
        assert unsent(tmp_path, stored_run(tmp_path)) and len(caplog.messages) == 1
        assert "refused" in caplog.text and "the run goes on" in caplog.text
        server.start()
        tracker.metrics({"a": 3.0}, 3)
        tracker.flush()
        assert not (tmp_path / "unsent").exists()
        assert len(caplog.messages) == 2 and "answers again" in caplog.messages[1]
    run = server.client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.data.params == {"x": "1"} and run.data.tags["t"] == "1"
    assert server.steps(tracker.run_id, "a") == [0, 1, 2, 3] and server.steps(tracker.run_id, "b") == [2]
    assert server.files(tracker.run_id) == {"completions.json", "folder", "table_images"}
    assert len(server.files(tracker.run_id, "table_images/completions")) == 2
    read = Path(server.client.download_artifacts(tracker.run_id, "folder/file.txt", str(tmp_path / ".."))).read_text()
    assert read == "new"
    rows = read_json(Path(server.client.download_artifacts(tracker.run_id, "completions.json", str(tmp_path))))
    assert [row[2] for row in rows["data"]] == ["A", "B"]


def test_a_server_killed_in_the_middle_of_training_costs_nothing(server: Server, tmp_path: Path) -> None:
    process = command("train.py", *SMALL, "trainer.steps=8", f"tracking.uri={server.uri}", f"output_dir={tmp_path}")
    wait_for(lambda: bool(list(tmp_path.glob("*/checkpoints/step=2.ckpt/state.json"))))
    server.kill()
    printed, _ = process.communicate(timeout=240)
    run = only_run(tmp_path)
    stored = stored_run(run.path)
    assert process.returncode == 0, printed
    assert run.finished.is_file() and run.summary.is_file() and stored is not None
    assert printed.count("does not answer") == 1 and "Traceback" not in printed
    assert f"send them with: python train.py resume={run.path}" in printed
    before = {path: path.stat().st_mtime_ns for path in (run.summary, run.finished, run.model)}
    said = run_command("train.py", f"resume={run.path}", status=2)
    assert "does not answer" in said and "Traceback" not in said
    with pytest.raises(TrackingError, match=f"MLflow at {server.uri} does not answer .*refused.*tracking=none"):
        Tracker.start(server.uri, "tests", "another", tmp_path / "another")
    with pytest.raises(TrackingError, match="does not answer"):
        Tracker.start(server.uri, stored.experiment, "r", run.path, run_id=stored.run_id)

    server.start()
    said = run_command("train.py", f"resume={run.path}")
    assert "are sent" in said and not (run.path / "unsent").exists()
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished run only sends"
    found = server.client.get_run(stored.run_id)
    assert found.info.status == "FINISHED"
    assert server.steps(stored.run_id, "train/reward") == list(range(8))
    assert {"summary.json", "results.md", "completions.json", "predictions"} <= server.files(stored.run_id)
    accuracy = read_json(run.summary)["conditions"]["trained"]["overall"]["accuracy"]
    assert found.data.metrics["eval/accuracy"] == accuracy


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)
