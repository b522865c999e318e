"""Rollout engines: the config group ``rollout``. An engine is one file of this package and one YAML file.

The files are imported before the config is checked, so they must not import torch at module level.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from medr1.config.registry import Registry
from medr1.config.settings import ModelConfig, RolloutConfig, TrainerConfig

if TYPE_CHECKING:
    from torch import Tensor

    from medr1.generation.sampling import Sampling
    from medr1.models.policy import Policy
    from medr1.models.tensors import Completions, Prefix, PromptBatch


class Engine:
    """Generates completions. ``ENGINES[config.kind](config)`` creates it.

    If ``settings`` is a subclass of ``ExternalRolloutConfig``, GRPO compares the log-probabilities of the completions
    with those of training, and corrects the loss.
    """

    kind: ClassVar[str]
    settings: ClassVar[type[RolloutConfig]] = RolloutConfig
    min_temperature: ClassVar[float] = 0.0
    max_temperature: ClassVar[float] = math.inf
    """Smallest and largest temperature that the engine can sample with."""

    def __init__(self, config: Any = None) -> None:
        self.config = self.settings() if config is None else config

    @classmethod
    def check(cls, config: Any, trainer: TrainerConfig | None) -> None:
        """Checks the settings before anything is loaded. ``trainer``: None in an evaluation.

        Raises:
            ConfigError: names the key, the value and the remedy.
        """

    @classmethod
    def without_effect(cls, config: Any) -> Iterator[tuple[str, Sequence[str]]]:
        """Pairs of a choice and the dotted keys that have no effect with it, so that overrides are refused."""
        yield from ()

    @classmethod
    def check_available(cls, config: Any, model: ModelConfig) -> None:
        """Checks that the engine can generate with the weights of ``model``, before a run is created or goes on.

        Raises:
            ConfigError, ServerError: names what is missing and the remedy.
        """

    @classmethod
    def memory_share(cls, config: Any) -> float:
        """The share of the device's memory that the engine takes while it generates, beside that of this process."""
        return 0.0

    @classmethod
    def opened(cls, config: Any, run: Path) -> AbstractContextManager[None]:
        """A context around everything that a run generates. ``run``: its directory.

        Processes that an engine starts end with it.
        """
        return nullcontext()

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
        raise NotImplementedError

    def sleep(self) -> None:
        """Frees the memory that the engine holds on the accelerator, until completions are generated again."""

    def end_evaluation(self) -> None:
        """Called after an evaluation, whose batches may be larger than those of a rollout."""
        self.sleep()


ENGINES: Registry[type[Engine]] = Registry("rollout")

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
