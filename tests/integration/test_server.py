"""A model behind a real server process: its results equal those of the local model, and no kill loses a prediction."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from medr1.evaluation.prediction_store import partial_file
from medr1.evaluation.predictions import Prediction, read_predictions
from medr1.runs.run_directory import RunDirectory
from medr1.tracking.address import stored_run
from medr1.workflows.evaluate import evaluate
from tests.command_lines import run as command_lines
from tests.integration.conftest import (
    MINI,
    ROOT,
    command,
    composed,
    needs_mini,
    only_run,
    read_json,
    run_command,
    train_here,
)

DATA = ("data.train_images_per_modality=2", "data.test_images_per_modality=1", "reasoning=think_after", "data.seed=3")
REQUESTED = ("base", "blank_image", "shuffled_image")
ALL = (*REQUESTED, "option_prior", "surface_cues")
RECORDS = 40


class Served:
    """A server process and the number of its completions."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.log = folder / "completions.txt"
        self.log.touch()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.chat_server", str(port), str(self.log)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    @property
    def completions(self) -> int:
        return len(self.log.read_text().splitlines())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def start(port: int = 0) -> Served:
        made.append(Served(tmp_path, port))
        return made[-1]

    yield start
    for served in made:
        served.kill()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The evaluation of the same model without a server."""
    run = RunDirectory(tmp_path_factory.mktemp("local") / "run")
    evaluate(composed("evaluate", *DATA, f"output_dir={run.path.parent}", "tracking=none"), run.path, [])
    return run


def at(port: int, output_dir: Path, *more: str) -> list[str]:
    """The overrides that evaluate the server, with the tiny model's image size and token limit."""
    model = ["model=server", f"model.url=http://127.0.0.1:{port}/v1", "model.path=tiny", "model.image_size=84"]
    return [
        *model,
        "evaluation.max_completion_length=32",
        *DATA,
        f"output_dir={output_dir}",
        *more,
    ]


def predictions(run: RunDirectory, condition: str) -> list[Prediction]:
    return read_predictions(run.predictions(condition))


@pytest.mark.long
def test_a_served_model_gives_the_files_table_and_metrics_of_the_same_model_here(
    serve: Callable[..., Served], local: RunDirectory, tmp_path: Path
) -> None:
    served = serve()
    (done,) = command_lines([(tmp_path, " ".join(["evaluate.py", *at(served.port, tmp_path / "out")]))])
    assert done.code == 0, done.err
    assert set(done.heavy) <= {"mlflow"}, "the client loads no torch"
    run = only_run(tmp_path / "out")
    for condition in ALL:
        assert predictions(run, condition) == predictions(local, condition), condition
        assert not partial_file(run.predictions(condition)).exists()
    assert served.completions == len(REQUESTED) * RECORDS
    assert run.results.read_text() == local.results.read_text()
    ours, theirs = read_json(run.summary), read_json(local.summary)
    assert {k: v for k, v in ours.items() if k != "mlflow_run_id"} == {
        k: v for k, v in theirs.items() if k != "mlflow_run_id"
    }
    stored = stored_run(run.path)
    assert stored is not None
    tracked = MlflowClient(tracking_uri=stored.uri).get_run(stored.run_id)
    assert tracked.info.status == "FINISHED" and tracked.data.params["model.url"].endswith("/v1")
    assert tracked.data.metrics["test_accuracy"] == ours["conditions"]["base"]["overall"]["accuracy"]["value"]


@pytest.mark.long
def test_samples_and_rotations_of_a_served_model_are_those_of_the_same_model_here(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    asked = ("evaluation.num_generations=2", "evaluation.circular=true", "evaluation.temperature=0.8", "tracking=none")
    asked = (*asked, "evaluation.blank_image=false", "evaluation.shuffled_image=false")
    here, there = (RunDirectory(tmp_path / name / "run") for name in ("here", "there"))
    evaluate(composed("evaluate", *DATA, *asked, f"output_dir={here.path.parent}"), here.path, [])
    evaluate(composed("evaluate", *at(serve().port, there.path.parent, *asked)), there.path, [])
    for name in ("base", "base.samples", "base.rotations"):
        assert predictions(there, name) == predictions(here, name), name
    assert len(predictions(there, "base.samples")) == 2 * RECORDS
    assert read_json(there.summary) == read_json(here.summary)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.005)


def lines_of(output_dir: Path, condition: str) -> int:
    files = list(output_dir.glob(f"*/predictions/{condition}.jsonl.partial"))
    return files[0].read_bytes().count(b"\n") if files else 0


