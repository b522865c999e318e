"""From the runs of a sweep to its tables: matrices, what generalizes in them, and contrasts between methods and rows.

Legend: V vectors of outcomes (one a run and condition), n records, C columns, S seeds, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from operator import attrgetter

import numpy as np

from medr1.data.sources.phantoms.drawing import SCANNERS
from medr1.domain.records import Modality, QuestionType
from medr1.errors import ConfigError, DataError
from medr1.evaluation.bootstrap import BoolArray, FloatArray, IntArray, Scores, column_means, estimate, score
from medr1.evaluation.predictions import Condition, Prediction
from medr1.evaluation.statistics import holm, mcnemar_exact, rueger, wilson
from medr1.evaluation.tables import (
    ALL,
    ContrastMatrix,
    Estimate,
    Generalization,
    Matrix,
    SweepRun,
    SweepTables,
    TableCell,
    Versus,
)
from medr1.reporting.findings import SINGLE_METHOD, findings

SEED_AXIS = "seed"
SCANNER_COLUMNS = ("seen scanners", "held-out scanner")
_ENUMS: dict[str, tuple[str, ...]] = {
    "modality": tuple(Modality),
    "question_type": tuple(QuestionType),
}
_COLUMNS = {**_ENUMS, "scanner": SCANNER_COLUMNS}
# What must agree between two answers to one record.
_question = attrgetter("image", "modality", "question_type", "answer", "options")
# Side a of a comparison wherever they stand: what is compared with, first of all the untrained model.
_REFERENCES = ("zero_shot", "sft")
# Up to so many methods (or rows) each is compared with each; of more, each with the first one.
_ALL_PAIRS = 6

Seeds = Mapping[str, int]  # number of the run by seed


def tabulate(
    runs: Sequence[SweepRun], row_axis: str, column_axis: str, *, resamples: int = 2000, seed: int = 0
) -> SweepTables:
    """All tables of a sweep.

    Args:
        row_axis: the axis whose values are the rows, such as "modality".
        column_axis: "modality", "question_type" or "scanner".
        resamples, seed: of the bootstrap; every number depends on these, the predictions and the order of runs only.

    Raises:
        DataError: no runs, runs that do not vary the same axes or stand twice for one cell, no predictions,
            records that are not the same in all runs and conditions.
        ConfigError: a column axis that test records do not have.
    """
    methods = _arrange(runs, row_axis)
    test = _Test.of(runs[0], column_axis)
    evidence = _Evidence.of(runs, test, resamples, np.random.default_rng(seed))
    lines = {m: {row: evidence.trained(seeds) for row, seeds in rows.items()} for m, rows in methods.items()}
    matrices = tuple(_matrix(evidence, method, rows, lines[method]) for method, rows in methods.items())
    contrasts = [
        _contrast(evidence, a, b, {row: (methods[a][row], methods[b][row]) for row in methods[a] if row in methods[b]})
        for a, b in _pairs(list(methods))
    ]
    if row_axis not in _ENUMS:
        contrasts += [
            _contrast(evidence, f"{method}: {a}", f"{method}: {b}", {method: (rows[a], rows[b])})
            for method, rows in methods.items()
            for a, b in _pairs(list(rows))
        ]
    compared = tuple(contrast for contrast in contrasts if contrast)
    return SweepTables(
        row_axis=row_axis,
        column_axis=column_axis,
        seeds=tuple(dict.fromkeys(run.axes[SEED_AXIS] for run in runs if SEED_AXIS in run.axes)),
        matrices=matrices,
        contrasts=compared,
        findings=findings(matrices, compared, row_axis, column_axis),
    )


def _arrange(runs: Sequence[SweepRun], row_axis: str) -> dict[str, dict[str, dict[str, int]]]:
    """The number of each run by method, row and seed."""
    if not runs:
        raise DataError("a table needs at least one finished run")
    first = runs[0]
    others = [axis for axis in first.axes if axis not in (row_axis, SEED_AXIS)]
    methods: dict[str, dict[str, dict[str, int]]] = {}
    for number, run in enumerate(runs):
        if {*run.axes, SEED_AXIS} != {row_axis, *others, SEED_AXIS} or row_axis not in run.axes:
            raise DataError(
                f"run {run.name} varies {', '.join(run.axes) or 'nothing'}, run {first.name} "
                f"{', '.join(first.axes) or 'nothing'}; the runs of a table vary the same axes, {row_axis} among them"
            )
        method = " ".join(run.axes[axis] for axis in others) or SINGLE_METHOD
        seeds = methods.setdefault(method, {}).setdefault(run.axes[row_axis], {})
        earlier = seeds.setdefault(run.axes.get(SEED_AXIS, ""), number)
        if earlier != number:
            raise DataError(
                f"runs {runs[earlier].name} and {run.name} stand for the same cell ({dict(run.axes)}); leave one out"
            )
    order = {value: place for place, value in enumerate(_ENUMS.get(row_axis, ()))}
    for run in runs:
        order.setdefault(run.axes[row_axis], len(order))
    return {method: dict(sorted(rows.items(), key=lambda row: order[row[0]])) for method, rows in methods.items()}


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """What to compare, as (a, b): b is the later one, unless it is a reference and a is none."""
    pairs = combinations(names, 2) if len(names) <= _ALL_PAIRS else ((names[0], name) for name in names[1:])
    return [(b, a) if _rank(b) < _rank(a) else (a, b) for a, b in pairs]


def _rank(name: str) -> int:
    return next((rank for rank, value in enumerate(_REFERENCES) if value in name.split()), len(_REFERENCES))


@dataclass(frozen=True, slots=True)
class _Test:
    """The n test records that all runs answer, as the first run has them, and where each stands."""

    run: str
    questions: Mapping[str, Prediction]  # by record id
    columns: tuple[str, ...]  # those that occur, without ALL
    column: IntArray  # n
    image: IntArray  # n
    sizes: tuple[int, ...]  # C + 1, as are the next two
    images: tuple[int, ...]
    chance: tuple[float, ...]

    @classmethod
    def of(cls, run: SweepRun, column_axis: str) -> _Test:
        if column_axis not in _COLUMNS:
            raise ConfigError(f"column axis {column_axis!r} is none of {', '.join(_COLUMNS)}")
        if not (lines := run.predictions[_asked(run)]):
            raise DataError(f"run {run.name} has no predictions; evaluate it on test records")
        names = [_column(line, column_axis) for line in lines]
        columns = tuple(str(name) for name in _COLUMNS[column_axis] if name in names)
        column = np.asarray([columns.index(name) for name in names], dtype=np.intp)
        image = np.unique([line.image for line in lines], return_inverse=True)[1].astype(np.intp)
        of_column = [image[column == c] for c in range(len(columns))]
        guess = np.asarray([[1 / line.options for line in lines]])
        return cls(
            run=run.name,
            questions={line.record: line for line in lines},
            columns=columns,
            column=column,
            image=image,
            sizes=tuple(len(part) for part in (*of_column, image)),
            images=tuple(len(np.unique(part)) for part in (*of_column, image)),
            chance=tuple(column_means(guess, column)[0].tolist()),
        )


def _asked(run: SweepRun) -> Condition:
    """The condition that the run stands for: a run without training is the base model."""
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
            f"record {line.record}: image {line.image!r} names none of the scanners {', '.join(SCANNERS)}; only "
            "phantoms have scanners"
        )
    return SCANNER_COLUMNS[scanner == SCANNERS[-1]]


def _outcomes(run: SweepRun, test: _Test) -> dict[str, BoolArray]:
    """Right or wrong [n] by condition, in the order of the test records."""
    found: dict[str, BoolArray] = {}
    for condition, lines in run.predictions.items():
        here = {line.record: line for line in lines}
        where = f"run {run.name}, condition {condition}"
        for name, missing in ((where, test.questions.keys() - here.keys()), (test.run, here.keys() - test.questions)):
            if missing:
                raise DataError(
                    f"{where} and run {test.run} do not hold the same records: {name} lacks {len(missing)}, such as "
                    f"{min(missing)}; evaluate both on the same test records"
                )
        if len(here) != len(lines):
            raise DataError(f"{where}: {len(lines)} predictions for {len(here)} records; a record occurs twice")
        for record, line in test.questions.items():
            if _question(here[record]) != _question(line):
                raise DataError(
                    f"record {record} is not the same question in {where} ({_shown(here[record])}) and run "
                    f"{test.run} ({_shown(line)}); evaluate both on the same data"
                )
        found[condition] = np.asarray([here[record].correct for record in test.questions], dtype=np.bool_)
    return found


def _shown(line: Prediction) -> str:
    return ", ".join(map(str, _question(line)))


@dataclass(frozen=True, slots=True)
class _Line:
    """One row of a matrix: means over seeds by column, the last one that of all records."""

    scores: Scores  # C + 1
    p: tuple[float, ...] = ()  # C + 1, for a difference

    def estimate(self, column: int) -> Estimate:
        return estimate(float(self.scores.value[column]), self.scores.resampled[column])

    def mean(self) -> Estimate:
        return _mean([(self, column) for column in range(len(self.scores.value) - 1)])


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What all runs answered. ``base``: vector of a trained run's base condition, where it has one."""

    runs: Sequence[SweepRun]
    test: _Test
    rights: BoolArray  # V, n: what every run stands for, then the base of those that were trained
    base: Mapping[int, int]
    scores: Scores
    controls: Mapping[str, Mapping[int, FloatArray]]  # accuracy [C + 1] by condition and run
    rng: np.random.Generator

    @classmethod
    def of(cls, runs: Sequence[SweepRun], test: _Test, resamples: int, rng: np.random.Generator) -> _Evidence:
        answered = [_outcomes(run, test) for run in runs]
        rights = [conditions.pop(_asked(run)) for run, conditions in zip(runs, answered, strict=True)]
        base: dict[int, int] = {}
        controls: dict[str, dict[int, FloatArray]] = {}
        for number, conditions in enumerate(answered):
            for condition, correct in conditions.items():
                if condition == Condition.BASE:
                    base[number] = len(rights)
                    rights.append(correct)
                else:
                    controls.setdefault(condition, {})[number] = column_means(correct[None], test.column)[0]
        stacked = np.stack(rights)
        return cls(runs, test, stacked, base, score(stacked, test.column, test.image, resamples, rng), controls, rng)

    def trained(self, seeds: Seeds) -> _Line:
        return _Line(self.scores.select(list(seeds.values())).over_seeds(self.rng))

    def difference(self, a: Sequence[int], b: Sequence[int]) -> _Line:
        """Vectors ``b`` minus vectors ``a``, paired by seed."""
        per_seed = []
        for left, correct in zip(self.rights[list(a)], self.rights[list(b)], strict=True):
            only_a = np.bincount(self.test.column, weights=left & ~correct)
            only_b = np.bincount(self.test.column, weights=correct & ~left)
            counts = [*zip(only_a, only_b, strict=True), (only_a.sum(), only_b.sum())]
            per_seed.append([mcnemar_exact(int(b_count), int(c_count)) for b_count, c_count in counts])
        scores = (self.scores.select(b) - self.scores.select(a)).over_seeds(self.rng)
        return _Line(scores, tuple(rueger(p) for p in zip(*per_seed, strict=True)))


