"""Rollout engines: the config group ``rollout``. An engine is one file of this package and one YAML file.

The files are imported before the config is checked, so they must not import torch at module level.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, ClassVar, Protocol

from medr1.config.registry import Registry
from medr1.config.settings import RolloutConfig

if TYPE_CHECKING:
    from torch import Tensor

    from medr1.generation.sampling import Sampling
    from medr1.models.policy import Policy
    from medr1.models.tensors import Completions, Prefix, PromptBatch


class Engine(Protocol):
    """Generates completions. ``ENGINES[config.kind](config)`` creates it."""

    kind: ClassVar[str]
    settings: ClassVar[type[RolloutConfig]]

    def __init__(self, config: RolloutConfig) -> None: ...

    def generate(
        self,
        policy: Policy,
        prompts: PromptBatch,
        sampling: Sampling,
        num_generations: int = 1,
        uniforms: Tensor | None = None,
        prefix: Prefix | None = None,
    ) -> Completions:
        """Samples G completions of each of B prompts, with their log-probabilities under the sampling distribution.

        ``policy``: the current weights, also for engines that hold a copy of them. ``uniforms`` [B*G,
        max_completion_length] in [0, 1) determine the samples of engines that draw from them. ``prefix``: the prompts
        after prefill, if the caller has it already. An engine that runs the model elsewhere ignores it.
        """


ENGINES: Registry[type[Engine]] = Registry("rollout")

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
