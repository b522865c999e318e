"""Several processes give one process's update, and one process's files; killed together, they go on together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from medr1.evaluation.predictions import Prediction, read_predictions
from medr1.runs.run_directory import RunDirectory
from tests.integration.conftest import ROOT, SMALL_RUN, only_run, run_command
from tests.integration.processes import Watched, end, start, train_together

SETTINGS = (
    *SMALL_RUN,
    "data.train_images_per_modality=12",
    "data.test_images_per_modality=5",
    "trainer.accelerator=cpu",
    "evaluation.blank_image=false",
    "tracking=none",
    # Adam makes a step of full size even of a gradient that is zero but for rounding, as that of a key's bias: at a
    # larger rate such steps would in time turn a completion.
    "algorithm.learning_rate=1e-5",
)
KINDS: dict[str, tuple[str, ...]] = {
    "full": ("algorithm.objective.scale_rewards=batch",),
    "lora": ("model.tuning=lora", "model.gradient_checkpointing=true"),
    "nf4": ("model.tuning=lora", "model.quantization=nf4"),
    "sft": ("algorithm=sft",),
    "gdpo": ("algorithm=gdpo",),
    "papo": ("algorithm=papo", "algorithm.num_iterations=2"),
    "papo_lora": ("algorithm=papo", "model.tuning=lora", "model.gradient_checkpointing=true"),
    "reinforce_pp": ("algorithm=reinforce_pp",),
    "drpo": ("algorithm=drpo", "modality=all"),
    "noisy_rollout": ("algorithm=noisy_rollout", "trainer.train_batch_size=4"),
    "tokens": (
        "algorithm=rloo",
        "algorithm.objective.loss_mode=clip_cov",
        "algorithm.objective.clip_cov_ratio=0.1",
        "algorithm.objective.clip_cov_lb=0.001",
        "algorithm.objective.top_entropy_quantile=0.5",
        "algorithm.objective.entropy_coef=0.1",
    ),
    "dynamic": (
        "algorithm=dapo",
        "algorithm.num_generations=4",
        "algorithm.filter_groups=2",
        "trainer.train_batch_size=8",
        "seed=2",  # of the first ones in which a process has one micro-batch more than the other
    ),
}
Ran = tuple[Watched, Path]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> object:
    """(kind, strategy, processes, max_tokens_per_device) -> the run; the same twice is one."""
    place = tmp_path_factory.mktemp("distributed")

    @cache
    def run(kind: str, strategy: str = "single", count: int = 1, limit: int = 0) -> Ran:
        here = place / f"{kind}-{strategy}-{count}-{limit}"
        return train_together(count, here, *overrides(kind, strategy, count, limit)), here / "run"

    return run


def overrides(kind: str, strategy: str, count: int, limit: int) -> tuple[str, ...]:
    shared = (f"trainer={strategy}", f"trainer.devices={count}", f"trainer.max_tokens_per_device={limit}")
    return (*SETTINGS, *KINDS[kind], *shared)


def stored(run: Path, file: str) -> dict[str, Tensor]:
    """The tensors of the one file of that name below ``run``."""
    (found,) = run.glob(file)
    return load_file(found)


def predictions(run: Path, condition: str) -> list[Prediction]:
    return read_predictions(RunDirectory(run).predictions(condition))


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
    return sum(float((a[k].double() - b[k].double()).square().sum()) for k in a) ** 0.5


@pytest.mark.parametrize(
    ("kind", "strategy", "count", "limit"),
    [
        pytest.param("full", "fsdp", 2, 622, marks=pytest.mark.long),
        pytest.param("full", "ddp", 4, 0, marks=pytest.mark.long),
        pytest.param("lora", "fsdp", 4, 0, marks=pytest.mark.long),
        pytest.param("nf4", "ddp", 2, 0, marks=pytest.mark.long),
        pytest.param("sft", "fsdp", 2, 116, marks=pytest.mark.long),
        ("sft", "ddp", 2, 116),
        pytest.param("gdpo", "ddp", 2, 0, marks=pytest.mark.long),
        pytest.param("papo", "ddp", 2, 622, marks=pytest.mark.long),
        pytest.param("papo", "fsdp", 2, 622, marks=pytest.mark.long),
        pytest.param("papo_lora", "ddp", 2, 0, marks=pytest.mark.long),
        pytest.param("reinforce_pp", "ddp", 2, 0, marks=pytest.mark.long),
        pytest.param("drpo", "ddp", 2, 0, marks=pytest.mark.long),
        pytest.param("noisy_rollout", "ddp", 2, 0, marks=pytest.mark.long),
        pytest.param("tokens", "ddp", 2, 622, marks=pytest.mark.long),
        pytest.param("tokens", "fsdp", 2, 0, marks=pytest.mark.long),
        pytest.param("dynamic", "fsdp", 2, 0, marks=pytest.mark.long),
    ],
)
def test_the_update_is_that_of_one_process(kind: str, strategy: str, count: int, limit: int, ran: object) -> None:
    """Float32 sums in another order differ by 1e-7 of their size; two steps and their sums make it 1e-5."""
    one, alone = ran(kind)  # type: ignore[operator]
    several, together = ran(kind, strategy, count, limit)  # type: ignore[operator]
    assert several.completions == one.completions
    assert len(several.curves) == len(one.curves) == 2
    for mine, theirs in zip(several.curves, one.curves, strict=True):
        values = {k: v for k, v in theirs.items() if not k.endswith("_time")}
        # A divergence of almost nothing is the square of a difference of two almost equal numbers.
        assert {k: mine[k] for k in values} == pytest.approx(values, rel=1e-4, abs=1e-6)
    assert predictions(alone, "base") == predictions(together, "base")
    moments = [
        {k: v for k, v in stored(run, "checkpoints/*/optimizer.safetensors").items() if k.endswith("exp_avg")}
        for run in (alone, together)
    ]
    assert distance(*moments) < 1e-5 * distance(moments[0], {k: 0 * v for k, v in moments[0].items()})
    for file in ("model/*model.safetensors", "checkpoints/*/model.safetensors"):
        assert distance(stored(alone, file), stored(together, file)) < 1e-5
    names = [sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()) for run in (alone, together)]
    assert names[0] == names[1]
    assert several.local_share == pytest.approx([1 / count if strategy == "fsdp" else 1.0] * count, abs=0.02)
    # With these limits the first of two processes has one micro-batch and must split it, because the other has two.
    # With dynamic sampling, a process may have one more.
    if strategy == "fsdp":
        assert several.is_split == [True, False] if limit else any(several.is_split) == (kind == "dynamic")


@pytest.mark.long
def test_a_model_is_evaluated_in_shards_without_training(tmp_path: Path) -> None:
    """With measures and controls, all of which the first process asks for."""
    words = (*SETTINGS, "algorithm=zero_shot", "evaluation.num_generations=2", "evaluation.option_probabilities=true")
    runs = []
    for count, more in ((1, ()), (2, ("trainer=fsdp", "trainer.devices=2"))):
        here = tmp_path / str(count)
        assert end(start(count, here, *words, *more)) == [0] * count, (here / "rank0.log").read_text()
        runs.append(here / "run" / "predictions")
    files = [sorted(path.name for path in run.iterdir()) for run in runs]
    assert files[0] == files[1] and len(files[0]) >= 3
    for name in files[0]:
        alone, together = ((run / name).read_text() for run in runs)
        assert alone == together, name


@pytest.mark.long
@pytest.mark.parametrize(("kind", "strategy", "count", "limit"), [("full", "fsdp", 2, 622), ("full", "ddp", 4, 0)])
def test_killed_and_resumed_equals_uninterrupted(
    kind: str, strategy: str, count: int, limit: int, ran: object, tmp_path: Path
) -> None:
    killed = start(count, tmp_path, *overrides(kind, strategy, count, limit))
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run/checkpoints/step=1.ckpt/state.json")):
        assert time.monotonic() < deadline, (tmp_path / "rank0.log").read_text()
        time.sleep(0.01)
    for process in killed:
        process.kill()
    assert end(killed) == [-9] * count and not (tmp_path / "run" / "model").exists()
    train_together(count, tmp_path, resume=True)
    # Once more as if it had been stopped between its last checkpoint and the trained model.
    shutil.rmtree(tmp_path / "run" / "model")
    (tmp_path / "run" / "finished.json").unlink()
    assert end(start(count, tmp_path, resume=True)) == [0] * count, (tmp_path / "rank0.log").read_text()
    _, peace = ran(kind, strategy, count, limit)  # type: ignore[operator]
    for file in (
        "model/model.safetensors",
        *(f"checkpoints/step=2.ckpt/{name}.safetensors" for name in ("model", "optimizer")),
    ):
        a, b = stored(peace, file), stored(tmp_path / "run", file)
        assert a.keys() == b.keys() and all(
            torch.equal(a[k], b[k]) for k in a if not k.startswith(("loops", "callbacks"))
        )


@pytest.mark.long
def test_one_that_fails_ends_all(tmp_path: Path) -> None:
    assert end(start(2, tmp_path, *overrides("sft", "fsdp", 2, 0), fail=1)) == [1, 1]
    assert "OSError: the network is gone" in (tmp_path / "rank1.log").read_text()
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "finished.json").exists()


@pytest.mark.long
def test_the_command_starts_its_processes_itself(tmp_path: Path, ran: object) -> None:
    run_command("train.py", *overrides("full", "fsdp", 2, 0), f"output_dir={tmp_path}")
    _, alone = ran("full")  # type: ignore[operator]
    run = only_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [run.path.name]
    assert distance(stored(alone, "model/model.safetensors"), stored(run.path, "model/model.safetensors")) < 1e-5
    assert json.loads(run.finished.read_text()) == {"summary": "summary.json"}


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_torchrun_starts_the_processes(strategy: str, tmp_path: Path, ran: object) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    words = (*overrides("full", strategy, 2, 0), f"output_dir={tmp_path / 'runs'}")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*torchrun, str(ROOT / "train.py"), *words], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(timeout=600)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    printed = (tmp_path / "log").read_text()
    assert status == 0, printed
    _, alone = ran("full")  # type: ignore[operator]
    run = only_run(tmp_path / "runs")
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert all(path.is_relative_to(run.path) for path in files), "the second process writes nothing"
    assert distance(stored(alone, "model/model.safetensors"), stored(run.path, "model/model.safetensors")) < 1e-5
    assert json.loads(run.finished.read_text()) == {"summary": "summary.json"}
    assert printed.count(f"run directory: {run.path}") == 1, "one process reports"
