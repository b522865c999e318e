"""``algorithm=grpo`` and its variants dapo, dr_grpo, gspo, cispo and medr1_legacy, which differ in their settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from medr1.config.enums import LossMode, RewardNormalization, ScaleRewards
from medr1.config.settings import AlgorithmConfig, ObjectiveConfig, SamplingConfig, TrainConfig
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.errors import ConfigError
from medr1.training.algorithms import ALGORITHMS
from medr1.training.algorithms.algorithm import Algorithm, DryRun, Training

if TYPE_CHECKING:
    from medr1.data.dataset import Dataset
    from medr1.models.policy import Policy
    from medr1.models.processor import Processor
    from medr1.tracking.tracker import AnyTracker
    from medr1.training.module import PolicyModule


@dataclass
class GRPOConfig(AlgorithmConfig):
    """Settings of ``algorithm=grpo`` and its variants."""

    kind: str = "grpo"
    num_generations: int = MISSING
    """Completions of each prompt, at least 2. Advantages are relative to this group.

    TRL: num_generations. verl: actor_rollout_ref.rollout.n."""
    num_iterations: int = 1
    """Optimizer steps on each batch of completions.

    TRL: num_iterations. verl: actor_rollout_ref.actor.ppo_epochs."""
    filter_groups: int = 0
    """Dynamic sampling (DAPO): times in a step that prompts whose rewards have zero variance are replaced. 0: never.

    TRL: -. verl: algorithm.filter_groups.max_num_gen_batches."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How completions are sampled."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """The loss."""


class GRPO(Algorithm[GRPOConfig]):
    """Group relative policy optimization (DeepSeekMath, arXiv 2402.03300)."""

    kind: ClassVar[str] = "grpo"
    settings = GRPOConfig
    uses_rewards: ClassVar[bool] = True
    reward_normalizations: ClassVar[tuple[RewardNormalization, ...]] = tuple(RewardNormalization)

    def check(self, cfg: TrainConfig) -> None:
        scale = self.settings_of(cfg).objective.scale_rewards
        if cfg.reward.normalization is RewardNormalization.gdpo and scale is not ScaleRewards.group:
            raise ConfigError(
                f"algorithm.objective.scale_rewards={scale} with reward.normalization=gdpo: GDPO divides each reward "
                "by its standard deviation in the group; use algorithm.objective.scale_rewards=group, or "
                "reward.normalization=sum"
            )

    def without_effect(self, cfg: TrainConfig) -> Iterator[tuple[str, Sequence[str]]]:
        objective = self.settings_of(cfg).objective
        yield f"algorithm={cfg.algorithm.name}", ("model.recipe.sft_learning_rate",)
        if objective.beta == 0:
            yield "algorithm.objective.beta=0", ("algorithm.objective.kl_loss_type",)
        if objective.loss_mode is LossMode.cispo:
            yield "algorithm.objective.loss_mode=cispo", ("algorithm.objective.epsilon", "algorithm.objective.delta")

    def build(
        self, cfg: TrainConfig, data: Dataset, policy: Policy, processor: Processor, tracker: AnyTracker
    ) -> Training:
        from medr1.generation.engines import ENGINES
        from medr1.generation.sampling import Sampling
        from medr1.models.adapters import make_reference
        from medr1.rewards import compute_rewards
        from medr1.training.batches import RecordBatches
        from medr1.training.callbacks import CompletionsTable
        from medr1.training.grpo import GRPOModule

        settings, mode = self.settings_of(cfg), ReasoningMode(cfg.reasoning.mode)
        weights = {name: float(function["weight"]) for name, function in cfg.reward.functions.items()}
        module = GRPOModule(
            policy,
            make_reference(policy) if settings.objective.beta > 0 else None,
            settings,
            sampling=Sampling.from_config(settings.sampling, processor),
            engine=ENGINES[cfg.rollout.kind](cfg.rollout),
            decode=processor.decode,
            reward=partial(compute_rewards, cfg.reward, reasoning=mode),
            gdpo_weights=weights if cfg.reward.normalization is RewardNormalization.gdpo else None,
            total_steps=self.total_steps(cfg),
            max_tokens_per_device=cfg.trainer.max_tokens_per_device,
            seed=cfg.seed,
        )
        batches, tracking = RecordBatches.from_config(cfg, data.train, processor), cfg.tracking
        table = CompletionsTable(tracker, batches.load, mode, tracking.log_completions_steps, tracking.num_completions)
        return Training(module, batches.rollout, [table] if tracking.enabled else [])

    def num_iterations(self, settings: GRPOConfig) -> int:
        return settings.num_iterations

    def num_generations(self, settings: GRPOConfig) -> int:
        return settings.num_generations

    def completion_length(self, cfg: TrainConfig, records: Iterable[Record], count: Callable[[list[str]], int]) -> int:
        return self.settings_of(cfg).sampling.max_completion_length

    def dry_run(self, settings: GRPOConfig, policy: Policy, step: DryRun) -> tuple[PolicyModule, Any]:
        from medr1.generation.sampling import Sampling
        from medr1.models.adapters import make_reference
        from medr1.rewards import Rewards
        from medr1.training.batches import RolloutBatch
        from medr1.training.grpo import GRPOModule

        s = settings.sampling
        module = GRPOModule(
            policy,
            make_reference(policy) if settings.objective.beta > 0 else None,
            replace(settings, num_iterations=min(2, settings.num_iterations)),
            # Without a tokenizer: no sampled token is the EOS token, and some token is suppressed.
            sampling=Sampling(s.max_completion_length, -1, (1,), s.temperature, s.top_p, s.top_k),
            engine=step.engine,
            decode=lambda ids, mask: [""] * len(ids),
            reward=lambda texts, records, **_: Rewards({}, [0.0] * len(texts)),
            total_steps=1,
            max_tokens_per_device=step.max_tokens_per_device,
        )
        return module, RolloutBatch(0, list(range(len(step.prompts.ids))), [], step.prompts)


ALGORITHMS.register(GRPO())
