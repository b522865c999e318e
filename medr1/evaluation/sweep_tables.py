"""Data types of a sweep's tables: one cell for each trained row and tested column.

Rates are fractions. A *row* is what a model was trained on (or how), a *column* what it was tested on, a *method* the
combination of all other settings that the sweep varies, such as ``grpo`` or ``sft``. Seeds are pooled in a cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from medr1.evaluation.measures import Measured
from medr1.evaluation.predictions import Prediction
from medr1.evaluation.statistics import Estimate, PairedDifference

ALL = "all"  # the column of all test records
SINGLE_METHOD = "trained"  # the method of a sweep that varies only rows and seeds


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One finished run of a sweep.

    ``axes``: the settings that the sweep varies with this run's values, such as {"modality": "mri", "algorithm":
    "grpo", "seed": "0"}. ``predictions``: by condition (see ``Condition``), all on the same test records. ``measured``:
    further answers of base and trained, if they were asked for any.
    """

    name: str
    axes: Mapping[str, str]
    predictions: Mapping[str, list[Prediction]]
    measured: Mapping[str, Measured] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TableCell:
    """``n`` test records on ``images`` images, evaluated by ``runs`` (one per seed).

    ``effective_n``: of base and controls, by condition, the number of independent records with intervals as wide, the
    mean over seeds (see ``statistics.effective_n``).
    ``accuracy`` is the mean over seeds: Wilson interval for one seed, and where all answers of all seeds are correct or
    all wrong; else bootstrap over images and seeds.
    ``gain_over_base``: trained minus base, None without base predictions. ``controls``: accuracy by control condition;
    ``margins``: ``accuracy`` minus that of the control, paired by record.
    """

    n: int
    images: int
    runs: tuple[str, ...]
    accuracy: Estimate
    chance: float
    base: float | None
    gain_over_base: PairedDifference | None
    controls: Mapping[str, float]
    margins: Mapping[str, Estimate]
    effective_n: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Generalization:
    """Means of the diagonal and of all other cells of a square matrix, and the former minus the latter.

    ``margins``: the diagonal minus the same mean of a control, by condition. Empty for differences of methods.
    """

    diagonal: Estimate
    off_diagonal: Estimate
    gap: Estimate
    margins: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Matrix:
    """The table of one method: ``cells[row][column]``, where every row also has the column ``all``.

    ``columns`` is empty if the data lacks the column axis. ``means``: by row, the mean over the columns with equal
    weight. ``generalization`` is None unless at least two rows
    are columns as well.
    """

    method: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[str, Mapping[str, TableCell]]
    means: Mapping[str, Estimate]
    generalization: Generalization | None


@dataclass(frozen=True, slots=True)
class ContrastMatrix:
    """Side ``b`` minus side ``a`` on the same records, where a side is a method, or one row of a method.

    ``overall``: mean over rows and columns with equal weight. ``generalization``: of the differences, as in ``Matrix``.
    ``changed``: in how many settings the sides differ.
    """

    a: str
    b: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[str, Mapping[str, PairedDifference]]
    overall: Estimate
    generalization: Generalization | None
    changed: int = 1


@dataclass(frozen=True, slots=True)
class SweepTables:
    """All tables of a sweep. ``cluster_unit``: what the intervals resample, "images" or "groups"."""

    row_axis: str
    column_axis: str
    seeds: tuple[str, ...]
    matrices: tuple[Matrix, ...]
    contrasts: tuple[ContrastMatrix, ...]
    cluster_unit: str = "images"
