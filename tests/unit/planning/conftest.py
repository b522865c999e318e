"""A planned step of the tiny model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from medr1.config.enums import LossAggMode, ScaleRewards
from medr1.config.settings import ObjectiveConfig, SamplingConfig
from medr1.models.loading import ModelSpec
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.planning.dry_run import Lengths, Workload
from medr1.training.algorithms.grpo import GRPOConfig

LENGTHS = Lengths(prompt=20, completion=6, image_grid=(4, 4))


@pytest.fixture(scope="session")
def work() -> Workload:
    """Four prompts of GRPO with four completions each."""
    objective = ObjectiveConfig(
        loss_agg_mode=LossAggMode.token_mean, scale_rewards=ScaleRewards.group, epsilon=0.2, epsilon_high=0.2, beta=0.1
    )
    settings = GRPOConfig(
        learning_rate=1e-3,
        num_generations=4,
        sampling=SamplingConfig(max_completion_length=LENGTHS.completion),
        objective=objective,
    )
    return Workload(
        settings=settings,
        train_batch_size=4,
        lengths=LENGTHS,
        max_tokens_per_device=0,
        eval_batch_size=8,
        eval_lengths=LENGTHS,
        on_gpu=False,
    )


@pytest.fixture(scope="session")
def model(tiny: Callable[[str], tuple[Policy, Processor]], tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """The configuration of a tiny model, without weights."""
    folder = tmp_path_factory.mktemp("config")
    tiny("qwen2_vl")[0].core.config.save_pretrained(folder)
    return ModelSpec(str(folder))
