"""The engine ``local``: decodes in this process, with the weights that are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from medr1.generation.engines import ENGINES, Engine

if TYPE_CHECKING:
    from torch import Tensor

    from medr1.generation.sampling import Sampling
    from medr1.models.policy import Policy
    from medr1.models.tensors import Completions, Prefix, PromptBatch


@ENGINES.register
class LocalEngine(Engine):
    """Prefills the prompts unless the caller passes ``prefix``, and decodes with ``medr1.generation.rollout``."""

    kind: ClassVar[str] = "local"

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
        return rollout(policy, prefix, sampling, num_generations, uniforms)
