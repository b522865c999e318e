"""The engine ``local``: decodes in this process, with the weights that are trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from medr1.config.enums import Accelerator
from medr1.config.settings import NEUTRAL, ModelConfig, RolloutConfig, TrainerConfig
from medr1.errors import ConfigError
from medr1.generation.engines import ENGINES, Engine

if TYPE_CHECKING:
    from torch import Tensor

    from medr1.generation.sampling import Sampling
    from medr1.models.policy import Policy
    from medr1.models.tensors import Completions, Prefix, PromptBatch


_NEEDS_GPU = "rollout.cuda_graphs=true needs a GPU"


@dataclass
class LocalRolloutConfig(RolloutConfig):
    """Settings of ``rollout=local``."""

    cuda_graphs: bool | None = field(default=None, metadata=NEUTRAL)
    """Replay each decoding step as a CUDA graph. null: on a GPU, unless the model is sharded. verl's setting is the
    opposite.

    TRL: -. verl: actor_rollout_ref.rollout.enforce_eager."""


@ENGINES.register
class LocalEngine(Engine):
    """Prefills the prompts unless the caller passes ``prefix``, and decodes with ``medr1.generation.rollout``."""

    kind: ClassVar[str] = "local"
    settings: ClassVar[type[RolloutConfig]] = LocalRolloutConfig
    config: LocalRolloutConfig

    @classmethod
    def check(cls, config: Any, trainer: TrainerConfig | None) -> None:
        if not config.cuda_graphs or trainer is None:
            return
        if trainer.accelerator == Accelerator.cpu:
            raise ConfigError(f"{_NEEDS_GPU}; leave it out, or use trainer.accelerator=gpu")
        if trainer.is_sharded:
            raise ConfigError(
                "rollout.cuda_graphs=true with trainer.strategy=fsdp: a CUDA graph cannot gather layers; leave "
                "rollout.cuda_graphs out, or use trainer=ddp or trainer=single"
            )

    @classmethod
    def check_available(cls, config: Any, model: ModelConfig) -> None:
        import torch

        if config.cuda_graphs and not torch.cuda.is_available():
            raise ConfigError(f"{_NEEDS_GPU}, and torch finds none; leave it out")

    def generate(
        self,
        policy: Policy,
        prompts: PromptBatch,
        sampling: Sampling,
        num_generations: int = 1,
        uniforms: Tensor | None = None,
        prefix: Prefix | None = None,
    ) -> Completions:
        import torch

        from medr1.generation.rollout import rollout

        if prefix is None:
            with torch.no_grad():
                prefix = policy.prefill(prompts)
        graphs = self._uses_cuda_graphs(policy)
        return rollout(policy, prefix, sampling, num_generations, uniforms, cuda_graphs=graphs)

    def end_evaluation(self) -> None:
        """Gives back the memory that CUDA graphs share, which grows with the largest batch. Torch cannot reuse it."""
        from medr1.models.cuda_graph import free_shared_memory

        free_shared_memory()

    def _uses_cuda_graphs(self, policy: Policy) -> bool:
        from medr1.models.sharding import is_sharded

        if self.config.cuda_graphs is not None:
            return self.config.cuda_graphs
        return policy.device.type == "cuda" and not is_sharded(policy)
