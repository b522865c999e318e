"""``algorithm=zero_shot``: no training, the model as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from medr1.config.settings import AlgorithmConfig
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


ALGORITHMS.register(ZeroShot())
