"""Computes the tables of a sweep from its runs: matrices, generalization, contrasts between methods and rows.

Legend of this file (not that of CONTRIBUTING): V outcome vectors (one per run and condition), n records, C columns,
R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import TypeVar

import numpy as np

from medr1.data.sources.phantoms.drawing import SCANNERS
from medr1.domain.records import AXES, UNSPECIFIED, in_order
from medr1.errors import ConfigError, DataError
from medr1.evaluation.bootstrap import BoolArray, FloatArray, IntArray, Scores, column_means, estimate, score
from medr1.evaluation.metrics import check_same_questions
from medr1.evaluation.predictions import Condition, Prediction, cluster_unit
from medr1.evaluation.statistics import Estimate, PairedDifference, effective_n, holm, mcnemar_exact, rueger, wilson
from medr1.evaluation.sweep_tables import (
    ALL,
    SINGLE_METHOD,
    ContrastMatrix,
    Generalization,
    Matrix,
    SweepRun,
    SweepTables,
    TableCell,
)

SEED_AXIS = "seed"
SCANNER_COLUMNS = ("seen scanners", "held-out scanner")
_COLUMNS = (*AXES, "benchmark", "scanner")
_REFERENCES = ("zero_shot", "sft")  # side a of their contrasts; between the two, zero_shot is side a
_ALL_PAIRS = 6  # up to this many names, all pairs are compared; with more, each name with the first only

T = TypeVar("T")
Seeds = Mapping[str, int]  # seed -> index of the run


def tabulate(
    runs: Sequence[SweepRun], row_axis: str, column_axis: str, *, resamples: int = 2000, seed: int = 0
) -> SweepTables:
    """All tables of a sweep.

    Args:
        row_axis: the axis whose values are the rows, such as "modality".
        column_axis: "modality", "question_type", "benchmark" or "scanner".
        resamples, seed: of the bootstrap. The numbers depend on these, the predictions and the order of runs only.

    Raises:
        DataError: no runs, runs that vary different axes or share a cell, no predictions, or records that differ
            between runs or conditions.
        ConfigError: a column axis that test records do not have.
    """
    by_values = _arrange(runs, row_axis)
    methods = {_name(values): rows for values, rows in by_values.items()}
    sweep = _Sweep.of(runs, column_axis, resamples, np.random.default_rng(seed))
    rows = {m: {row: sweep.accuracy(seeds) for row, seeds in of_method.items()} for m, of_method in methods.items()}
    matrices = [_matrix(sweep, method, of_method, rows[method]) for method, of_method in methods.items()]
    contrasts = [
        _contrast(
            sweep,
            _name(a),
            _name(b),
            {row: (by_values[a][row], by_values[b][row]) for row in by_values[a] if row in by_values[b]},
            changed=sum(x != y for x, y in zip(a, b, strict=True)),
        )
        for a, b in _pairs(list(by_values))
    ]
    if row_axis not in AXES:  # rows are ways of training, which are compared as well
        contrasts += [
            _contrast(sweep, f"{method}: {a}", f"{method}: {b}", {method: (of_method[a], of_method[b])})
            for method, of_method in methods.items()
            for (a,), (b,) in _pairs([(row,) for row in of_method])
        ]
    if sweep.columns == (UNSPECIFIED,):  # it would repeat the column of all records
        matrices = [replace(m, columns=(), cells=_only_all(m.cells)) for m in matrices]
        contrasts = [c and replace(c, columns=(), cells=_only_all(c.cells)) for c in contrasts]
    return SweepTables(
        row_axis=row_axis,
        column_axis=column_axis,
        seeds=tuple(dict.fromkeys(run.axes[SEED_AXIS] for run in runs if SEED_AXIS in run.axes)),
        matrices=tuple(matrices),
        contrasts=tuple(contrast for contrast in contrasts if contrast),
        cluster_unit=cluster_unit(runs[0].predictions[_main_condition(runs[0])]),
    )


def _only_all(cells: Mapping[str, Mapping[str, T]]) -> dict[str, dict[str, T]]:
    return {row: {ALL: of_row[ALL]} for row, of_row in cells.items()}


def _name(values: tuple[str, ...]) -> str:
    """Of the method with these values of the axes that are neither rows nor seeds."""
    return " ".join(values) or SINGLE_METHOD


def _arrange(runs: Sequence[SweepRun], row_axis: str) -> dict[tuple[str, ...], dict[str, Seeds]]:
    """The index of each run in ``runs``, by method (the values of its other axes), row and seed."""
    if not runs:
        raise DataError("a table needs at least one finished run")
    first = runs[0]
    others = [axis for axis in first.axes if axis not in (row_axis, SEED_AXIS)]
    methods: dict[tuple[str, ...], dict[str, dict[str, int]]] = {}
    for number, run in enumerate(runs):
        if {*run.axes, SEED_AXIS} != {row_axis, *others, SEED_AXIS} or row_axis not in run.axes:
            raise DataError(
                f"run {run.name} varies {', '.join(run.axes) or 'nothing'}, run {first.name} "
                f"{', '.join(first.axes) or 'nothing'}; all runs of a table must vary the same axes, including "
                f"{row_axis}"
            )
        method = tuple(run.axes[axis] for axis in others)
        seeds = methods.setdefault(method, {}).setdefault(run.axes[row_axis], {})
        earlier = seeds.setdefault(run.axes.get(SEED_AXIS, ""), number)
        if earlier != number:
            raise DataError(f"runs {runs[earlier].name} and {run.name} have the same axes ({dict(run.axes)})")
    values = list(dict.fromkeys(run.axes[row_axis] for run in runs))
    if row_axis in AXES:  # a run that is trained on all records comes last
        values = sorted(in_order(values), key=ALL.__eq__)
    return {method: {v: rows[v] for v in values if v in rows} for method, rows in methods.items()}


def _pairs(sides: Sequence[tuple[str, ...]]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Pairs (a, b) to compare, each with its values. b is the later one, or a if only b has zero_shot, or else sft."""

    def rank(values: tuple[str, ...]) -> int:
        return next((rank for rank, value in enumerate(_REFERENCES) if value in values), len(_REFERENCES))

    pairs = combinations(sides, 2) if len(sides) <= _ALL_PAIRS else ((sides[0], side) for side in sides[1:])
    return [(b, a) if rank(b) < rank(a) else (a, b) for a, b in pairs]


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a matrix: means over seeds by column, the last one for all records. ``p`` [C + 1]: of a difference."""

    scores: Scores
    p: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class _Sweep:
    """The outcomes of all runs on the n test records."""

    runs: Sequence[SweepRun]
    columns: tuple[str, ...]  # those that occur, without ALL
    column: IntArray  # [n], as is the next one
    cluster: IntArray
    sizes: tuple[int, ...]  # [C + 1], as are the next two
    images: tuple[int, ...]
    chance: tuple[float, ...]
    correct: BoolArray  # [V, n]: trained (or base, without training) of every run, then their other conditions
    others: Mapping[str, Mapping[int, int]]  # condition -> number of the run -> row of ``correct``
    scores: Scores  # [V, C + 1]
    rng: np.random.Generator
    margin_rng: np.random.Generator  # of its own, so that the other intervals do not depend on the controls

    @property
    def base(self) -> Mapping[int, int]:
        return self.others.get(Condition.BASE, {})

    @property
    def controls(self) -> Mapping[str, Mapping[int, int]]:
        return {condition: rows for condition, rows in self.others.items() if condition != Condition.BASE}

    @classmethod
    def of(cls, runs: Sequence[SweepRun], column_axis: str, resamples: int, rng: np.random.Generator) -> _Sweep:
        if column_axis not in _COLUMNS:
            raise ConfigError(f"column axis {column_axis!r} is none of {', '.join(_COLUMNS)}")
        lines = runs[0].predictions[_main_condition(runs[0])]
        if not lines:
            raise DataError(f"run {runs[0].name} has no predictions; evaluate it on test records")
        names = [_column(line, column_axis) for line in lines]
        of_scanners = column_axis == "scanner"
        columns = tuple(name for name in SCANNER_COLUMNS if name in names) if of_scanners else tuple(in_order(names))
        column = np.asarray([columns.index(name) for name in names], dtype=np.intp)
        image, cluster = (
            np.unique([getattr(line, key) for line in lines], return_inverse=True)[1].astype(np.intp)
            for key in ("image", "cluster")
        )
        images = [image[column == c] for c in range(len(columns))] + [image]

        reference = {line.record: line for line in lines}
        outcomes = [_outcomes(run, reference, runs[0].name) for run in runs]
        correct = [conditions.pop(_main_condition(run)) for run, conditions in zip(runs, outcomes, strict=True)]
        others: dict[str, dict[int, int]] = {}
        for number, conditions in enumerate(outcomes):
            for condition, values in conditions.items():
                others.setdefault(condition, {})[number] = len(correct)
                correct.append(values)
        return cls(
            runs=runs,
            columns=columns,
            column=column,
            cluster=cluster,
            sizes=tuple(map(len, images)),
            images=tuple(len(np.unique(part)) for part in images),
            chance=tuple(column_means(np.asarray([[1 / line.options for line in lines]]), column)[0].tolist()),
            correct=np.stack(correct),
            others=others,
            scores=score(np.stack(correct), column, cluster, resamples, rng),
            rng=rng,
            margin_rng=np.random.default_rng(0),
        )

    def accuracy(self, seeds: Seeds) -> _Row:
        return _Row(self.scores.select(list(seeds.values())).over_seeds(self.rng))

    def margins(self, seeds: Seeds) -> dict[str, Scores]:
        """Mean over the seeds of the accuracy minus that of a control, for each control that all of them have."""
        runs = list(seeds.values())
        return {
            condition: (self.scores.select(runs) - self.scores.select([rows[run] for run in runs])).over_seeds(
                self.margin_rng
            )
            for condition, rows in self.controls.items()
            if all(run in rows for run in runs)
        }

    def difference(self, a: Sequence[int], b: Sequence[int]) -> _Row:
        """Vectors ``b`` minus vectors ``a``, paired by seed."""
        per_seed = []
        for of_a, of_b in zip(self.correct[list(a)], self.correct[list(b)], strict=True):
            only_a = np.bincount(self.column, weights=of_a & ~of_b)
            only_b = np.bincount(self.column, weights=of_b & ~of_a)
            counts = [*zip(only_a, only_b, strict=True), (only_a.sum(), only_b.sum())]
            per_seed.append([mcnemar_exact(int(in_a), int(in_b)) for in_a, in_b in counts])
        scores = (self.scores.select(b) - self.scores.select(a)).over_seeds(self.rng)
        return _Row(scores, tuple(rueger(p) for p in zip(*per_seed, strict=True)))


def _main_condition(run: SweepRun) -> Condition:
    """Trained, or base for a run without training."""
    for condition in (Condition.TRAINED, Condition.BASE):
        if condition in run.predictions:
            return condition
    raise DataError(f"run {run.name} has no predictions of condition trained or base; evaluate it")


def _column(line: Prediction, column_axis: str) -> str:
    if column_axis != "scanner":
        return str(getattr(line, column_axis))
    _, found, scanner = line.image.rpartition("/scanner-")
    if not found or scanner not in SCANNERS:
        raise DataError(
            f"record {line.record}: image {line.image!r} has none of the scanners {', '.join(SCANNERS)}; only phantoms "
            "have scanners"
        )
    return SCANNER_COLUMNS[scanner == SCANNERS[-1]]


def _outcomes(run: SweepRun, reference: Mapping[str, Prediction], reference_run: str) -> dict[str, BoolArray]:
    """Whether each prediction is correct, [n] by condition, in the order of the ``reference``."""
    outcomes: dict[str, BoolArray] = {}
    for condition, lines in run.predictions.items():
        by_record = {line.record: line for line in lines}
        name = f"run {run.name}, condition {condition}"
        check_same_questions(reference, by_record, f"run {reference_run}", name)
        if len(by_record) != len(lines):
            raise DataError(f"{name}: {len(lines)} predictions for {len(by_record)} records; a record occurs twice")
        outcomes[condition] = np.asarray([by_record[record].correct for record in reference], dtype=np.bool_)
    return outcomes


def _matrix(sweep: _Sweep, method: str, seeds: Mapping[str, Seeds], rows: Mapping[str, _Row]) -> Matrix:
    gains = {}
    for row, of_row in seeds.items():
        runs = list(of_row.values())
        if all(run in sweep.base for run in runs):
            gains[row] = sweep.difference([sweep.base[run] for run in runs], runs)
    tested = _paired_differences(gains, sweep.columns)
    margins = {row: sweep.margins(of_row) for row, of_row in seeds.items()}
    return Matrix(
        method=method,
        rows=tuple(rows),
        columns=sweep.columns,
        cells={
            row: {
                name: _cell(
                    sweep, column, list(seeds[row].values()), of_row, tested.get(row, {}).get(name), margins[row]
                )
                for column, name in enumerate((*sweep.columns, ALL))
            }
            for row, of_row in rows.items()
        },
        means={
            row: estimate(*_mean([(of_row.scores, c) for c in range(len(sweep.columns))]))
            for row, of_row in rows.items()
        },
        generalization=_generalization(rows, sweep.columns, margins),
    )


def _cell(
    sweep: _Sweep,
    column: int,
    runs: Sequence[int],
    row: _Row,
    gain_over_base: PairedDifference | None,
    margins: Mapping[str, Scores],
) -> TableCell:
    accuracy = row.scores.estimate(column)
    is_degenerate = accuracy.low == accuracy.high  # if all answers are correct, or all are wrong
    base = [sweep.base[run] for run in runs if run in sweep.base]
    here = slice(None) if column == len(sweep.columns) else sweep.column == column

    def effective(rows: Sequence[int]) -> float:
        return fmean(effective_n(sweep.correct[row][here], sweep.cluster[here]) for row in rows)

    others = {condition: [sweep.others[condition][run] for run in runs] for condition in margins}
    return TableCell(
        n=sweep.sizes[column],
        images=sweep.images[column],
        runs=tuple(sweep.runs[run].name for run in runs),
        accuracy=wilson(accuracy.value, effective(runs)) if len(runs) == 1 or is_degenerate else accuracy,
        chance=sweep.chance[column],
        # A mean over some of the seeds is not comparable with the accuracy, which is over all seeds.
        base=float(sweep.scores.value[base, column].mean()) if len(base) == len(runs) else None,
        gain_over_base=gain_over_base,
        controls={condition: float(sweep.scores.value[rows, column].mean()) for condition, rows in others.items()},
        margins={condition: scores.estimate(column) for condition, scores in margins.items()},
        effective_n={
            condition: effective(rows) for condition, rows in {Condition.BASE: base, **others}.items() if rows
        },
    )


def _contrast(
    sweep: _Sweep, a: str, b: str, seeds: Mapping[str, tuple[Seeds, Seeds]], changed: int = 1
) -> ContrastMatrix | None:
    """``b`` minus ``a`` in every row, on the seeds that both have. None without a common seed."""
    rows = {}
    for row, (of_a, of_b) in seeds.items():
        if shared := [seed for seed in of_a if seed in of_b]:
            rows[row] = sweep.difference([of_a[seed] for seed in shared], [of_b[seed] for seed in shared])
    if not rows:
        return None
    return ContrastMatrix(
        a=a,
        b=b,
        rows=tuple(rows),
        columns=sweep.columns,
        cells=_paired_differences(rows, sweep.columns),
        overall=estimate(
            *_mean([(row.scores, column) for row in rows.values() for column in range(len(sweep.columns))])
        ),
        generalization=_generalization(rows, sweep.columns),
        changed=changed,
    )


def _paired_differences(rows: Mapping[str, _Row], columns: Sequence[str]) -> dict[str, dict[str, PairedDifference]]:
    """By row and column. Holm's correction is over all cells, and separately over the column of all records."""
    inner = iter(holm([p for row in rows.values() for p in row.p[:-1]]))
    outer = iter(holm([row.p[-1] for row in rows.values()]))
    return {
        name: {
            column: PairedDifference(row.scores.estimate(c), row.p[c], next(outer if column == ALL else inner))
            for c, column in enumerate((*columns, ALL))
        }
        for name, row in rows.items()
    }


