"""Every stored run resumes: each algorithm and each kind of model is killed, resumed, and repeated in a sweep."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medr1.runs.run_directory import RunDirectory
from medr1.runs.sweep import State
from tests.command_lines import run as command_lines
from tests.integration.conftest import SMALL_RUN, command, read_json, run_command
from tests.integration.processes import end, start
from tests.integration.test_sweep import only_sweep
from tests.scripted_server import Step, completion, scripted_server

SMALL = (*SMALL_RUN, "data.train_images_per_modality=4", "evaluation.blank_image=false", "tracking=none")
# The others are resumed bit for bit in test_resume.py.
ALGORITHMS = ("grpo", "cispo", "dapo", "dr_grpo", "gspo", "medr1_legacy", "sft", "zero_shot")
SERVER = ("model=server", "model.path=some", "model.image_size=84")
EVALUATION = tuple(word for word in SMALL if not word.startswith(("debug", "trainer")))


def wait_for(found: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 240
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[RunDirectory, int, str]]:
    """For each algorithm, a run that was killed at its first checkpoint, or when it had begun, and then resumed."""
    place = tmp_path_factory.mktemp("killed")
    for name in ALGORITHMS:
        run = RunDirectory(place / name / "run")
        more = ("algorithm.num_generations=4",) if name == "dapo" else ()
        words = ("debug=quick", *EVALUATION) if name == "zero_shot" else SMALL
        processes = start(1, run.path.parent, *words, f"algorithm={name}", *more)
        ready = (lambda run=run: run.config.exists()) if name == "zero_shot" else run.latest_checkpoint
        wait_for(ready)
        processes[0].kill()
        assert end(processes) == [-signal.SIGKILL] and not run.finished.exists()
    lines = [(place, f"train.py resume={place / name / 'run'}") for name in ALGORITHMS]
    return {
        name: (RunDirectory(place / name / "run"), done.code, done.err)
        for name, done in zip(ALGORITHMS, command_lines(lines), strict=True)
    }


@pytest.mark.long
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_killed_run_of_every_algorithm_resumes(
    algorithm: str, resumed: dict[str, tuple[RunDirectory, int, str]]
) -> None:
    run, code, err = resumed[algorithm]
    assert code == 0, err
    conditions = set(read_json(run.summary)["conditions"])
    assert {"base", "trained"} & conditions == ({"base"} if algorithm == "zero_shot" else {"base", "trained"})
    if algorithm != "zero_shot":
        assert [line[:10] for line in run.metrics.read_text().splitlines()] == ['{"step": 0', '{"step": 1']


@pytest.mark.long
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("train.py", ("debug=quick", *EVALUATION, "algorithm=zero_shot", *SERVER)),
        pytest.param("evaluate.py", (*EVALUATION, *SERVER), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_killed_run_with_a_server_resumes(script: str, words: tuple[str, ...], tmp_path: Path) -> None:
    def slow(_: Any) -> Step:
        time.sleep(0.1)
        return 200, completion(), {}

    with scripted_server(slow) as server:
        process = command(script, *words, f"model.url={server.url}", f"output_dir={tmp_path}")
        wait_for(lambda: len(server.requests) > 8)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        (config,) = tmp_path.glob("*/config.yaml")
        run = RunDirectory(config.parent)
        assert not run.finished.exists()
        (done,) = command_lines([(tmp_path, f"{script} resume={run.path}")])
        assert done.code == 0, done.err
        assert read_json(run.summary)["conditions"]["base"]["overall"]["n"] == 40
        assert len(server.requests) < 60, "what was answered is not asked again"


@pytest.mark.long
@pytest.mark.parametrize("kind", ["hf", "server"])
def test_a_killed_sweep_is_repeated(kind: str, tmp_path: Path) -> None:
    hf, server_only = (
        (*SMALL, "algorithm=zero_shot,sft,grpo"),
        ("debug=quick", *EVALUATION, "algorithm=zero_shot", *SERVER),
    )
    axis = hf if kind == "hf" else (*server_only, "evaluation.max_completion_length=16,24")
    with scripted_server(lambda _: (200, completion(), {})) as server:
        url = (f"model.url={server.url}",) if kind == "server" else ()
        words = ("-m", *axis, *url, f"output_dir={tmp_path}")
        process = command("train.py", *words)
        wait_for(lambda: list(tmp_path.glob("*/*/config.yaml")))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        printed = run_command("train.py", *words)
        sweep = only_sweep(tmp_path)
        names = sweep.read().wanted
        assert set(sweep.states(names).values()) == {State.FINISHED} and "continued" in printed
        assert "started" not in run_command("train.py", *words), "a finished sweep stays finished"
