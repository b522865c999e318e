"""Any run goes on by any algorithm: its weights, or its LoRA adapter itself; the reference is where it began."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from medr1.config.settings import LoraConfig, TrainConfig
from medr1.errors import ConfigError
from medr1.evaluation.predictions import read_predictions
from medr1.models.adapters import make_reference, set_trainable
from medr1.models.loading import load_policy
from medr1.runs.run_directory import RunDirectory, starting_weights
from medr1.workflows.evaluate import evaluate
from medr1.workflows.export import export_run
from medr1.workflows.local_model import load_trained, model_spec
from medr1.workflows.train import train
from tests.composing import composed
from tests.integration.conftest import SMALL_RUN, read_json, train_here
from tests.integration.processes import end, start, train_together

SMALL = (
    *SMALL_RUN,
    "trainer.accelerator=cpu",
    "evaluation.blank_image=false",
    "tracking=none",
    "algorithm.learning_rate=1e-3",
)
TUNING = {"full": (), "lora": ("model.tuning=lora", "model.lora.r=4")}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> object:
    """(tuning, algorithm) -> a finished run; the same twice is one."""
    place = tmp_path_factory.mktemp("first")

    @cache
    def run(tuning: str, algorithm: str) -> RunDirectory:
        return train_here(place / f"{tuning}-{algorithm}", *SMALL, *TUNING[tuning], f"algorithm={algorithm}")

    return run


def words(before: RunDirectory, tuning: str, algorithm: str) -> tuple[str, ...]:
    return (*SMALL, *TUNING[tuning], f"algorithm={algorithm}", f"model.path={before.path}")


def tensors(run: RunDirectory) -> dict[str, Tensor]:
    return load_file(next(run.model.glob("*.safetensors")))


@pytest.mark.parametrize(
    ("before", "after", "algorithms"),
    [
        ("lora", "lora", ("sft", "grpo")),
        pytest.param("full", "full", ("sft", "grpo"), marks=pytest.mark.long),
        pytest.param("full", "lora", ("grpo", "sft"), marks=pytest.mark.long),
        pytest.param("lora", "full", ("grpo", "sft"), marks=pytest.mark.long),
    ],
)
def test_a_run_goes_on(before: str, after: str, algorithms: tuple[str, str], first: object, tmp_path: Path) -> None:
    base: RunDirectory = first(before, algorithms[0])  # type: ignore[operator]
    run = train_here(tmp_path / "run", *words(base, after, algorithms[1]))
    # It begins with what the run before it ended with, merged or not.
    for own, its in zip(
        read_predictions(run.predictions("base")), read_predictions(base.predictions("trained")), strict=True
    ):
        assert dataclasses.replace(own, condition="trained") == its
    assert (run.model / "adapter_config.json").is_file() is (after == "lora")
    assert not (run.model / "reference").exists()
    if before == after:
        assert tensors(run).keys() == tensors(base).keys()
        assert any(not torch.equal(value, tensors(base)[name]) for name, value in tensors(run).items())
    else:
        path, adapter = run.weights(str(base.path))
        tiny = base.stored_config(TrainConfig).model.path
        assert (path, adapter) == ((str(base.model), run.model) if before == "full" else (str(run.model), None))
        assert starting_weights(str(base.path))[0] == (str(base.model) if before == "full" else tiny)
    # An evaluation and an export are of the same model.
    overrides = (f"run={run.path}", "tracking=none")
    evaluate(composed("evaluate", *overrides), tmp_path / "again", list(overrides))
    trained = read_predictions(run.predictions("trained"))
    assert read_predictions(RunDirectory(tmp_path / "again").predictions("trained")) == trained
    export_run(run, tmp_path / "export", merge=True)
    zero_shot = (*SMALL[:-1], "algorithm=zero_shot", f"model.path={tmp_path / 'export'}")
    exported = train_here(tmp_path / "exported", *(word for word in zero_shot if "trainer." not in word))
    answers = [line.parsed for line in read_predictions(exported.predictions("base"))]
    assert answers == [line.parsed for line in trained]


def test_the_reference_is_the_adapter_with_which_training_began(first: object) -> None:
    """With beta > 0: before the first step the divergence is 0, and a step does not move the reference."""
    base: RunDirectory = first("lora", "sft")  # type: ignore[operator]
    cfg = composed("train", *words(base, "lora", "grpo"))
    policy, _ = load_policy(model_spec(cfg, is_trained=True))
    set_trainable(policy, lora=cfg.model.lora)
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert make_reference(policy) is None
    assert {name for name, p in policy.named_parameters() if p.requires_grad} == trained
    ids = torch.arange(8, 24).unsqueeze(0)

    def logits() -> Tensor:
        return policy.logits(policy.core.model.language_model(input_ids=ids).last_hidden_state)

    start = logits()
    with torch.no_grad(), policy.as_reference():
        assert torch.equal(logits(), start)
    start.square().mean().backward()
    torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=1.0).step()
    with torch.no_grad():
        assert not torch.equal(logits(), start)
        with policy.as_reference():
            assert torch.equal(logits(), start), "the reference does not move"
        assert isinstance(policy.model, PeftModel)
        with policy.model.disable_adapter():
            assert not torch.equal(logits(), start), "it is not the base below the adapter"
    assert {name for name in policy.trained_state("")} == trained


@pytest.mark.long
def test_a_continued_adapter_is_killed_and_resumed_where_its_run_lies_now(first: object, tmp_path: Path) -> None:
    base: RunDirectory = first("lora", "sft")  # type: ignore[operator]
    peace = train_here(tmp_path / "peace", *words(base, "lora", "grpo"))
    copy = RunDirectory(tmp_path / "base")
    shutil.copytree(base.path, copy.path)
    processes = start(1, tmp_path, *words(copy, "lora", "grpo"))
    run, deadline = RunDirectory(tmp_path / "run"), time.monotonic() + 120
    while run.latest_checkpoint() is None:
        assert time.monotonic() < deadline, (tmp_path / "rank0.log").read_text()
        time.sleep(0.01)
    processes[0].kill()
    assert end(processes) == [-signal.SIGKILL] and not run.model.exists()
    copy.path.rename(tmp_path / "moved")
    stored = composed("train", f"resume={run.path}")
    stored.model.path = str(base.path)
    train(stored, run.path, [])
    assert all(torch.equal(value, tensors(peace)[name]) for name, value in tensors(run).items())
    fingerprints = [read_json(r.environment)["model_fingerprint"] for r in (run, peace, base)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    stored.model.path = str(peace.path)
    with pytest.raises(ConfigError, match="are not those that this run began with"):
        train(stored, run.path, [])


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_continue_an_adapter_as_one(strategy: str, first: object, tmp_path: Path) -> None:
    base: RunDirectory = first("lora", "sft")  # type: ignore[operator]
    given = [word.replace("1e-3", "1e-5") for word in words(base, "lora", "grpo")]
    one = train_together(1, tmp_path / "one", *given)
    two = train_together(2, tmp_path / "two", *given, f"trainer={strategy}", "trainer.devices=2")
    assert one.completions == two.completions
    for mine, theirs in zip(one.curves, two.curves, strict=True):
        values = {k: v for k, v in theirs.items() if not k.endswith("_time")}
        assert {k: mine[k] for k in values} == pytest.approx(values, rel=1e-4, abs=1e-6)
    a, b = (tensors(RunDirectory(tmp_path / name / "run")) for name in ("one", "two"))
    assert a.keys() == b.keys() and max(float((a[key] - b[key]).abs().max()) for key in a) < 1e-5


@pytest.mark.parametrize(
    ("words_given", "named"),
    [
        (("model.tuning=lora", "model.lora.r=8"), "model.lora.r=8: .* use model.lora.r=4"),
        (("model.tuning=lora", "model.lora.r=4", "model.lora.target_modules=both"), "target_modules=both"),
        (("model=qwen2_vl_2b",), "model=tiny, not of model=qwen2_vl_2b"),
    ],
    ids=str,
)
def test_what_cannot_go_on_is_refused(words_given: tuple[str, ...], named: str, first: object) -> None:
    base: RunDirectory = first("lora", "sft")  # type: ignore[operator]
    with pytest.raises(ConfigError, match=named):
        composed("train", *words_given, f"model.path={base.path}")


def test_a_run_is_a_model_like_any_other(first: object) -> None:
    """``evaluate.py model.path=RUN`` evaluates it as a base."""
    base: RunDirectory = first("lora", "sft")  # type: ignore[operator]
    cfg = composed("evaluate", f"model.path={base.path}", "reasoning=no_think", "tracking=none")
    policy, _ = load_trained(cfg, starting_weights(cfg.model.path))
    assert isinstance(policy.model, PeftModel)
    assert LoraConfig(4) == base.stored_config(TrainConfig).model.lora