def _matrix(evidence: _Evidence, method: str, rows: Mapping[str, Seeds], lines: Mapping[str, _Line]) -> Matrix:
    test = evidence.test
    gains = {}
    for row, seeds in rows.items():
        if all(run in evidence.base for run in seeds.values()):
            trained = list(seeds.values())
            gains[row] = evidence.difference([evidence.base[run] for run in trained], trained)
    versus = _versus(gains, test.columns)
    cells = {
        row: {
            name: _cell(evidence, column, list(rows[row].values()), line, versus.get(row, {}).get(name))
            for column, name in enumerate((*test.columns, ALL))
        }
        for row, line in lines.items()
    }
    return Matrix(
        method=method,
        rows=tuple(rows),
        columns=test.columns,
        cells=cells,
        means={row: line.mean() for row, line in lines.items()},
        generalization=_generalization(lines, test.columns),
    )


def _cell(evidence: _Evidence, column: int, runs: Sequence[int], line: _Line, gain: Versus | None) -> TableCell:
    n = evidence.test.sizes[column]
    accuracy = line.estimate(column)
    if len(runs) == 1:
        correct = round(accuracy.value * n)
        accuracy = Estimate(correct / n, *wilson(correct, n))
    base = [evidence.base[run] for run in runs if run in evidence.base]
    return TableCell(
        n=n,
        images=evidence.test.images[column],
        runs=tuple(evidence.runs[run].name for run in runs),
        accuracy=accuracy,
        chance=evidence.test.chance[column],
        # A mean over some of the seeds only would not be the counterpart of the accuracy beside it.
        base=float(evidence.scores.value[base, column].mean()) if len(base) == len(runs) else None,
        gain=gain,
        controls={
            condition: float(np.mean([by_run[run][column] for run in runs]))
            for condition, by_run in evidence.controls.items()
            if all(run in by_run for run in runs)
        },
    )


