"""What reaches the loss in a GRPO step: which model scored which prompts, before or after the update."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import medr1.training.grpo as grpo
from medr1.generation.engines.local import LocalEngine
from medr1.models.tensors import Completions, PromptBatch
from tests.integration.conftest import train_here
from tests.integration.test_training_step import SETTINGS


@dataclass
class Seen:
    """What two training steps have given to the loss, and the prompts from which they have sampled."""

    logprobs: list[Tensor] = field(default_factory=list)
    old: list[Tensor] = field(default_factory=list)
    mask: list[Tensor] = field(default_factory=list)
    sampled: list[tuple[PromptBatch, Completions]] = field(default_factory=list)
    modules: list[grpo.GRPOModule] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def run(*words: str) -> Seen:
        seen, loss, generate = Seen(), grpo.grpo_loss, LocalEngine.generate
        step = grpo.GRPOModule.step

        def watched_loss(logprobs: Tensor, old: Tensor, *rest: Any, **more: Any) -> Any:
            seen.logprobs.append(logprobs.detach().clone())
            seen.old.append(old.clone())
            seen.mask.append(rest[2])
            return loss(logprobs, old, *rest, **more)

        def watched_generate(engine: LocalEngine, policy: Any, prompts: Any, sampling: Any, *rest: Any) -> Any:
            found = generate(engine, policy, prompts, sampling, *rest)
            if sampling.temperature > 0:
                seen.sampled.append((prompts, found))
            return found

        def watched_step(module: grpo.GRPOModule, batch: Any) -> Any:
            seen.modules = [module]
            return step(module, batch)

        monkeypatch.setattr(grpo, "grpo_loss", watched_loss)
        monkeypatch.setattr(LocalEngine, "generate", watched_generate)
        monkeypatch.setattr(grpo.GRPOModule, "step", watched_step)
        run = train_here(tmp_path / "run", *SETTINGS, "algorithm.learning_rate=1e-3", *words)
        seen.lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        return seen

    yield run


def test_the_second_iteration_is_compared_with_the_policy_that_sampled(trained: Any) -> None:
    seen = trained("algorithm.num_iterations=2")
    first, second, *_ = seen.logprobs
    assert torch.equal(seen.old[0], first) and torch.equal(seen.old[1], first)
    assert not torch.allclose(second, first, atol=1e-3), "the update has changed the policy"


def test_the_sampler_and_the_loss_have_the_same_temperature(trained: Any) -> None:
    seen = trained("algorithm.sampling.temperature=0.5")
    for (_, completions), old, mask in zip(seen.sampled, seen.old, seen.mask, strict=True):
        torch.testing.assert_close(old[mask], completions.logprobs[:, : old.shape[1]][mask], atol=1e-4, rtol=1e-4)


def test_the_kl_divergence_is_to_the_model_before_training(trained: Any) -> None:
    before, after = (line["kl"] for line in trained("algorithm.objective.beta=0.1").lines)
    assert before == pytest.approx(0, abs=1e-6) and after > 1e-4


def test_papo_scores_the_completions_with_masked_images_too(trained: Any) -> None:
    assert all(line["kl_prcp"] > 1e-3 for line in trained("algorithm=papo").lines)


def test_noisy_rollout_samples_half_of_the_completions_with_a_noisy_image(trained: Any) -> None:
    """With the first step's noise; the loss has the clean images of all completions."""
    seen = trained("algorithm=noisy_rollout")
    (clean, own), (noisy, others) = seen.sampled[:2]
    assert torch.equal(clean.ids, noisy.ids) and len(own.ids) == len(others.ids)
    assert clean.pixel_values is not None and noisy.pixel_values is not None
    assert float((clean.pixel_values - noisy.pixel_values).abs().mean()) > 0.05
    old, mask = (rows.view(len(clean.ids), -1, rows.shape[1]) for rows in (seen.old[0], seen.mask[0]))
    half, width = old.shape[1] // 2, old.shape[2]
    for sampled, rows, is_clean in ((own, slice(0, half), True), (others, slice(half, None), False)):
        of_sampler = sampled.logprobs.view(len(clean.ids), half, -1)[..., :width]
        apart = float((old[:, rows] - of_sampler)[mask[:, rows]].abs().max())
        assert apart < 1e-3 if is_clean else apart > 0.01


def test_drpo_counts_the_prompts_of_all_steps(trained: Any) -> None:
    (module,) = trained("algorithm=drpo").modules
    assert module.rollout_log is not None
    assert int(module._domain_counts.sum()) == 2 * len(module.rollout_log.records)
