"""``algorithm=grpo`` and its variants, which are files of conf/algorithm with other settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from medr1.config.enums import AdvEstimator, ImportanceSamplingLevel, LossMode, ScaleRewards
from medr1.config.settings import AlgorithmConfig, ExternalRolloutConfig, ObjectiveConfig, SamplingConfig, TrainConfig
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.errors import ConfigError
from medr1.training.algorithms import ALGORITHMS
from medr1.training.algorithms.algorithm import Algorithm, DryRun, Training

if TYPE_CHECKING:
    from pytorch_lightning.callbacks import Callback

    from medr1.data.dataset import Dataset
    from medr1.models.policy import Policy
    from medr1.models.processor import Processor
    from medr1.tracking.tracker import AnyTracker
    from medr1.training.batches import Distortion
    from medr1.training.grpo import GRPOModule
    from medr1.training.module import PolicyModule


@dataclass
class NoisyRolloutConfig:
    """NoisyRollout: half of the completions of a prompt are sampled with a noisy image."""

    gaussian_noise_step: int = 0
    """Strength of the noise at the beginning: a step of a diffusion with 1,000 steps. 0: no noisy images.

    TRL: -. verl: -."""
    decay_coef: float = 30.0
    """How steeply the strength falls in the course of the training.

    TRL: -. verl: -."""
    decay_sig_mid: float = 0.667
    """Share of the training after which the strength has fallen to half.

    TRL: -. verl: -."""


@dataclass
class GRPOConfig(AlgorithmConfig):
    """Settings of ``algorithm=grpo`` and its variants."""

    kind: str = "grpo"
    num_generations: int = MISSING
    """Completions of each prompt, at least 2. Advantages are relative to this group.

    TRL: num_generations. verl: actor_rollout_ref.rollout.n."""
    adv_estimator: AdvEstimator = AdvEstimator.grpo
    """How advantages are computed from rewards; the equations are in ``medr1.rl.advantages``.

    TRL: multi_objective_aggregation. verl: algorithm.adv_estimator."""
    num_iterations: int = 1
    """Optimizer steps on each batch of completions.

    TRL: num_iterations. verl: actor_rollout_ref.actor.ppo_epochs."""
    filter_groups: int = 0
    """Dynamic sampling (DAPO): times in a step that prompts whose rewards have zero variance are replaced. 0: never.

    Those that still have zero variance then stay. verl counts the first generation too, ends with an error at its
    limit, and has no limit with 0.

    TRL: -. verl: algorithm.filter_groups.max_num_gen_batches."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How completions are sampled."""
    noisy_rollout: NoisyRolloutConfig = field(default_factory=NoisyRolloutConfig)
    """Noisy images in sampling."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """The loss."""


# The only value of scale_rewards with which the advantages are those of the method.
_SCALE_REWARDS = {
    AdvEstimator.gdpo: ScaleRewards.group,
    AdvEstimator.rloo: ScaleRewards.none,
    AdvEstimator.reinforce_plus_plus_baseline: ScaleRewards.batch,
    AdvEstimator.drpo: ScaleRewards.group,
}
# The settings of the objective that only some values of loss_mode read.
_OF_LOSS_MODE = {
    "epsilon": (LossMode.clip, LossMode.clip_cov),
    "epsilon_high": (LossMode.clip, LossMode.clip_cov, LossMode.cispo),
    "delta": (LossMode.clip,),
    "sapo_temperature_pos": (LossMode.sapo,),
    "sapo_temperature_neg": (LossMode.sapo,),
    "clip_cov_ratio": (LossMode.clip_cov,),
    "clip_cov_lb": (LossMode.clip_cov,),
    "clip_cov_ub": (LossMode.clip_cov,),
}
_OF_PAPO = ("ori_entropy_loss_coef", "aug_entropy_loss_coef", "black_prob", "patch_size")


class GRPO(Algorithm[GRPOConfig]):
    """Group relative policy optimization (DeepSeekMath, arXiv 2402.03300)."""

    kind: ClassVar[str] = "grpo"
    settings = GRPOConfig
    uses_rewards: ClassVar[bool] = True

    def check(self, cfg: TrainConfig) -> None:
        settings = self.settings_of(cfg)
        o, estimator = settings.objective, settings.adv_estimator
        scale = _SCALE_REWARDS.get(estimator, o.scale_rewards)
        if o.scale_rewards is not scale:
            raise ConfigError(
                f"algorithm.objective.scale_rewards={o.scale_rewards} with algorithm.adv_estimator={estimator}, which "
                f"scales rewards in its own way; use algorithm.objective.scale_rewards={scale}"
            )
        if o.loss_mode is not LossMode.clip and o.importance_sampling_level is ImportanceSamplingLevel.sequence:
            raise ConfigError(
                "algorithm.objective.importance_sampling_level=sequence with algorithm.objective.loss_mode="
                f"{o.loss_mode}, which has one importance ratio for each token; use importance_sampling_level=token or "
                "loss_mode=clip"
            )
        if o.top_entropy_quantile < 1 and o.importance_sampling_level is ImportanceSamplingLevel.sequence:
            raise ConfigError(
                f"algorithm.objective.top_entropy_quantile={o.top_entropy_quantile:g} with algorithm.objective."
                "importance_sampling_level=sequence, whose ratio has a gradient through all tokens of a completion; "
                "use importance_sampling_level=token or top_entropy_quantile=1"
            )
        if o.kl_prcp_coef > 0 and o.black_prob == 0:
            raise ConfigError(
                "algorithm.objective.black_prob=0: the masked image would be the image itself, and PAPO's divergence "
                "0; use a larger one, or algorithm.objective.kl_prcp_coef=0"
            )
        if o.delta is not None and o.loss_mode not in _OF_LOSS_MODE["delta"]:
            raise ConfigError(
                f"algorithm.objective.delta={o.delta:g} with algorithm.objective.loss_mode={o.loss_mode}, which has no "
                "dual clip; use algorithm.objective.delta=null or algorithm.objective.loss_mode=clip"
            )
        bound = 1 + o.epsilon_high if settings.num_iterations > 1 else 1.0  # with one iteration the ratio is 1
        if o.delta is not None and o.delta <= bound:
            name = "1 + epsilon_high=" if settings.num_iterations > 1 else ""
            raise ConfigError(
                f"algorithm.objective.delta={o.delta:g} is not above {name}{bound:g}: the policy would hardly learn "
                "from negative advantages, whose ratio begins at 1; use a larger one, or null"
            )
        if o.loss_mode is LossMode.cispo and o.epsilon_high < 1:
            raise ConfigError(
                f"algorithm.objective.epsilon_high={o.epsilon_high:g} with algorithm.objective.loss_mode=cispo, where "
                "it bounds the ratio itself, which begins at 1; use a larger one, such as 5"
            )
        if settings.num_iterations == 1:
            of_ratio, level = "", o.importance_sampling_level
            if o.loss_mode in (LossMode.cispo, LossMode.sapo):
                of_ratio = f"loss_mode={o.loss_mode}"
            elif level is ImportanceSamplingLevel.sequence and not _correction(cfg).startswith("token"):
                # A factor of each token would change the mean over a sequence.
                of_ratio = "importance_sampling_level=sequence"
            if of_ratio:
                raise ConfigError(
                    f"algorithm.num_iterations=1 with algorithm.objective.{of_ratio}: the ratio is then 1, and the "
                    "gradient that of algorithm=grpo; use algorithm.num_iterations=2 or more, or algorithm=grpo"
                )
        if o.clip_cov_lb >= o.clip_cov_ub:
            raise ConfigError(
                f"algorithm.objective.clip_cov_lb={o.clip_cov_lb:g} is not below clip_cov_ub={o.clip_cov_ub:g}; no "
                "token has a covariance between them"
            )
        for name in ("ori_entropy_loss_coef", "aug_entropy_loss_coef"):
            if o.kl_prcp_coef == 0 and (value := getattr(o, name)):
                raise ConfigError(
                    f"algorithm.objective.{name}={value:g} with algorithm.objective.kl_prcp_coef=0: it belongs to "
                    "PAPO; use algorithm=papo, or algorithm.objective.entropy_coef for an entropy bonus"
                )
        if settings.noisy_rollout.gaussian_noise_step > 0 and isinstance(cfg.rollout, ExternalRolloutConfig):
            raise ConfigError(
                f"rollout={cfg.rollout.name} with algorithm.noisy_rollout.gaussian_noise_step="
                f"{settings.noisy_rollout.gaussian_noise_step}: half of the completions would have the "
                "log-probabilities with a noisy image, which cannot be compared with those of training; use "
                "rollout=local"
            )
        _check_correction(cfg, settings.sampling)
        if o.kl_prcp_coef > 0 and settings.noisy_rollout.gaussian_noise_step > 0:
            raise ConfigError(
                f"algorithm.objective.kl_prcp_coef={o.kl_prcp_coef:g} with algorithm.noisy_rollout.gaussian_noise_step="
                f"{settings.noisy_rollout.gaussian_noise_step}: a step has one kind of distorted images; set one "
                "of the two to 0"
            )

    def without_effect(self, cfg: TrainConfig) -> Iterator[tuple[str, Sequence[str]]]:
        settings, prefix = self.settings_of(cfg), "algorithm.objective."
        o = settings.objective
        yield f"algorithm={cfg.algorithm.name}", ("model.recipe.sft_learning_rate",)
        if o.beta == 0:
            yield f"{prefix}beta=0", (f"{prefix}kl_loss_type",)
        unread = [f"{prefix}{name}" for name, modes in _OF_LOSS_MODE.items() if o.loss_mode not in modes]
        yield f"{prefix}loss_mode={o.loss_mode}", unread
        if o.kl_prcp_coef == 0:
            yield f"{prefix}kl_prcp_coef=0", [f"{prefix}{name}" for name in _OF_PAPO]
        if settings.noisy_rollout.gaussian_noise_step == 0:
            noisy = "algorithm.noisy_rollout."
            yield f"{noisy}gaussian_noise_step=0", (f"{noisy}decay_coef", f"{noisy}decay_sig_mid")
        if settings.num_iterations == 1:
            unread = ["epsilon", "epsilon_high", "delta"]
            yield "algorithm.num_iterations=1 (the ratio is then 1)", [f"{prefix}{name}" for name in unread]

    def build(
        self, cfg: TrainConfig, data: Dataset, policy: Policy, processor: Processor, tracker: AnyTracker
    ) -> Training:
        from medr1.generation.engines import ENGINES
        from medr1.generation.sampling import Sampling
        from medr1.models.adapters import make_reference
        from medr1.rewards import compute_rewards
        from medr1.training.batches import RecordBatches
        from medr1.training.callbacks import CompletionsTable

        settings, mode = self.settings_of(cfg), ReasoningMode(cfg.reasoning.mode)
        weights = {name: float(function["weight"]) for name, function in cfg.reward.functions.items()}
        module = self.module()(
            policy,
            make_reference(policy, is_sharded=cfg.trainer.is_sharded) if settings.objective.beta > 0 else None,
            settings,
            sampling=Sampling.from_config(settings.sampling, processor),
            engine=ENGINES[cfg.rollout.kind](cfg.rollout),
            decode=processor.decode,
            reward=partial(compute_rewards, cfg.reward, reasoning=mode),
            reward_weights=weights,
            domains=sorted({str(record.modality) for record in data.train}),
            total_steps=self.total_steps(cfg),
            max_tokens_per_device=cfg.trainer.max_tokens_per_device,
            gather_for_generation=cfg.trainer.gather_for_generation,
            seed=cfg.seed,
        )
        assert cfg.trainer.max_steps is not None
        distort = _distortion(settings, cfg.trainer.max_steps)
        batches, tracking = RecordBatches.from_config(cfg, data, processor, distort=distort), cfg.tracking
        callbacks: list[Callback] = []
        if tracking.enabled and (every := tracking.log_completions_steps):
            callbacks.append(CompletionsTable(tracker, batches.load, mode, every, tracking.num_completions))
        return Training(module, batches.rollout, callbacks)

    def module(self) -> type[GRPOModule]:
        """The class of the training module. A variant of GRPO in a plugin gives a subclass."""
        from medr1.training.grpo import GRPOModule

        return GRPOModule

    def num_iterations(self, settings: GRPOConfig) -> int:
        return settings.num_iterations

    def num_generations(self, settings: GRPOConfig) -> int:
        return settings.num_generations

    def completion_length(self, cfg: TrainConfig, records: Iterable[Record], count: Callable[[list[str]], int]) -> int:
        return self.settings_of(cfg).sampling.max_completion_length

    def dry_run(self, settings: GRPOConfig, policy: Policy, step: DryRun) -> tuple[PolicyModule, Any]:
        import torch

        from medr1.generation.sampling import Sampling
        from medr1.models.adapters import make_reference
        from medr1.models.tensors import map_tensors
        from medr1.rewards import Rewards
        from medr1.training.batches import RolloutBatch

        s = settings.sampling
        module = self.module()(
            policy,
            make_reference(policy) if settings.objective.beta > 0 else None,
            # The estimator, which may need rewards and records, has no tensors of a size that matters.
            replace(settings, num_iterations=min(2, settings.num_iterations), adv_estimator=AdvEstimator.grpo),
            # Without a tokenizer: no sampled token is the EOS token, and some token is suppressed.
            sampling=Sampling(s.max_completion_length, -1, (1,), s.temperature, s.top_p, s.top_k),
            engine=step.engine,
            decode=lambda ids, mask: [""] * len(ids),
            reward=lambda texts, records, **_: Rewards({}, [0.0] * len(texts)),
            reward_weights={},
            domains=(),
            total_steps=1,
            max_tokens_per_device=step.max_tokens_per_device,
        )
        distorted = map_tensors(torch.clone, step.prompts) if _distortion(settings, 1) else None
        return module, RolloutBatch(0, list(range(len(step.prompts.ids))), [], step.prompts, distorted=distorted)


def _correction(cfg: TrainConfig) -> str:
    """The mode by which the loss is corrected for the difference to the policy that sampled; empty if it is not."""
    rollout = cfg.rollout
    if not isinstance(rollout, ExternalRolloutConfig) or not rollout.importance_sampling_correction:
        return ""
    return str(rollout.importance_sampling_mode)


def _check_correction(cfg: TrainConfig, sampling: SamplingConfig) -> None:
    """A ratio of whole completions needs the probabilities of sampling and training over the same tokens."""
    mode = _correction(cfg)
    cut = f"top_p={sampling.top_p:g}" if sampling.top_p < 1 else f"top_k={sampling.top_k}" if sampling.top_k else ""
    if cut and mode.startswith("sequence"):
        raise ConfigError(
            f"rollout.importance_sampling_mode={mode} with algorithm.sampling.{cut}: "
            "training computes probabilities over all tokens, so that each token makes the ratio of a completion "
            "smaller, down to 0; use a token_ mode, or algorithm.sampling.top_p=1 algorithm.sampling.top_k=0"
        )


def _distortion(settings: GRPOConfig, max_steps: int) -> Distortion | None:
    """What makes the distorted images of these settings, if any: black patches (PAPO) or noise (NoisyRollout)."""
    from medr1.data.distortions import add_gaussian_noise, annealed, blacken_patches

    o, noisy = settings.objective, settings.noisy_rollout
    if o.kl_prcp_coef > 0:
        return lambda image, step, rng: blacken_patches(image, rng, o.patch_size, o.black_prob)
    if noisy.gaussian_noise_step > 0:
        return lambda image, step, rng: add_gaussian_noise(
            image, rng, annealed(noisy.gaussian_noise_step, step / max_steps, noisy.decay_coef, noisy.decay_sig_mid)
        )
    return None


ALGORITHMS.register(GRPO())
