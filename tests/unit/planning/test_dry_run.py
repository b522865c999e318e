"""Dry runs of a training step and of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medr1.config.enums import AdvEstimator, LossMode
from medr1.config.settings import LoraConfig
from medr1.errors import CheckpointError
from medr1.models.loading import ModelSpec
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.planning.dry_run import Workload, dry_run_evaluation, dry_run_step
from medr1.planning.memory_ledger import (
    ACTIVATIONS,
    CACHES,
    GRADIENTS,
    OPTIMIZER,
    REFERENCE,
    WEIGHTS,
    peak_bytes,
)
from medr1.training.algorithms.grpo import GRPOConfig, NoisyRolloutConfig
from medr1.training.algorithms.sft import SFTConfig
from medr1.training.algorithms.zero_shot import ZeroShotConfig
from tests.conftest import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_gradients_and_optimizer_state_are_exact(
    family: str, tiny: Callable[[str], tuple[Policy, Processor]], work: Workload, tmp_path: Path
) -> None:
    policy, _ = tiny(family)
    policy.core.config.save_pretrained(tmp_path)  # config.json and nothing else
    model = ModelSpec(str(tmp_path))
    size = sum(p.numel() for p in policy.parameters()) * 4
    buffers = sum(b.numel() * b.element_size() for b in policy.buffers())
    rollout = dry_run_step(model, work)["rollout"]
    assert rollout[WEIGHTS] == rollout[REFERENCE] == size + buffers
    assert rollout[GRADIENTS] == 0 and rollout[OPTIMIZER] == pytest.approx(2 * size, rel=0.01)
    assert dry_run_step(model, work)["optimizer"][GRADIENTS] == size
    text = policy.core.config.get_text_config()
    heads = text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    token = 2 * text.num_hidden_layers * heads * 4  # bytes of a token's keys and values
    prefix = work.train_batch_size * work.lengths.prompt
    rows = work.train_batch_size * work.num_generations * work.lengths.completion
    assert (prefix + rows) * token <= rollout[CACHES] <= (prefix + 2 * rows) * token
    lora = LoraConfig(r=4, lora_alpha=8)
    adapted = dry_run_step(replace(model, lora=lora, gradient_checkpointing=True), work)
    assert adapted["rollout"][REFERENCE] == 0 < adapted["optimizer"][GRADIENTS] < size / 3
    assert peak_bytes(adapted) < peak_bytes(dry_run_step(model, work))


def test_an_offloaded_optimizer_takes_no_memory_of_the_device(model: ModelSpec, work: Workload) -> None:
    whole, offloaded = (
        dry_run_step(replace(model, dtype="bfloat16"), replace(work, on_gpu=True, optimizer_offload=offload))
        for offload in (False, True)
    )
    assert whole["rollout"][OPTIMIZER] > 0
    for phase, parts in offloaded.items():
        assert parts[OPTIMIZER] < 1000, "norms of gradients"
        assert parts[GRADIENTS] == whole[phase][GRADIENTS]
        assert parts[ACTIVATIONS] <= whole[phase][ACTIVATIONS], "no copies of gradients in float32"


def test_gradient_checkpointing_is_that_of_the_vision_tower_too(model: ModelSpec, work: Workload) -> None:
    of_vision = {}
    for is_checkpointed in (False, True):
        trained, frozen = (
            dry_run_step(replace(model, gradient_checkpointing=is_checkpointed, freeze_vision_tower=is_frozen), work)[
                "update"
            ][ACTIVATIONS]
            for is_frozen in (False, True)
        )
        of_vision[is_checkpointed] = trained - frozen
    assert of_vision[True] < of_vision[False] / 2


def test_phases_are_those_of_the_algorithm(model: ModelSpec, work: Workload) -> None:
    assert set(dry_run_step(model, work)) == {"rollout", "reference", "update", "optimizer"}
    sft: Any = SFTConfig(learning_rate=1e-3)
    assert set(dry_run_step(model, replace(work, settings=sft))) == {"update", "optimizer"}
    assert dry_run_step(model, replace(work, settings=ZeroShotConfig())) == {}


def test_more_micro_batches_than_two_add_only_their_images(model: ModelSpec, work: Workload) -> None:
    """Those that do not run are like the second one."""
    limited = replace(work, max_tokens_per_device=1)
    peaks = [dry_run_step(model, replace(limited, train_batch_size=size))["update"] for size in (2, 3, 4)]
    added = [peaks[1] - peaks[0], peaks[2] - peaks[1]]
    assert added[0] == added[1] and set(added[0]) == {ACTIVATIONS}


def test_a_split_step_takes_less_memory(model: ModelSpec, work: Workload) -> None:
    split = replace(work, max_tokens_per_device=1)
    assert peak_bytes(dry_run_step(model, split)) < peak_bytes(dry_run_step(model, work))


@pytest.mark.parametrize(
    ("changes", "is_larger"),
    [
        ({"kl_prcp_coef": 0.01}, True),
        ({"entropy_coef": 0.1}, False),
        ({"top_entropy_quantile": 0.2}, False),
        ({"loss_mode": LossMode.clip_cov}, False),
        ({"loss_mode": LossMode.sapo}, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_step_of_every_objective_is_planned(
    gradient_checkpointing: bool, changes: dict[str, Any], is_larger: bool, model: ModelSpec, work: Workload
) -> None:
    """The update of PAPO holds the activations of two images."""
    spec, settings = replace(model, gradient_checkpointing=gradient_checkpointing), work.settings
    assert isinstance(settings, GRPOConfig)
    changed = replace(settings, objective=replace(settings.objective, **changes))
    plain, other = (dry_run_step(spec, replace(work, settings=s))["update"] for s in (settings, changed))
    assert (other[ACTIVATIONS] > plain[ACTIVATIONS] * 1.01) == is_larger
    assert other[ACTIVATIONS] >= plain[ACTIVATIONS] * 0.99


@pytest.mark.parametrize("estimator", AdvEstimator)
def test_a_step_of_every_estimator_and_of_noisy_images_is_planned(
    estimator: AdvEstimator, model: ModelSpec, work: Workload
) -> None:
    assert isinstance(work.settings, GRPOConfig)
    noisy = NoisyRolloutConfig(gaussian_noise_step=500)
    settings = replace(work.settings, adv_estimator=estimator, noisy_rollout=noisy)
    assert set(dry_run_step(model, replace(work, settings=settings))) == set(dry_run_step(model, work))


def test_evaluation_grows_linearly_with_its_batch(model: ModelSpec, work: Workload) -> None:
    """Two and three rows determine four."""
    exact = [peak_bytes(dry_run_evaluation(model, replace(work, eval_batch_size=n))) for n in (2, 3, 4)]
    assert exact[2] - exact[1] == exact[1] - exact[0] > 0


def test_batches_that_wait_add_their_images(model: ModelSpec, work: Workload) -> None:
    height, width = work.lengths.image_grid
    image = 4 * height * width * 3 * 2 * 14**2
    for dry_run, batch_size in ((dry_run_step, work.train_batch_size), (dry_run_evaluation, work.eval_batch_size)):
        peaks = [peak_bytes(dry_run(model, replace(work, waiting_batches=n))) for n in (0, 1, 3)]
        first, others = peaks[1] - peaks[0], peaks[2] - peaks[1]
        assert others == 2 * first == pytest.approx(2 * batch_size * image, rel=0.02)  # and their ids and masks


def test_a_model_that_is_not_there(work: Workload, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        dry_run_step(ModelSpec(str(tmp_path / "none")), work)
