"""What the tables of a sweep are made of: one cell for each trained row and tested column, and what stands beside it.

Rates are fractions, never percent. A *row* is what a model was trained on (or how), a *column* what it was tested on,
a *method* whatever else the sweep varied, such as ``grpo`` beside ``sft``. Seeds are pooled in a cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medr1.evaluation.predictions import Prediction

ALL = "all"  # the column of all test records


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One finished run of a sweep.

    ``axes``: what the sweep varied and this run's value of it, such as {"modality": "mri", "algorithm": "grpo",
    "seed": "0"}. ``predictions``: by condition (see ``Condition``); each holds the same test records.
    """

    name: str
    axes: Mapping[str, str]
    predictions: Mapping[str, list[Prediction]]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Versus:
    """Accuracy of one side minus that of another on the same records.

    ``p``: exact McNemar (with several seeds twice the median of their values, valid under any dependence);
    ``p_holm``: the same after Holm's correction over the whole matrix.
    """

    difference: Estimate
    p: float
    p_holm: float

    @property
    def open(self) -> bool:
        """The interval contains zero: nothing can be said about the sign."""
        return self.difference.low <= 0 <= self.difference.high


@dataclass(frozen=True, slots=True)
class TableCell:
    """``n`` test records on ``images`` pictures; ``runs`` names the runs (one a seed) that answered them.

    ``accuracy`` is the mean over seeds: Wilson's interval for one seed, bootstrap over images and seeds for several.
    ``gain`` is trained against base, None where no base was asked. ``controls``: accuracy by control condition.
    """

    n: int
    images: int
    runs: tuple[str, ...]
    accuracy: Estimate
    chance: float
    base: float | None
    gain: Versus | None
    controls: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Generalization:
    """For a square matrix: the mean of the diagonal, of the rest, and their difference, bootstrap over images."""

    diagonal: Estimate
    off_diagonal: Estimate
    gap: Estimate


@dataclass(frozen=True, slots=True)
class Matrix:
    """One method: ``cells[row][column]``; every row also has the column ``all`` and every column may lack a row that
    has not been run (it is absent then)."""

    method: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[str, Mapping[str, TableCell]]
    means: Mapping[str, Estimate]  # by row: accuracy averaged over the columns with equal weight
    generalization: Generalization | None


@dataclass(frozen=True, slots=True)
class ContrastMatrix:
    """Method (or row) ``b`` minus ``a`` on the same records: ``cells[row][column]``."""

    a: str
    b: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[str, Mapping[str, Versus]]
    overall: Estimate  # mean over rows and columns with equal weight, bootstrap over images (and seeds)
    gap: Estimate | None  # square: generalization gap of b minus that of a
    off_diagonal: Estimate | None = None  # square: b minus a, mean off the diagonal, without which a gap says little


@dataclass(frozen=True, slots=True)
class SweepTables:
    """All that a sweep says in numbers. ``findings`` are whole sentences on what the controls imply; they stand at
    the top of a report."""

    row_axis: str
    column_axis: str
    seeds: tuple[str, ...]
    matrices: tuple[Matrix, ...]
    contrasts: tuple[ContrastMatrix, ...]
    findings: tuple[str, ...]
