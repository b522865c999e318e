"""``algorithm=zero_shot``: no training, the model as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from medr1.config.settings import AlgorithmConfig, TrainConfig, TrainerConfig
from medr1.training.algorithms import ALGORITHMS
from medr1.training.algorithms.algorithm import Algorithm


@dataclass
class ZeroShotConfig(AlgorithmConfig):
    """Settings of ``algorithm=zero_shot``. The inherited settings of the optimizer have no effect."""

    kind: str = "zero_shot"


class ZeroShot(Algorithm[ZeroShotConfig]):
    """Evaluates the base model without training, so that a sweep has it as a row of its tables."""

    kind: ClassVar[str] = "zero_shot"
    settings = ZeroShotConfig
    trains: ClassVar[bool] = False

    def without_effect(self, cfg: TrainConfig) -> Iterator[tuple[str, Sequence[str]]]:
        optimizer = [f"algorithm.{item.name}" for item in fields(AlgorithmConfig) if item.name not in ("name", "kind")]
        read = {"name", "accelerator"}
        if cfg.trainer.is_sharded:
            read |= {"strategy", "devices", "num_nodes", "gather_for_generation"}
        trainer = [f"trainer.{item.name}" for item in fields(TrainerConfig) if item.name not in read]
        yield f"algorithm={cfg.algorithm.name}", ("seed", *optimizer, *trainer)


ALGORITHMS.register(ZeroShot())
