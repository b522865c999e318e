"""``algorithm=zero_shot``: no training, the model as it is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from medr1.config.settings import AlgorithmConfig, TrainerConfig
from medr1.training.algorithms import ALGORITHMS
from medr1.training.algorithms.algorithm import Algorithm


@dataclass
class ZeroShotConfig(AlgorithmConfig):
    """Settings of ``algorithm=zero_shot``. Those of the optimizer have no effect."""

    kind: str = "zero_shot"


class ZeroShot(Algorithm[ZeroShotConfig]):
    """Evaluates the base model, as a row of a table."""

    kind: ClassVar[str] = "zero_shot"
    settings = ZeroShotConfig
    trains: ClassVar[bool] = False
    ignores: ClassVar[tuple[str, ...]] = (
        *(f"algorithm.{item.name}" for item in fields(AlgorithmConfig) if item.name not in ("name", "kind")),
        *(f"trainer.{item.name}" for item in fields(TrainerConfig) if item.name not in ("name", "accelerator")),
        "seed",
    )


ALGORITHMS.register(ZeroShot())