def _contrast(evidence: _Evidence, a: str, b: str, rows: Mapping[str, tuple[Seeds, Seeds]]) -> ContrastMatrix | None:
    """``b`` minus ``a`` in every row, on the seeds that both have; None where they share nothing."""
    lines = {}
    for row, (of_a, of_b) in rows.items():
        if shared := [seed for seed in of_a if seed in of_b]:
            lines[row] = evidence.difference([of_a[seed] for seed in shared], [of_b[seed] for seed in shared])
    if not lines:
        return None
    columns = evidence.test.columns
    generalization = _generalization(lines, columns)
    return ContrastMatrix(
        a=a,
        b=b,
        rows=tuple(lines),
        columns=columns,
        cells=_versus(lines, columns),
        overall=_mean([(line, column) for line in lines.values() for column in range(len(columns))]),
        gap=generalization.gap if generalization else None,
        off_diagonal=generalization.off_diagonal if generalization else None,
    )


def _versus(lines: Mapping[str, _Line], columns: Sequence[str]) -> dict[str, dict[str, Versus]]:
    """The differences with their p-values: all cells are one family of Holm's, the columns of all records another."""
    inner = iter(holm([p for line in lines.values() for p in line.p[:-1]]))
    outer = iter(holm([line.p[-1] for line in lines.values()]))
    return {
        row: {
            name: Versus(line.estimate(column), line.p[column], next(outer if name == ALL else inner))
            for column, name in enumerate((*columns, ALL))
        }
        for row, line in lines.items()
    }


def _generalization(lines: Mapping[str, _Line], columns: Sequence[str]) -> Generalization | None:
    """Over the rows that are columns as well; None for fewer than two."""
    square = {row: line for row, line in lines.items() if row in columns}
    if len(square) < 2:
        return None
    diagonal = [(line, columns.index(row)) for row, line in square.items()]
    rest = [(line, c) for row, line in square.items() for c, name in enumerate(columns) if name != row]
    (of_diagonal, diagonals), (of_rest, rests) = _average(diagonal), _average(rest)
    return Generalization(
        diagonal=estimate(of_diagonal, diagonals),
        off_diagonal=estimate(of_rest, rests),
        gap=estimate(of_diagonal - of_rest, diagonals - rests),
    )


def _mean(cells: Sequence[tuple[_Line, int]]) -> Estimate:
    return estimate(*_average(cells))


def _average(cells: Sequence[tuple[_Line, int]]) -> tuple[float, FloatArray]:
    """Mean over cells with equal weight: the value and its resamples [R]."""
    value = np.mean([line.scores.value[column] for line, column in cells])
    return float(value), np.mean([line.scores.resampled[column] for line, column in cells], axis=0)
