"""The tracker with a real MLflow on SQLite."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image
from sqlalchemy import event
from sqlalchemy.orm import Session

from medr1.errors import ConfigError
from medr1.tracking.address import RUN_FILE, StoredRun, absolute_uri, stored_run, without_password
from medr1.tracking.completions_table import TABLES_TAG
from medr1.tracking.metrics_file import MetricsFile
from medr1.tracking.tracker import NullTracker, Tracker


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for the module, because creating it takes seconds. Its path has characters that URIs quote."""
    return f"sqlite:///{tmp_path_factory.mktemp('a b#%')}/new/mlflow.db"


@pytest.fixture
def start(uri: str, tmp_path: Path) -> Callable[..., Tracker]:
    def start(run_id: str | None = None, **more: Any) -> Tracker:
        return Tracker.start(uri, "tests", "a run", tmp_path / "run", run_id=run_id, **more)

    return start


def client(uri: str) -> Any:
    return MlflowClient(tracking_uri=uri)


def load_table(uri: str, run_id: str) -> Any:
    """The completions table. ``load_table`` reads the tracking URI from the environment, not from the client."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        experiment = client(uri).get_run(run_id).info.experiment_id
        return client(uri).load_table(experiment, "completions.json", run_ids=[run_id])


def points(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client(uri).get_metric_history(run_id, key)]


def test_a_run_is_found_again_and_its_files_are_next_to_the_database(
    start: Callable[..., Tracker], uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with start(tags={"mlflow.parentRunId": "0" * 32, "cell": "ct"}) as tracker:
        (tmp_path / "figures").mkdir()
        (tmp_path / "figures" / "matrix.svg").write_text("<svg/>")
        tracker.log_artifact(tmp_path / "figures", "figures")
        tracker.log_artifact(tmp_path / "figures" / "matrix.svg")
        tracker.log_text("seed: 1\n", "config/resolved.yaml")
    run = client(uri).get_run(tracker.run_id)
    assert (run.info.status, run.info.run_name, run.data.tags["cell"]) == ("FINISHED", "a run", "ct")
    stored = stored_run(tmp_path / "run")
    assert stored == StoredRun(uri, "tests", tracker.run_id)
    database = Path(uri.removeprefix("sqlite:///"))
    folder = database.parent / "mlartifacts" / tracker.run_id / "artifacts"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == [
        *("config/resolved.yaml", "figures/matrix.svg", "matrix.svg")
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "run"], "no mlruns in the working directory"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (ValueError("x"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),
        (MemoryError(), "FAILED"),
    ],
)
def test_the_status_is_how_a_run_ended_and_its_last_points_are_logged(
    start: Callable[..., Tracker], uri: str, error: BaseException | None, status: str
) -> None:
    tracker = start()
    try:
        with tracker:
            tracker.log_metrics({"reward": 0.5}, step=1)
            if error is not None:
                raise error
    except BaseException as caught:
        assert caught is error
    run = client(uri).get_run(tracker.run_id)
    assert run.info.status == status and run.info.end_time is not None
    assert points(uri, tracker.run_id, "reward") == [(1, 0.5)]


def test_an_explicit_status_is_kept_at_the_end_of_the_block(start: Callable[..., Tracker], uri: str) -> None:
    with start() as tracker:
        tracker.end_run("KILLED")
    assert client(uri).get_run(tracker.run_id).info.status == "KILLED"


def test_a_failing_tracker_does_not_hide_the_error_of_the_run(start: Callable[..., Tracker], uri: str) -> None:
    tracker = start()
    with pytest.raises(ValueError, match="the run's own") as caught, tracker:
        client(uri).delete_run(tracker.run_id)
        raise ValueError("the run's own")
    assert any("could not be ended as FAILED" in note for note in caught.value.__notes__)
    with pytest.raises(Exception, match="must be in the 'active' state"), tracker:
        tracker.log_metrics({"a": 1.0}, step=0)


def test_a_resumed_run_does_not_repeat_points_or_rows(start: Callable[..., Tracker], uri: str, tmp_path: Path) -> None:
    image = Image.new("L", (20, 10), 7)
    with pytest.raises(RuntimeError), start() as first:
        first.log_params({"seed": 1, "trainer": {"max_steps": 4}, "long": "x" * 9000})
        for step in range(5):
            first.log_metrics({"loss": float(step)} | ({"accuracy": 0.1} if step % 2 == 0 else {}), step)
        first.log_completions([{"text": "A"}], [[image]], step=4)
        raise RuntimeError
    stored = stored_run(tmp_path / "run")
    assert stored is not None
    with start(run_id=stored.run_id, tags={"resumed": "yes"}) as second:
        assert client(uri).get_run(first.run_id).info.status == "RUNNING"
        second.log_params({"seed": 1, "trainer": {"max_steps": 8}, "long": "x" * 9000, "new": None})
        for step in range(2, 8):
            second.log_metrics({"loss": float(step)} | ({"accuracy": 0.1} if step % 2 == 0 else {}) | {"kl": 0.0}, step)
        second.log_completions([{"text": "A"}], [[image]], step=4)
        second.log_completions([{"text": "B", "correct": True}], [[image]], step=6)
    assert second.run_id == first.run_id
    run = client(uri).get_run(first.run_id)
    assert run.info.status == "FINISHED" and run.data.tags["resumed"] == "yes"
    assert run.data.params["trainer.max_steps"] == "4" and run.data.params["new"] == "null"
    assert run.data.tags["resumed.trainer.max_steps"] == "8" and "resumed.long" not in run.data.tags
    assert points(uri, first.run_id, "loss") == [(step, float(step)) for step in range(8)]
    assert [step for step, _ in points(uri, first.run_id, "accuracy")] == [0, 2, 4, 6]
    assert [step for step, _ in points(uri, first.run_id, "kl")] == [2, 3, 4, 5, 6, 7]
    table = load_table(uri, first.run_id)
    assert list(table["step"]) == [4, 6] and list(table["text"]) == ["A", "B"]


def test_a_summary_is_replaced_by_its_newest_value(start: Callable[..., Tracker], uri: str) -> None:
    """More runs of a sweep may be finished when its report is written again."""
    with start() as first:
        first.log_metrics({"finished": 3.0}, 0, replaces=True)
    time.sleep(0.002)  # MLflow takes the newest in milliseconds
    with start(run_id=first.run_id) as second:
        second.log_metrics({"finished": 4.0}, 0, replaces=True)
    assert client(uri).get_run(first.run_id).data.metrics["finished"] == 4.0


def test_a_run_whose_process_was_killed_before_it_wrote_the_id_is_created_once(
    start: Callable[..., Tracker], tmp_path: Path
) -> None:
    killed = start()
    (tmp_path / "run" / RUN_FILE).unlink()
    with start() as again:
        assert again.run_id == killed.run_id
    (tmp_path / "run" / RUN_FILE).unlink()
    assert start().run_id != killed.run_id, "a run that has ended is not continued"


def test_a_directory_that_was_made_again_is_another_run(start: Callable[..., Tracker], tmp_path: Path) -> None:
    """Its path is that of a run that was killed, as where another machine has a directory of the same path."""
    killed = start()
    shutil.rmtree(tmp_path / "run")
    with start() as again:
        assert again.run_id != killed.run_id


def test_the_database_of_a_run_is_not_made_anew(start: Callable[..., Tracker], uri: str, tmp_path: Path) -> None:
    missing = tmp_path / "moved" / "mlflow.db"
    with pytest.raises(ConfigError, match=rf"there is no {missing}.*tracking.uri=sqlite:////PATH, or tracking.enabled"):
        Tracker.start(f"sqlite:///{missing}", "tests", "a run", tmp_path / "run", run_id="0" * 32)
    assert not missing.parent.exists()


def test_a_run_is_continued_where_its_database_is_now(uri: str, tmp_path: Path) -> None:
    place, moved = tmp_path / "run", f"sqlite:///{tmp_path}/moved.db"
    shutil.copy(uri.removeprefix("sqlite:///"), tmp_path / "before.db")
    with Tracker.start(f"sqlite:///{tmp_path}/before.db", "tests", "a run", place) as first:
        pass
    (tmp_path / "before.db").rename(tmp_path / "moved.db")
    with Tracker.start(moved, "tests", "a run", place, run_id=first.run_id) as again:
        assert again.run_id == first.run_id
    assert stored_run(place) == StoredRun(moved, "tests", first.run_id)


def test_a_run_that_another_database_does_not_have_is_a_new_one_there(
    start: Callable[..., Tracker], uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    place, other = tmp_path / "run", f"sqlite:///{tmp_path}/other.db"
    shutil.copy(uri.removeprefix("sqlite:///"), tmp_path / "other.db")
    with start() as first:
        pass
    (place / "unsent").mkdir()
    (place / "unsent" / f"{first.run_id}.jsonl").write_text('{"do": "tags", "values": {}}\n')
    with Tracker.start(other, "tests", "a run", place, run_id=first.run_id) as again:
        assert again.run_id != first.run_id
    assert client(other).get_run(again.run_id).info.status == "FINISHED"
    assert f"never got stay in {place / 'unsent'}" in caplog.text


@pytest.mark.parametrize(("where", "experiment"), [("foo://bar", "tests"), (None, "")])
def test_what_mlflow_refuses_is_one_message(where: str | None, experiment: str, uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"MLflow refuses tracking\.uri="):
        Tracker.start(where or uri, experiment, "a run", tmp_path / "run")


def test_a_model_is_registered_once_however_often_its_run_is_resumed(
    start: Callable[..., Tracker], uri: str, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    with start() as tracker:
        tracker.register_model("once", tmp_path / "model")
    with start(run_id=tracker.run_id) as again:
        again.register_model("once", tmp_path / "model")
    assert len(client(uri).search_model_versions("name='once'")) == 1


def test_url_of_a_run_that_has_ended(start: Callable[..., Tracker], tmp_path: Path) -> None:
    with start() as tracker:
        pass
    stored = stored_run(tmp_path / "run")
    assert stored is not None
    assert tracker.ui_command().endswith(stored.url) and stored.shared_url == ""


@pytest.mark.parametrize(
    ("uri", "shared"),
    [
        ("http://127.0.0.1:5000", False),
        ("http://localhost:5000", False),
        ("http://[::1]:5000", False),
        ("sqlite:////data/mlflow.db", False),
        ("https://mlflow.example.org/", True),
        ("http://10.0.0.7:5000", True),
    ],
)
def test_only_the_page_on_a_server_of_another_machine_is_shared(uri: str, shared: bool) -> None:
    stored = StoredRun(uri, "medr1", "run", "1")
    assert stored.shared_url == (stored.url if shared else "")


def test_parameters_are_whole_up_to_the_limit_of_mlflow(start: Callable[..., Tracker], uri: str) -> None:
    tree = {
        "optimizer": {"lr": 1e-6, "betas": [0.9, 0.999], "fused": None, "amsgrad": False},
        "prompt": "é" * 6000,
        "cut": "a" * 6000 + "b",
        "cut too": "a" * 6000 + "c",
        "empty": {},
        "path": Path("data/x"),
        "many": {f"p{i}": i for i in range(250)},
        "data": {"modality_map": {"MR (Magnetic Resonance)": "mri", "CT": "ct"}, "seed": 1},
    }
    with start() as tracker:
        tracker.log_params(tree)
        tracker.log_params(tree)
    params = client(uri).get_run(tracker.run_id).data.params
    assert params["optimizer.lr"] == "1e-06" and params["optimizer.betas"] == "[0.9, 0.999]"
    assert params["optimizer.fused"] == "null" and params["optimizer.amsgrad"] == "false"
    assert params["prompt"] == "é" * 6000
    assert len(params["cut"]) == 6000 and "[cut: 6001 characters, sha256 " in params["cut"]
    assert params["cut"] != params["cut too"]
    assert (
        params["data.modality_map"] == '{"MR (Magnetic Resonance)": "mri", "CT": "ct"}' and params["data.seed"] == "1"
    )
    assert params["empty"] == "{}" and params["many.p249"] == "249"
    assert json.loads(params["path"]) == "data/x"


def test_metrics_go_out_in_batches(start: Callable[..., Tracker], uri: str) -> None:
    tracker, batches = start(), []
    send = tracker._queue._client.log_batch
    tracker._queue._client.log_batch = lambda *args, **more: (
        batches.append(len(more["metrics"])),
        send(*args, **more),
    )
    create = time.monotonic()
    for step in range(1100):
        tracker.log_metrics({"a": float(step), "b": 0.0}, step)
    assert all(size <= 1000 for size in batches) and len(batches) <= 3 + (time.monotonic() - create) / 5
    tracker.end_run()
    assert sum(batches) == 2200
    assert points(uri, tracker.run_id, "a") == [(step, float(step)) for step in range(1100)]


def test_numbers_that_are_not_finite(start: Callable[..., Tracker], uri: str) -> None:
    with start() as tracker:
        for step, value in enumerate([math.nan, math.inf, -math.inf]):
            tracker.log_metrics({"loss": value}, step)
    values = [value for _, value in points(uri, tracker.run_id, "loss")]
    assert math.isnan(values[0]) and values[1] == sys.float_info.max and values[2] == -sys.float_info.max


def test_completions_are_stored_with_their_images(start: Callable[..., Tracker], uri: str, tmp_path: Path) -> None:
    images = [Image.radial_gradient("L").resize((300, 200)), Image.new("RGB", (84, 84), "red")]
    with start() as tracker:
        for step in (10, 20):
            rows = [{"text": f"<answer>{x}</answer>", "parsed": "1", "correct": x == "A"} for x in "AB"]
            tracker.log_completions(rows + rows, [images[:1]] * 2 + [images[1:]] * 2, step)
        with pytest.raises(ValueError, match="1 rows and images of 0"):
            tracker.log_completions([{}], [], 30)
    table = load_table(uri, tracker.run_id)
    assert list(table.columns) == ["step", "image", "text", "parsed", "correct"]
    assert list(table["step"]) == [10] * 4 + [20] * 4
    assert list(table["text"][:2]) == ["<answer>A</answer>", "<answer>B</answer>"]
    for row, image in zip(table["image"], [images[0]] * 2 + [images[1]] * 2, strict=False):
        assert row["type"] == "image"
        with Image.open(client(uri).download_artifacts(tracker.run_id, row["filepath"], str(tmp_path))) as stored:
            assert stored.tobytes() == image.tobytes()
        with Image.open(client(uri).download_artifacts(tracker.run_id, row["compressed_filepath"], tmp_path)) as small:
            assert small.format == "WEBP" and max(small.size) <= 256
    files = client(uri).list_artifacts(tracker.run_id, "table_images/completions")
    assert len(files) == 4, "each image once, with its preview"
    raw = json.loads(Path(client(uri).download_artifacts(tracker.run_id, "completions.json", tmp_path)).read_bytes())
    assert {row[3] for row in raw["data"]} == {"1"}, "text stays text when rows are appended"


STARTS = """
import sys, time
from pathlib import Path
from medr1.tracking.tracker import Tracker
uri, go, run_dir = sys.argv[1:]
import mlflow.tracking
Path(run_dir + ".ready").touch()
while not Path(go).exists():
    time.sleep(0.001)