def _generalization(
    rows: Mapping[str, _Row], columns: Sequence[str], margins: Mapping[str, Mapping[str, Scores]] | None = None
) -> Generalization | None:
    """Over the rows that are also columns; None for fewer than two. ``margins``: of each row, by condition."""
    square = {name: row for name, row in rows.items() if name in columns}
    if len(square) < 2:
        return None
    own, own_resampled = _mean([(row.scores, columns.index(name)) for name, row in square.items()])
    rest, rest_resampled = _mean(
        [(row.scores, c) for name, row in square.items() for c, column in enumerate(columns) if column != name]
    )
    return Generalization(
        diagonal=estimate(own, own_resampled),
        off_diagonal=estimate(rest, rest_resampled),
        gap=estimate(own - rest, own_resampled - rest_resampled),
        margins=_diagonal_margins({row: margins[row] for row in square}, columns) if margins else {},
    )


def _diagonal_margins(margins: Mapping[str, Mapping[str, Scores]], columns: Sequence[str]) -> dict[str, Estimate]:
    """The mean over the rows of their margins in their own column, for the controls that all of them have."""
    first, *others = margins.values()
    return {
        condition: estimate(*_mean([(of_row[condition], columns.index(row)) for row, of_row in margins.items()]))
        for condition in first
        if all(condition in of_row for of_row in others)
    }


def _mean(cells: Sequence[tuple[Scores, int]]) -> tuple[float, FloatArray]:
    """Mean over cells, which are columns of scores, with equal weight: the value and its resamples [R]."""
    value = np.mean([scores.value[column] for scores, column in cells])
    return float(value), np.mean([scores.resampled[column] for scores, column in cells], axis=0)
