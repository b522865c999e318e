"""A step that is not finite changes nothing, a training that has broken down stops, and a collapse is told once."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medr1.domain.records import Record
from medr1.errors import RewardError, TrainingError
from medr1.rewards import REWARDS, reward_function
from medr1.runs.run_directory import RunDirectory
from medr1.training.stability import COLLAPSE_STEPS, MAX_SKIPPED_IN_A_ROW, CollapseWarning
from medr1.workflows.train import train
from tests.integration.conftest import composed, train_here
from tests.integration.processes import end, start

SETTINGS = (
    "debug=quick",
    "modality=ct",
    "reasoning=no_think",
    "data.train_images_per_modality=12",
    "data.test_images_per_modality=1",
    "trainer.accelerator=cpu",
    "trainer.save_steps=1",
    "evaluation.limit=1",
    "evaluation.blank_image=false",
    "evaluation.shuffled_image=false",
    "tracking=none",
)
HUGE = "reward.functions.accuracy.weight=1e300"  # infinite in float32


def curve(run: RunDirectory, name: str) -> list[Any]:
    return [json.loads(line)[name] for line in run.metrics.read_text().splitlines()]


def tensors(run: RunDirectory) -> dict[str, torch.Tensor]:
    """All weights and optimizer states on disk, without the metrics that Lightning stores beside them."""
    latest = run.latest_checkpoint()
    files = [*(latest.glob("*.safetensors") if latest else ()), *run.path.glob("model/*.safetensors")]
    found = {f"{file.parent.name}/{name}": value for file in files for name, value in load_file(file).items()}
    return {name: value for name, value in found.items() if not name.split("/")[1].startswith(("loops", "callbacks"))}


def all_finite(run: RunDirectory) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in tensors(run).values())


Scripted = Callable[[Callable[[int], float]], None]


@pytest.fixture
def rewarded() -> Iterator[Scripted]:
    """Sets a reward function that gives the first completion of the n-th call the returned value, the others 0.

    The calls are counted from 0 from each setting on.
    """
    calls = [0]
    script: list[Callable[[int], float]] = []

    @reward_function("scripted")
    def scripted(completions: Sequence[str], records: Sequence[Record], *, reasoning: Any) -> list[float]:
        calls[0] += 1
        return [script[-1](calls[0] - 1), *[0.0] * (len(completions) - 1)]

    def start(value: Callable[[int], float]) -> None:
        calls[0] = 0
        script.append(value)

    yield start
    del REWARDS["scripted"]


SCRIPTED = ("+reward.functions.scripted.weight=1.0",)


@pytest.mark.parametrize("iterations", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_step_that_is_not_finite_is_skipped_counted_and_changes_nothing(
    iterations: int, rewarded: Scripted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewarded(lambda call: 1e300 if call == 1 else 1.0)
    words = (*SETTINGS, *SCRIPTED, f"algorithm.num_iterations={iterations}", "trainer.max_steps=2")
    with caplog.at_level(logging.WARNING):
        skipped = train_here(tmp_path / "skipped", *words)
    assert curve(skipped, "skipped_steps") == [0, iterations]
    assert curve(skipped, "policy_loss")[1] is None and all_finite(skipped)
    assert sum("step 1 is skipped" in line for line in caplog.messages) == iterations
    rewarded(lambda call: 1.0)
    one = train_here(tmp_path / "one", *words[:-1], "trainer.max_steps=1")
    ours, theirs = (load_file(run.model / "model.safetensors") for run in (skipped, one))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs), "as if the step had not been"
    latest = skipped.latest_checkpoint()
    assert latest is not None and latest.name == f"step={2 * iterations}.ckpt", "but it is counted"


@pytest.mark.long
def test_a_run_that_has_skipped_resumes_exactly(rewarded: Scripted, tmp_path: Path) -> None:
    """Killed after the skipped step: the same weights, optimizer state and counts as one left in peace."""
    words = (*SETTINGS, *SCRIPTED, "trainer.max_steps=4")

    def script(call: int) -> float:
        return 1e300 if call == 1 else float(call)

    rewarded(script)
    peace = train_here(tmp_path / "peace", *words)

    def interrupted(call: int) -> float:
        if call == 3:
            raise OSError("the machine stops")
        return script(call)

    rewarded(interrupted)
    with pytest.raises(RewardError, match="OSError"):
        train_here(tmp_path / "killed", *words)
    killed = RunDirectory(tmp_path / "killed")
    rewarded(lambda call: script(call + 3))
    train(composed("train", f"resume={killed.path}"), killed.path, [])
    assert curve(killed, "step") == [0, 1, 2, 3]
    assert curve(killed, "skipped_steps") == curve(peace, "skipped_steps") == [0, 1, 1, 1]
    ours, theirs = tensors(killed), tensors(peace)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ((HUGE, "trainer.max_steps=9"), ["algorithm.learning_rate", "algorithm.objective.beta", "model.dtype"]),
        pytest.param((HUGE, "trainer.max_steps=2"), ["the last 2 optimizer steps"], marks=pytest.mark.long),
        ((HUGE, "trainer.max_steps=1"), ["the last 1 optimizer steps"]),
        pytest.param((HUGE, "algorithm.num_iterations=4"), ["step 0"], marks=pytest.mark.long),
        (("algorithm=sft", "algorithm.weight_decay=1e45"), ["step 0", "the weight ", "algorithm.learning_rate"]),
        pytest.param(
            ("algorithm.weight_decay=1e45", "model.tuning=lora"),
            ["step 0", "lora", "not finite after"],
            marks=pytest.mark.long,
        ),
        pytest.param(
            ("algorithm.weight_decay=1e45", "model.dtype=bfloat16"),
            ["step 0", "not finite after"],
            marks=pytest.mark.long,
        ),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else "",
)
def test_a_training_that_has_broken_down_stops_and_stores_nothing_of_it(
    changes: tuple[str, ...], named: list[str], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError) as error:
        train_here(tmp_path / "run", *SETTINGS, *changes)
    assert [words for words in named if words not in str(error.value)] == [], error.value
    run = RunDirectory(tmp_path / "run")
    assert not run.model.exists() and not run.finished.exists() and all_finite(run)
    skipped = curve(run, "skipped_steps") if run.metrics.exists() else []
    assert skipped == list(range(1, len(skipped) + 1)) and len(skipped) < MAX_SKIPPED_IN_A_ROW


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
@pytest.mark.parametrize(
    ("changes", "named"), [((HUGE,), "optimizer steps were skipped"), (("algorithm.weight_decay=1e45",), "after the")]
)
def test_all_processes_decide_alike(strategy: str, changes: tuple[str, ...], named: str, tmp_path: Path) -> None:
    words = (*SETTINGS, *changes, f"trainer={strategy}", "trainer.devices=2", "trainer.accelerator=cpu")
    assert end(start(2, tmp_path, *words)) == [1, 1]
    logs = [(tmp_path / f"rank{rank}.log").read_text() for rank in range(2)]
    assert all("TrainingError" in log and named in log for log in logs), logs
    assert all_finite(RunDirectory(tmp_path / "run"))


def told(frac: list[float], formats: list[float], stop: int | None = None) -> list[tuple[str, int]]:
    """The metrics of which a collapse is told, and the steps at which it began; ``stop``: resumed before this step."""
    messages: list[tuple[str, int]] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append((record.args[3], record.args[0]))  # type: ignore[method-assign,index,assignment,misc]
    logger = logging.getLogger("medr1.training.stability")
    logger.addHandler(handler)
    callback = CollapseWarning()
    for step, (share, rate) in enumerate(zip(frac, formats, strict=True)):
        if step == stop:
            state = json.loads(json.dumps(callback.state_dict()))
            callback = CollapseWarning()
            callback.load_state_dict(state)
        metrics = {"frac_reward_zero_std": torch.tensor(share), "train/format_reward": torch.tensor(rate)}
        trainer: Any = SimpleNamespace(callback_metrics=metrics, is_global_zero=True)
        callback.on_train_batch_end(trainer, trainer, None, SimpleNamespace(step=step), step)
    logger.removeHandler(handler)
    return messages


N = COLLAPSE_STEPS
ZERO, FORMAT = "frac_reward_zero_std", "train/format_reward"


@pytest.mark.parametrize(
    ("frac", "formats", "expected"),
    [
        ([0.0] * 50, [1.0] * 50, []),
        ([0.99] * 50, [0.01] * 50, []),
        ([1.0] * (N - 1) + [0.5] + [1.0] * (N - 1), [1.0] * (2 * N - 1), []),
        ([1.0] * N, [1.0] * N, [(ZERO, 0)]),
        ([0.5] * 7 + [1.0] * 50, [1.0] * 57, [(ZERO, 7)]),
        ([0.5] * 50, [1.0] * 20 + [0.0] * 30, [(FORMAT, 20)]),
        ([1.0] * N + [0.0] * 5 + [1.0] * N, [1.0] * (2 * N + 5), [(ZERO, 0)]),
        ([0.0] * 3 + [1.0] * 30, [1.0] + [0.0] * 32, [(FORMAT, 1), (ZERO, 3)]),
        ([math.nan] * 30, [math.nan] * 30, []),
        ([1.0000001] * 30, [1.0] * 30, [(ZERO, 0)]),
    ],
)
@pytest.mark.parametrize("stop", [None, 1, 8, N - 1, N, N + 1])
def test_a_collapse_is_told_once_with_the_step_at_which_it_began(
    frac: list[float], formats: list[float], expected: list[tuple[str, int]], stop: int | None
) -> None:
    assert told(frac, formats, stop) == expected


def test_a_real_training_tells_of_its_collapse(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Completions of one token have no format and no answer."""
    few = ("algorithm.sampling.max_completion_length=1", f"trainer.max_steps={N + 2}", "trainer.save_steps=100")
    with caplog.at_level(logging.WARNING):
        train_here(tmp_path / "run", *SETTINGS, *few)
    lines = [line for line in caplog.messages if "since step 0" in line]
    assert len(lines) == 2 and {ZERO, FORMAT} == {line.rsplit("(", 1)[1].rstrip(")") for line in lines}
