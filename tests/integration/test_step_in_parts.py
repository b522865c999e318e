"""What a step computes does not depend on how it is cut into parts, and what it trains on is what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from medr1.models.policy import Policy
from medr1.models.tensors import PromptBatch
from medr1.training.grpo import GRPOModule
from tests.integration.conftest import train_here

SETTINGS = (
    "debug=quick",
    "reasoning=no_think",
    "trainer.max_steps=2",
    "evaluation.limit=1",
    "evaluation.blank_image=false",
    "tracking=none",
    "trainer.accelerator=cpu",
)
START = Path(__file__).parents[2] / "medr1" / "models" / "tiny_base" / "model.safetensors"


def distances(one: Path, other: Path) -> tuple[float, float]:
    """How far the weights of ``one`` moved, and how far those of ``other`` are from them."""
    a, b, start = load_file(one / "model.safetensors"), load_file(other / "model.safetensors"), load_file(START)
    # As a whole, not weight by weight: Adam turns a gradient that is rounding noise into a step of full size.
    moved = sum(float((a[k] - start[k]).square().sum()) for k in a) ** 0.5
    return moved, sum(float((a[k] - b[k]).square().sum()) for k in a) ** 0.5


@pytest.mark.parametrize(
    "changes",
    [
        ("algorithm=sft",),
        ("algorithm=medr1_legacy",),
        ("algorithm=dr_grpo", "algorithm.objective.beta=0.1"),
        ("algorithm=grpo", "algorithm.num_iterations=2", "algorithm.objective.mask_truncated_completions=true"),
        ("algorithm=gspo", "model.gradient_checkpointing=true"),
        ("algorithm=cispo", "algorithm.objective.scale_rewards=batch"),
    ],
    ids=str,
)
def test_parts_equal_the_whole(changes: tuple[str, ...], tmp_path: Path) -> None:
    unsharded_params = train_here(tmp_path / "whole", *SETTINGS, *changes)
    parts = train_here(tmp_path / "parts", *SETTINGS, *changes, "trainer.max_tokens_per_device=1")
    moved, apart = distances(unsharded_params.model, parts.model)
    assert moved > 1e-3
    assert apart < 1e-3 * moved


@pytest.mark.parametrize("changes", [("model.freeze_vision_tower=true",), ("model.tuning=lora",)], ids=str)
def test_a_vision_tower_that_nobody_trains_looks_once_a_step(
    changes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rollout, reference and both updates share the features; the result is that of looking every time."""
    settings = (*SETTINGS, *changes, "algorithm.num_iterations=2")
    looks: list[int] = []
    see = Policy._image_features

    def counted(policy: Policy, prompts: PromptBatch) -> tuple[Tensor, ...]:
        looks.append(1)
        return see(policy, prompts)

    def trained(name: str) -> tuple[int, Path]:
        looks.clear()
        with monkeypatch.context() as patch:
            patch.setattr("medr1.workflows.train.LocalPredictionStore.generate", lambda *_, **__: None)  # evaluation looks as well
            patch.setattr(Policy, "_image_features", counted)
            run = train_here(tmp_path / name, *settings)
        (weights,) = run.model.glob("*model.safetensors")
        return len(looks), weights

    once, shared = trained("shared")
    monkeypatch.setattr(Policy, "precompute_image_features", lambda policy, prompts: prompts)
    often, separate = trained("separate")
    assert (once, often) == (2, 2 * 3)  # two steps: rollout with the first update, reference, second update
    a, b = load_file(shared), load_file(separate)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_dynamic_sampling_replaces_prompts_that_teach_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step keeps its number of prompts; none of those it trains on is without variance while others were left."""
    steps: dict[str, list[tuple[list[str], list[float]]]] = {}

    def watch(name: str, **settings: str) -> None:
        seen = steps.setdefault(name, [])

        def precompute_image_features(module: GRPOModule, *rest: Any) -> None:
            assert module.rollout_log is not None
            seen.append(([r.id for r in module.rollout_log.records], list(module.rollout_log.rewards.total)))

        monkeypatch.setattr(GRPOModule, "on_train_batch_end", precompute_image_features)
        overrides = [f"{key}={value}" for key, value in settings.items()]
        train_here(tmp_path / name, *SETTINGS, "algorithm=dapo", "algorithm.num_generations=2", *overrides)

    watch("none", **{"algorithm.filter_groups": "0"})
    watch("many", **{"algorithm.filter_groups": "8"})
    watch("parts", **{"algorithm.filter_groups": "8", "trainer.max_tokens_per_device": "1"})

    def zero_std(step: tuple[list[str], list[float]]) -> list[bool]:
        ids, rewards = step
        size = len(rewards) // len(ids)
        groups = [rewards[i : i + size] for i in range(0, len(rewards), size)]
        return [min(group) == max(group) for group in groups]

    assert [len(ids) for ids, _ in steps["many"]] == [len(ids) for ids, _ in steps["none"]]
    assert sum(zero_std(steps["none"][0])) > sum(zero_std(steps["many"][0]))
    kept = [i for i, gone in zip(steps["none"][0][0], zero_std(steps["none"][0]), strict=True) if not gone]
    assert steps["many"][0][0][: len(kept)] == kept
    assert steps["parts"][0] == steps["many"][0]