@pytest.mark.long
def test_a_killed_client_requests_only_what_is_missing(
    serve: Callable[..., Served], local: RunDirectory, tmp_path: Path
) -> None:
    served, output_dir = serve(), tmp_path / "out"
    client = command("evaluate.py", *at(served.port, output_dir, "model.concurrency=2"))
    wait_for(lambda: lines_of(output_dir, "blank_image") >= 5)
    os.killpg(client.pid, signal.SIGKILL)
    client.communicate(timeout=60)
    run = only_run(output_dir)
    partial = partial_file(run.predictions("blank_image"))
    saved = partial.read_bytes().count(b"\n")
    assert 5 <= saved < RECORDS and not run.predictions("blank_image").exists()
    with partial.open("ab") as file:
        file.write(b'{"record": "torn in the mid')
    run_command("evaluate.py", f"resume={run.path}")
    assert 0 <= served.completions - 3 * RECORDS <= 2, "one completion for each thread may be lost"
    for condition in ALL:
        assert predictions(run, condition) == predictions(local, condition), condition
    stored = stored_run(run.path)
    assert stored is not None
    assert MlflowClient(tracking_uri=stored.uri).get_run(stored.run_id).info.status == "FINISHED"
    before = served.completions
    served.kill()
    summary = run.summary.read_text()
    run_command("evaluate.py", f"resume={run.path}")
    assert run.summary.read_text() == summary and served.completions == before, "a finished evaluation sends no request"


@pytest.mark.long
def test_a_killed_server_is_named_and_another_one_continues(
    serve: Callable[..., Served], local: RunDirectory, tmp_path: Path
) -> None:
    served, output_dir = serve(), tmp_path / "out"
    client = command("evaluate.py", *at(served.port, output_dir, "model.max_retries=2", "tracking=none"))
    wait_for(lambda: lines_of(output_dir, "base") >= 8)
    served.kill()
    printed, _ = client.communicate(timeout=60)
    run = only_run(output_dir)
    assert client.returncode == 2, printed
    for words in (f"http://127.0.0.1:{served.port}/v1/chat/completions, record ", "no answer", "refused", "2 retries"):
        assert words in printed
    assert f"evaluate.py resume={run.path}" in printed and "Traceback" not in printed
    saved = lines_of(output_dir, "base")
    assert 8 <= saved < RECORDS
    other, before = serve(), served.completions
    run_command("evaluate.py", f"resume={run.path}", "model=server", f"model.url=http://127.0.0.1:{other.port}/v1")
    assert other.completions - before == 3 * RECORDS - saved
    for condition in ALL:
        assert predictions(run, condition) == predictions(local, condition), condition
    said = run_command("evaluate.py", f"resume={run.path}", "seed=1", status=2)
    assert "leave out seed=1" in said and "model.url" in said


@pytest.mark.long
def test_a_served_model_is_a_row_of_train(serve: Callable[..., Served], local: RunDirectory, tmp_path: Path) -> None:
    served = serve()
    words = at(served.port, tmp_path, "tracking=none", "algorithm=zero_shot", "evaluation.shuffled_image=false")
    run = train_here(tmp_path / "run", *words)
    assert predictions(run, "base") == predictions(local, "base") and not run.model.exists()


def test_a_local_evaluation_is_resumed_too(local: RunDirectory) -> None:
    def of_all() -> tuple[list[list[Prediction]], str]:
        return [predictions(local, condition) for condition in ALL], local.summary.read_text()

    before = of_all()
    local.predictions("blank_image").unlink()
    evaluate(composed("evaluate", f"resume={local.path}"), local.path, [])
    assert of_all() == before


@pytest.mark.long
@needs_mini
def test_two_hundred_real_questions_survive_a_killed_client_and_a_killed_server(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    real = ("data=omnimedvqa", f"data.root={MINI}", "evaluation.limit=8", "reasoning=no_think", "tracking=none")
    few = ("evaluation.blank_image=false", "evaluation.shuffled_image=false", "data.image_size=84")
    here = RunDirectory(tmp_path / "here" / "run")
    evaluate(composed("evaluate", *real, *few, f"output_dir={here.path.parent}"), here.path, [])
    expected = predictions(here, "base")
    assert len(expected) >= 200 and len({line.modality for line in expected}) == 8

    served, output_dir = serve(), tmp_path / "out"
    model = ["model=server", "model.path=tiny", "model.image_size=84", "evaluation.max_completion_length=32"]
    where = [f"model.url=http://127.0.0.1:{served.port}/v1", "model.max_retries=1"]
    client = command("evaluate.py", *model, *where, *real, *few, f"output_dir={output_dir}")
    wait_for(lambda: lines_of(output_dir, "base") >= len(expected) // 4)
    os.killpg(client.pid, signal.SIGKILL)
    client.communicate(timeout=60)
    run, first = only_run(output_dir), lines_of(output_dir, "base")
    again = command("evaluate.py", f"resume={run.path}")
    wait_for(lambda: lines_of(output_dir, "base") >= len(expected) // 2)
    served.kill()
    printed, _ = again.communicate(timeout=60)
    assert again.returncode == 2 and f"evaluate.py resume={run.path}" in printed, printed
    second = lines_of(output_dir, "base")
    assert 0 < first < second < len(expected)
    other, before = serve(), served.completions
    run_command("evaluate.py", f"resume={run.path}", "model=server", f"model.url=http://127.0.0.1:{other.port}/v1")
    assert other.completions - before == len(expected) - second, "no record is requested twice, except those under way"
    assert predictions(run, "base") == expected and len({line.record for line in expected}) == len(expected)
    assert predictions(run, "option_prior") == predictions(here, "option_prior")
