"""The interface of an algorithm."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from medr1.config.settings import AlgorithmConfig, SamplingConfig, TrainConfig

if TYPE_CHECKING:
    from pytorch_lightning import Callback

    from medr1.data.dataset import Dataset
    from medr1.domain.records import Record
    from medr1.generation.engines import Engine
    from medr1.models.policy import Policy
    from medr1.models.processor import Processor
    from medr1.models.tensors import PromptBatch
    from medr1.tracking.tracker import AnyTracker
    from medr1.training.module import PolicyModule

S = TypeVar("S", bound=AlgorithmConfig)


@dataclass(frozen=True)
class Training:
    """What Lightning needs to train.

    ``make_batch(step, rank, world_size)`` returns a process's share of the batch of a step. ``callbacks``: those of the
    algorithm, in addition to the callbacks of every run.
    """

    module: PolicyModule
    make_batch: Callable[[int, int, int], Any]
    callbacks: list[Callback] = field(default_factory=list)


@dataclass(frozen=True)
class DryRun:
    """One training step as planning runs it: the longest prompts and completions, on the meta device.

    ``completion_length`` in tokens. ``engine`` takes the place of the rollout engine.
    """

    prompts: PromptBatch
    completion_length: int
    max_tokens_per_device: int
    engine: Engine


class Algorithm(ABC, Generic[S]):
    """An algorithm, registered in ``medr1.training.algorithms.ALGORITHMS``.

    ``kind`` is the value of ``algorithm.kind``; ``settings`` is the dataclass of the algorithm's files in
    conf/algorithm. The default methods are those of an algorithm that trains a loaded model with one optimizer step
    for each training step.
    """

    kind: ClassVar[str]
    settings: type[S]
    trains: ClassVar[bool] = True
    """Whether there is any training. Otherwise the model is evaluated as it is."""
    needs_base: ClassVar[bool] = True
    """Whether training starts from ``model.path``. Otherwise it starts from ``initial_policy``."""
    uses_rewards: ClassVar[bool] = False
    """Whether completions are generated and rewarded in training. Otherwise ``reward=`` is refused."""

    @property
    def trains_base(self) -> bool:
        """Whether the model in ``model.path`` is trained, so that its training records have pass rates."""
        return self.trains and self.needs_base

    def check(self, cfg: TrainConfig) -> None:
        """Checks the config before anything is loaded.

        Raises:
            ConfigError: settings that cannot work with this algorithm.
        """

    def without_effect(self, cfg: TrainConfig) -> Iterator[tuple[str, Sequence[str]]]:
        """Pairs of a choice and the dotted keys that have no effect with it, so that overrides are refused."""
        yield from ()

    def initial_policy(self, cfg: TrainConfig) -> tuple[Policy, Processor]:
        """A new model, for an algorithm with ``needs_base = False``."""
        raise NotImplementedError

    def build(
        self, cfg: TrainConfig, data: Dataset, policy: Policy, processor: Processor, tracker: AnyTracker
    ) -> Training:
        """The module, batches and callbacks that train ``policy``. ``trainer.max_steps`` is not None here."""
        raise NotImplementedError

    def settings_of(self, cfg: TrainConfig) -> S:
        """The settings of this algorithm in the config of a training."""
        assert isinstance(cfg.algorithm, self.settings)
        return cfg.algorithm

    def total_steps(self, cfg: TrainConfig) -> int:
        """Optimizer steps of the whole training."""
        assert cfg.trainer.max_steps is not None
        return cfg.trainer.max_steps * self.num_iterations(self.settings_of(cfg))

    def num_iterations(self, settings: S) -> int:
        """Optimizer steps of a training step."""
        return 1

    def sampling(self, settings: S) -> SamplingConfig | None:
        """How completions are sampled in training: the setting ``algorithm.sampling``, if there is one."""
        found = getattr(settings, "sampling", None)
        return found if isinstance(found, SamplingConfig) else None

    def num_generations(self, settings: S) -> int:
        """Completions of a prompt. If it is more than one, it is the setting ``algorithm.num_generations``."""
        return 1

    def completion_length(self, cfg: TrainConfig, records: Iterable[Record], count: Callable[[list[str]], int]) -> int:
        """Number of tokens of the longest completion in training. ``count``: texts -> the most tokens of one."""
        raise NotImplementedError

    def dry_run(self, settings: S, policy: Policy, step: DryRun) -> tuple[PolicyModule, Any]:
        """Module and batch of one training step on the meta device, with at most two iterations."""
        raise NotImplementedError