with Tracker.start(uri, "raced", "r", Path(run_dir)) as tracker:
    tracker.log_metrics({"a": 1.0}, 0)
print(tracker.run_id)
"""


@pytest.mark.long
def test_processes_that_start_at_once_on_a_new_database(tmp_path: Path) -> None:
    uri, go = f"sqlite:///{tmp_path}/race.db", tmp_path / "go"
    command = [sys.executable, "-c", STARTS, uri, str(go)]
    racers = [
        subprocess.Popen([*command, str(tmp_path / str(i))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    # Both have imported MLflow, which takes the longest, before either may begin.
    while sum((tmp_path / f"{i}.ready").exists() for i in range(2)) < 2:
        assert all(racer.poll() is None for racer in racers), [racer.communicate() for racer in racers]
        time.sleep(0.05)
    go.touch()
    ends = [racer.communicate(timeout=120) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], ends
    ids = [stdout.strip() for stdout, _ in ends]
    runs = [client(uri).get_run(run_id) for run_id in ids]
    assert len(set(ids)) == 2 and len({run.info.experiment_id for run in runs}) == 1
    assert [run.info.status for run in runs] == ["FINISHED"] * 2


def test_what_cannot_be_continued_is_explained(start: Callable[..., Tracker], uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"has no run {'0' * 32}.*{RUN_FILE}"):
        start(run_id="0" * 32)
    with start() as tracker:
        pass
    client(uri).delete_run(tracker.run_id)
    with pytest.raises(ConfigError, match="was deleted"):
        start(run_id=tracker.run_id)
    experiment = client(uri).create_experiment("gone")
    client(uri).delete_experiment(experiment)
    with pytest.raises(ConfigError, match=f"'gone' was deleted.*--experiment-id {experiment}"):
        Tracker.start(uri, "gone", "r", tmp_path)
    (tmp_path / RUN_FILE).write_text("{}")
    with pytest.raises(ConfigError, match="is damaged"):
        stored_run(tmp_path)
    assert stored_run(tmp_path / "elsewhere") is None


def test_queued_calls_are_sent_once_by_the_next_process(
    start: Callable[..., Tracker], uri: str, tmp_path: Path
) -> None:
    """The queue of a process that was killed in the middle of a line, while its server was unreachable."""
    with start() as first:
        first.log_metrics({"a": 0.0}, 0)
    sent = client(uri).get_metric_history(first.run_id, "a")[0]
    (tmp_path / "run" / "made.txt").write_text("made")
    calls = [
        {"do": "metrics", "points": [["a", 0.0, sent.timestamp, 0], ["a", 1.0, sent.timestamp + 1, 1]]},
        {"do": "metrics", "points": [["a", 2.0, sent.timestamp + 2, 2]]},
        {"do": "artifact", "path": "gone.txt", "folder": ""},
        {"do": "artifact", "path": "made.txt", "folder": ""},
        {"do": "end", "status": "KILLED", "time": 7},
    ]
    file = tmp_path / "run" / "unsent" / f"{first.run_id}.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps(call) + "\n" for call in calls) + '{"do": "metr')
    with start(run_id=first.run_id) as second:
        for step in range(4):
            second.log_metrics({"a": float(step)}, step)
    assert not file.parent.exists()
    assert points(uri, first.run_id, "a") == [(step, float(step)) for step in range(4)]
    assert [f.path for f in client(uri).list_artifacts(first.run_id)] == ["made.txt"]
    assert client(uri).get_run(first.run_id).info.status == "FINISHED"


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///runs/m.db") == (f"sqlite:///{tmp_path}/runs/m.db", tmp_path / "runs" / "m.db")
    assert absolute_uri("sqlite:////abs/m.db?timeout=9") == ("sqlite:////abs/m.db?timeout=9", Path("/abs/m.db"))
    assert absolute_uri("http://host:5000") == ("http://host:5000", None)
    for bad in (
        "mlruns",
        "file:///x",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "./mlflow.db",
        "",
        "http://[::1",
    ):
        with pytest.raises(ConfigError, match="tracking URI"):
            absolute_uri(bad)
    assert without_password("postgresql://me:se:cret@host/db") == "postgresql://me:***@host/db"
    assert without_password("sqlite:////a:b@c/m.db") == "sqlite:////a:b@c/m.db"


def test_the_command_that_opens_the_interface(start: Callable[..., Tracker], uri: str) -> None:
    with start() as tracker:
        line = tracker.ui_command()
    assert line.startswith(f"mlflow ui --backend-store-uri '{uri}' --host 127.0.0.1 ")
    assert f"/runs/{tracker.run_id}?" in line


def test_rows_may_have_several_images(start: Callable[..., Tracker], uri: str) -> None:
    images = [Image.new("RGB", (20 + i, 10), "red") for i in range(3)]
    with start() as tracker:
        tracker.log_completions([{"text": "A"}, {"text": "B"}], [images[:1], images], 1)
    table = load_table(uri, tracker.run_id)
    assert set(table.columns) == {"step", "image", "text", "image 2", "image 3"}
    files = [cell["filepath"] for cell in table.loc[1, ["image", "image 2", "image 3"]]]
    assert len(set(files)) == 3 and table.loc[0, "image"]["filepath"] == files[0] and table.loc[0, "image 2"] is None


def test_no_tracking_has_the_same_interface() -> None:
    public = {name for name in dir(Tracker) if not name.startswith("_")} - {"start"}
    assert public <= set(dir(NullTracker)) and "__enter__" in vars(NullTracker)
    with NullTracker() as tracker:
        tracker.log_metrics({"a": 1.0}, 0)
        tracker.log_completions([{}], [[Image.new("L", (1, 1))]], 0)


def test_importing_the_tracker_does_not_import_mlflow() -> None:
    code = "import medr1.tracking.tracker, sys; sys.exit(any(m in sys.modules for m in ('mlflow', 'torch', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


def test_curves_are_sent_before_a_checkpoint_is_written_and_do_not_end_the_run(
    start: Callable[..., Tracker], uri: str, tmp_path: Path
) -> None:
    lightning = pytest.importorskip("pytorch_lightning")
    torch = pytest.importorskip("torch")
    from medr1.tracking.metrics_file import MetricsFile
    from medr1.training.callbacks import Curves
    from medr1.training.steps import Steps

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
            return batch

        def training_step(self, batch: Any, index: int) -> Any:
            self.log("train/step", float(batch.step), batch_size=1)
            return self.layer(torch.ones(1, 2)).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            sent.append(points(uri, tracker.run_id, "train/step"))

    sent: list[Any] = []
    with start() as tracker:
        trainer = lightning.Trainer(
            max_steps=4,
            limit_train_batches=4,
            accelerator="cpu",
            logger=False,
            callbacks=[
                Curves(tracker, MetricsFile(tmp_path / "metrics.jsonl"), every=1),
                lightning.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}"),
            ],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), Steps(lambda step, rank, world_size: SimpleNamespace(step=step), trainer, 4, 1))
        assert client(uri).get_run(tracker.run_id).info.status == "RUNNING"
    assert sent[-1] == [(step, float(step)) for step in range(4)]
    assert sent[0] == [(step, float(step)) for step in range(2)]
    assert client(uri).get_run(tracker.run_id).info.status == "FINISHED"


def test_the_page_of_completions_has_a_card_for_each_question(
    start: Callable[..., Tracker], uri: str, tmp_path: Path
) -> None:
    rows = [
        {"record": record, "question": "a < b?", "answer": "B", "completion": f"<think>{text}", "reward": reward}
        for record, text, reward in [("r1", "first", 2.0), ("r1", "second", 0.5), ("r2", "third", 0.0)]
    ]
    with start() as tracker:
        tracker.log_completions(rows, [[Image.new("L", (300, 300))]] * 3, 25)
    page = Path(client(uri).download_artifacts(tracker.run_id, "completions/step_000025.html", tmp_path)).read_text()
    assert page.count("<article>") == page.count("data:image/webp;base64,") == 2
    assert [text in page for text in ("a &lt; b?", "&lt;think&gt;second", "reward <b>0.5</b>")] == [True] * 3
    assert "<think>" not in page and "http" not in page, "text is no markup, and nothing is loaded"


def test_data_description_and_registered_model(start: Callable[..., Tracker], uri: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.txt").write_text("1")
    markdown = "\n".join(f"| row {number} |" for number in range(2000))
    versions = []
    for _ in range(2):
        with start() as tracker:
            tracker.log_dataset("slake", "f" * 64, "/data", {"test records": 3}, "test")
            tracker.describe(markdown)
            tracker.register_model("a reader", tmp_path / "model")
        (found,) = [v for v in client(uri).search_model_versions("name='a reader'") if v.run_id == tracker.run_id]
        versions.append(found.version)
        assert Path(found.source.removeprefix("file://").replace("%20", " ")).name == "model"
    assert [int(version) for version in versions] == [1, 2]
    run = client(uri).get_run(tracker.run_id)
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest, used.tags[0].value) == ("slake", "f" * 36, "test")
    description = run.data.tags["mlflow.note.content"]
    assert len(description) <= 8000 and markdown.startswith(description) and description.endswith(" |")
    assert [file.path for file in client(uri).list_artifacts(tracker.run_id, "model")] == ["model/weights.txt"]


def test_two_runs_that_log_their_dataset_at_the_same_moment_both_have_it(
    start: Callable[..., Tracker], uri: str
) -> None:
    """MLflow looks for the dataset before it adds it: the second run adds it between the two."""
    other, done = start(), []

    def add_first(*_: Any) -> None:
        if not done:
            done.append(True)
            other.log_dataset("race", "f", "/data", {}, "train")

    with other, start() as tracker:
        event.listen(Session, "before_flush", add_first)
        try:
            tracker.log_dataset("race", "f", "/data", {}, "train")
        finally:
            event.remove(Session, "before_flush", add_first)
    assert done
    for run_id in (tracker.run_id, other.run_id):
        assert [used.dataset.name for used in client(uri).get_run(run_id).inputs.dataset_inputs] == ["race"]


def test_system_metrics_are_logged_until_the_run_ends(
    start: Callable[..., Tracker], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    with start() as tracker:
        tracker.log_system_metrics()
        deadline = time.monotonic() + 60
        while not points(uri, tracker.run_id, "system/cpu_utilization_percentage") and time.monotonic() < deadline:
            time.sleep(0.2)
    count = len(points(uri, tracker.run_id, "system/cpu_utilization_percentage"))
    assert count > 0
    time.sleep(1)
    assert len(points(uri, tracker.run_id, "system/cpu_utilization_percentage")) == count


def test_a_run_resumed_without_its_server_repeats_and_replaces_nothing(tmp_path: Path) -> None:
    """Its calls are queued: no step that it has logged, no parameter, and completions in a table of their own."""
    server = "http://127.0.0.1:9"  # nothing listens there
    stored = StoredRun(server, "tests", "0" * 32, "1")
    stored.write(tmp_path)
    curves = MetricsFile(tmp_path / "metrics.jsonl")
    for step in range(5):
        curves.append({"loss": 1.0}, step)
    with curves.path.open("a") as file:
        file.write('{"step": 5, "lo')  # killed
    assert curves.last_steps(3) == {"loss": 2}
    with Tracker.start(
        server,
        "tests",
        "r",
        tmp_path,
        run_id=stored.run_id,
        require_server=False,
        last_steps=lambda: curves.last_steps(3),
    ) as tracker:
        tracker.log_params({"seed": 1})
        for step in (1, 2, 3, 4):
            tracker.log_metrics({"loss": 1.0, "kl": 0.0} if step > 2 else {"loss": 1.0}, step)
        for step in (3, 4):
            tracker.log_completions([{"text": "A"}], [[Image.new("L", (8, 8))]], step)
    calls = [json.loads(line) for line in (tmp_path / "unsent" / f"{stored.run_id}.jsonl").read_text().splitlines()]
    points = [(key, step) for call in calls if call["do"] == "metrics" for key, _, _, step in call["points"]]
    assert points == [("loss", 3), ("kl", 3), ("loss", 4), ("kl", 4)]
    assert not any(call["do"] == "params" for call in calls)
    files = [Path(call["path"]).name for call in calls if call["do"] == "artifact"]
    assert any("completions_from_step_3.json" in name for name in files)
    assert not any(name.endswith("completions.json") for name in files)
    (tags,) = [call["values"] for call in calls if call["do"] == "tags" and TABLES_TAG in call["values"]]
    assert [t["path"] for t in json.loads(tags[TABLES_TAG])] == ["completions.json", "completions_from_step_3.json"]


def test_a_resumed_run_stays_in_its_experiment(start: Callable[..., Tracker], uri: str, tmp_path: Path) -> None:
    """A sweep that is repeated without its ``tracking.experiment`` has the default one."""
    with start() as first:
        pass
    with Tracker.start(uri, "other", "a run", tmp_path / "run", run_id=first.run_id) as second:
        assert second.run_id == first.run_id
    stored = stored_run(tmp_path / "run")
    assert stored is not None and stored.experiment == "tests"
    assert client(uri).get_experiment_by_name("other") is None
