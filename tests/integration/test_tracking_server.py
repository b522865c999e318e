"""MLflow as a server: over PostgreSQL, and killed while a run is training."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from medr1.errors import TrackingError
from medr1.generation.child_process import free_port
from medr1.runs.run_directory import RunDirectory
from medr1.runs.sweep import State, SweepDirectory
from medr1.tracking import offline_queue
from medr1.tracking.address import stored_run
from medr1.tracking.offline_queue import has_pending_calls, replay_pending_calls
from medr1.tracking.tracker import Tracker
from medr1.workflows.sweep_report import report_sweep
from tests.integration.conftest import command, only_run, read_json, run_command

SMALL = ("debug=quick", "data.train_images_per_modality=10", "data.test_images_per_modality=1", "evaluation.limit=1")


class Server:
    """``mlflow server`` on a free port of this machine."""

    def __init__(self, folder: Path, store: str) -> None:
        self.port = free_port()
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
    """Over SQLite. A test that kills it starts it again."""
    folder = tmp_path_factory.mktemp("server")
    made = Server(folder, f"sqlite:///{folder}/mlflow.db")
    yield made
    made.kill()


@pytest.mark.long
def test_a_server_that_restarts_gets_the_queued_calls(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(offline_queue, "_FIRST_WAIT", 0.0)
    image = Image.new("L", (8, 8), 3)
    (tmp_path / "file.txt").write_text("old")
    with Tracker.start(server.uri, "tests", "r", tmp_path) as tracker:
        tracker.log_metrics({"a": 0.5}, 0)
        tracker.flush()
        other = Tracker.start(server.uri, "tests", "other", tmp_path / "other")
        other.log_params({"x": 1})
        server.kill()
        other.log_params({"x": 2})  # MLflow will reject it: a parameter cannot change
        caplog.clear()
        tracker.log_metrics({"a": 1.0}, 1)
        tracker.flush()
        tracker.log_metrics({"a": float("nan"), "b": float("inf")}, 2)
        tracker.flush()
        tracker.log_params({"x": 1})
        tracker.set_tags({"t": "1"})
        tracker.log_artifact(tmp_path / "file.txt", "folder")
        tracker.log_completions([{"text": "A"}], [[image]], 1)
        tracker.log_completions([{"text": "B"}], [[image]], 2)
        (tmp_path / "file.txt").write_text("new")
        assert has_pending_calls(tmp_path, stored_run(tmp_path)) and len(caplog.messages) == 1
        assert "refused" in caplog.text and "the run goes on" in caplog.text
        server.start()
        tracker.log_metrics({"a": 3.0}, 3)
        tracker.flush()
        assert not (tmp_path / "unsent").exists()
        assert len(caplog.messages) == 2 and "answers again" in caplog.messages[1]
    other.end_run()
    stored = stored_run(tmp_path / "other")
    assert stored is not None and has_pending_calls(tmp_path / "other", stored), (
        "a call that MLflow rejects does not end the run"
    )
    with pytest.raises(TrackingError, match=f"rejects a call in .*{stored.run_id}.jsonl .*param"):
        replay_pending_calls(server.uri, stored, tmp_path / "other")
    run = server.client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.data.params == {"x": "1"} and run.data.tags["t"] == "1"
    assert server.steps(tracker.run_id, "a") == [0, 1, 2, 3] and server.steps(tracker.run_id, "b") == [2]
    assert server.files(tracker.run_id) == {"completions", "completions.json", "folder", "table_images"}
    assert len(server.files(tracker.run_id, "table_images/completions")) == 2
    read = Path(server.client.download_artifacts(tracker.run_id, "folder/file.txt", str(tmp_path / ".."))).read_text()
    assert read == "new"
    rows = read_json(Path(server.client.download_artifacts(tracker.run_id, "completions.json", str(tmp_path))))
    assert [row[2] for row in rows["data"]] == ["A", "B"]


@pytest.mark.long
def test_a_server_killed_during_training_loses_nothing(server: Server, tmp_path: Path) -> None:
    process = command("train.py", *SMALL, "trainer.max_steps=8", f"tracking.uri={server.uri}", f"output_dir={tmp_path}")
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
    with pytest.raises(
        TrackingError, match=f"MLflow at {server.uri} does not answer .*refused.*tracking.enabled=false"
    ):
        Tracker.start(server.uri, "tests", "another", tmp_path / "another")
    with pytest.raises(TrackingError, match="does not answer"):
        Tracker.start(server.uri, stored.experiment, "r", run.path, run_id=stored.run_id)

    server.start()
    said = run_command("train.py", f"resume={run.path}")
    assert "were sent" in said and not (run.path / "unsent").exists()
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished run only sends"
    found = server.client.get_run(stored.run_id)
    assert found.info.status == "FINISHED"
    assert server.steps(stored.run_id, "train/reward") == list(range(8))
    assert {"summary.json", "results.md", "completions.json", "predictions"} <= server.files(stored.run_id)
    accuracy = read_json(run.summary)["conditions"]["trained"]["overall"]["accuracy"]["value"]
    assert found.data.metrics["test_accuracy"] == accuracy


@pytest.mark.long
def test_a_server_that_hangs_during_training_does_not_stop_it(server: Server, tmp_path: Path) -> None:
    """While it is stopped it accepts connections and does not answer."""
    words = (*SMALL, "trainer.max_steps=8", f"tracking.uri={server.uri}", f"output_dir={tmp_path}")
    process = command("train.py", *words, MLFLOW_HTTP_REQUEST_TIMEOUT="2")
    wait_for(lambda: bool(list(tmp_path.glob("*/checkpoints/step=2.ckpt/state.json"))))
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        printed, _ = process.communicate(timeout=240)
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)
    run = only_run(tmp_path)
    stored = stored_run(run.path)
    assert process.returncode == 0 and run.finished.is_file(), printed
    assert printed.count("does not answer") == 1 and "timed out" in printed
    assert stored is not None and has_pending_calls(run.path, stored)
    assert "were sent" in run_command("train.py", f"resume={run.path}")
    assert server.client.get_run(stored.run_id).info.status == "FINISHED"
    assert server.steps(stored.run_id, "train/reward") == list(range(8))


def installed(program: str) -> str | None:
    """A program of PostgreSQL. Distributions have them in a folder for each version that is not on PATH."""
    installed_versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return shutil.which(program) or (str(installed_versions[-1]) if installed_versions else None)


@pytest.fixture
def postgres() -> Iterator[str]:
    """The address of a database in a new cluster that listens on a socket in a private folder."""
    initdb, postgres = installed("initdb"), installed("postgres")
    if initdb is None or postgres is None:
        pytest.skip("PostgreSQL is not installed (neither on PATH nor below /usr/lib/postgresql)")
    if importlib.util.find_spec("psycopg2") is None:
        pytest.skip('psycopg2 is not installed: pip install -e ".[postgres]"')
    root = os.geteuid() == 0
    names = {entry.pw_name for entry in pwd.getpwall()}
    if root and not names & {"postgres", "nobody"}:
        pytest.skip("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
    user = ("postgres" if "postgres" in names else "nobody") if root else None
    # Not pytest's folder, which another user than root cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="medr1-pg-"))
    if user is not None:
        shutil.chown(folder, user)

    def start(*words: str) -> subprocess.Popen[bytes]:
        with (folder / "log").open("ab") as log:
            groups: Any = {"user": user, "extra_groups": []} if user else {}
            return subprocess.Popen(words, cwd=folder, stdout=log, stderr=subprocess.STDOUT, **groups)

    made = start(initdb, "-D", str(folder / "data"), "-A", "trust", "-U", "medr1", "-N").wait()
    assert made == 0, (folder / "log").read_text()
    options = {"listen_addresses": "", "unix_socket_directories": str(folder), "fsync": "off"}
    settings = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
    process = start(postgres, "-D", str(folder / "data"), *settings)
    try:
        wait_for(lambda: "ready to accept connections" in (folder / "log").read_text())
        yield f"postgresql+psycopg2://medr1@/postgres?host={folder}"
    finally:
        process.send_signal(signal.SIGINT)  # its fast shutdown
        process.wait(timeout=60)
        shutil.rmtree(folder)


@pytest.mark.long
def test_four_runs_at_once_on_a_server_over_postgresql(
    postgres: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        pytest.skip('hydra-joblib-launcher is not installed: pip install -e ".[launchers]"')
    server = Server(tmp_path, postgres)
    try:
        words = ("-m", "modality=ct,mri", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=4")
        few = ("trainer.max_steps=3", "evaluation.blank_image=false", "evaluation.shuffled_image=false")
        where = (f"tracking.uri={server.uri}", f"output_dir={tmp_path / 'runs'}")
        printed = run_command("train.py", *words, *SMALL, *few, *where)
        assert "4 of 4 done" in printed
        (manifest,) = tmp_path.glob("runs/*/sweep.json")
        sweep = SweepDirectory(manifest.parent)
        parent = stored_run(sweep.path)
        assert parent is not None
        found = server.client.search_runs([server.client.get_experiment_by_name("medr1").experiment_id])
        assert len(found) == 5 and {run.info.status for run in found} == {"FINISHED"}, "the sweep and its four runs"
        children = {run.info.run_id for run in found if run.data.tags.get("mlflow.parentRunId") == parent.run_id}
        names = sweep.read().wanted
        assert set(sweep.states(names).values()) == {State.FINISHED} and len(children) == 4
        assert {stored.run_id for name in names if (stored := stored_run(sweep.run(name).path))} == children
        for name in names:
            check_child(server, sweep.run(name), tmp_path)
        files = server.files(parent.run_id)
        assert {"report.html", "matrices.json", "results.md", "figures"} <= files
        assert all(run.info.artifact_uri.startswith("mlflow-artifacts:") for run in found), "none writes files itself"

        server.kill()
        (sweep.report / "report.html").unlink()
        report_sweep(sweep.path)
        assert (sweep.report / "report.html").is_file() and has_pending_calls(sweep.path, parent)
        assert f"send them with: python evaluate.py sweep={sweep.path}" in caplog.text
        server.start()
        report_sweep(sweep.path)
        assert not has_pending_calls(sweep.path, parent)
        assert server.client.get_run(parent.run_id).info.status == "FINISHED"
    finally:
        server.kill()


def check_child(server: Server, run: RunDirectory, tmp_path: Path) -> None:
    """The server has everything that the run has on disk."""
    stored = stored_run(run.path)
    assert stored is not None and not has_pending_calls(run.path, stored)
    tracked = server.client.get_run(stored.run_id)
    for curve in ("train/reward", "policy_loss", "completion_length"):
        assert server.steps(stored.run_id, curve) == [0, 1, 2], curve
    overall = read_json(run.summary)["conditions"]["trained"]["overall"]
    assert tracked.data.metrics["test_accuracy"] == overall["accuracy"]["value"]
    assert {f"predictions/{name}.jsonl" for name in ("base", "trained")} <= server.files(stored.run_id, "predictions")
    for name in ("summary.json", "results.md", "config.yaml", "completions.json"):
        file = Path(server.client.download_artifacts(stored.run_id, name, str(tmp_path)))
        if name != "completions.json":
            assert file.read_bytes() == (run.path / name).read_bytes()
        else:
            assert {row[0] for row in read_json(file)["data"]} == {0, 2}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.02)
