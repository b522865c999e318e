"""The outcomes of a published sweep on its test records: accuracies, differences and where they change their sign."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise

import numpy as np

from benchmarks.published import PublishedRun, PublishedSweep
from medr1.domain.records import Record, in_order
from medr1.evaluation.bootstrap import FloatArray, IntArray, Scores, bootstrap_sums, score, sums_by_cluster
from medr1.evaluation.predictions import Condition, Prediction
from medr1.evaluation.rationales import check_rationales
from medr1.evaluation.sweep_tables import ALL

RESAMPLES = 20_000
PLATEAU = 0.01  # a training has ended if its last third of validations is at most so much above the third before
RATIONALE = "algorithm.rationale"  # whether SFT is trained on rationales; an axis where a sweep has both
LENIENT = "lenient"  # the condition of the base with lenient parsing
HOME, AWAY = 0, 1  # columns: the records like those that were trained on, and all others


@dataclass(frozen=True, eq=False)  # hashed by identity
class Sweep:
    """The runs of one sweep with their outcomes on the test records. ``resamples``: of intervals."""

    published: PublishedSweep
    resamples: int = RESAMPLES

    @cached_property
    def records(self) -> list[Record]:
        return self.published.records()

    @cached_property
    def predictions(self) -> dict[str, dict[str, list[Prediction]]]:
        """By run and condition."""
        return {run.name: run.predictions(self.records) for run in self.published.runs}

    @cached_property
    def outcomes(self) -> dict[tuple[str, str], FloatArray]:
        """By run and condition: whether each answer is correct, [n]. ``LENIENT``: the base with lenient parsing."""
        found = {}
        for name, conditions in self.predictions.items():
            for condition, lines in conditions.items():
                found[name, condition] = np.array([line.correct for line in lines])
                if condition == Condition.BASE:
                    found[name, LENIENT] = np.array([line.lenient == line.answer for line in lines])
        return found

    def seeds(self, **axes: str) -> list[PublishedRun]:
        """The runs with these values, in the order of their seeds."""
        runs = [run for run in self.published.runs if axes.items() <= run.axes.items()]
        return sorted(runs, key=lambda run: int(run.axes.get("seed", "0")))

    @cached_property
    def by_sft(self) -> dict[str, Sweep]:
        """The sweep with one kind of SFT, for each value of ``RATIONALE``, as if it were the only one."""
        if not any(RATIONALE in run.axes for run in self.published.runs):
            return {"false": self, "true": self}
        found = {}
        for rationale in ("false", "true"):
            runs = [
                replace(run, axes={axis: value for axis, value in run.axes.items() if axis != RATIONALE})
                for run in self.published.runs
                if run.axes[RATIONALE] in ("", rationale)
            ]
            found[rationale] = self._with(runs, self.resamples)
        return found

    @cached_property
    def each_seed(self) -> list[Sweep]:
        """The sweep with the runs of one seed, for each seed, for values without intervals."""
        seeds = dict.fromkeys(run.axes.get("seed", "0") for run in self.seeds())
        of_seed = ([run for run in self.published.runs if run.axes.get("seed", "0") == seed] for seed in seeds)
        return [self._with(runs, 1) for runs in of_seed]

    def _with(self, runs: list[PublishedRun], resamples: int) -> Sweep:
        """A sweep of some of the runs, for which completions are not read again."""
        part = Sweep(replace(self.published, runs=runs), resamples)
        vars(part).update(records=self.records, predictions=self.predictions, outcomes=self.outcomes)
        return part

    def values(self, axis: str) -> list[str]:
        return list(dict.fromkeys(run.axes[axis] for run in self.published.runs))

    @property
    def seed_count(self) -> int:
        return len({run.axes.get("seed") for run in self.published.runs})

    def columns(self, axis: str) -> IntArray:
        """The number of each record's value on ``axis``, in the order of tables, [n]."""
        values = [getattr(record, axis) for record in self.records]
        number = {value: i for i, value in enumerate(in_order(values))}
        return np.array([number[value] for value in values], dtype=np.intp)

    def home_and_away(self, run: PublishedRun) -> IntArray:
        """HOME or AWAY for each record, [n]."""
        home = [
            run.modality in (ALL, record.modality) and run.question_type in (ALL, record.question_type)
            for record in self.records
        ]
        return np.where(home, HOME, AWAY).astype(np.intp)

    def scores(self, vectors: Sequence[tuple[str, str]], columns: IntArray) -> Scores:
        """The accuracies of runs under conditions. Calls with the same ``columns`` resample the same images."""
        images = np.unique([record.image_key for record in self.records], return_inverse=True)[1].astype(np.intp)
        outcomes = np.stack([self.outcomes[v] for v in vectors])
        return score(outcomes, columns, images, self.resamples, np.random.default_rng(0))

    def accuracy(
        self, runs: Sequence[PublishedRun], condition: str = Condition.TRAINED, columns: IntArray | None = None
    ) -> Scores:
        """Mean over the seeds ``runs``; columns are home, away (if there is any) and all records."""
        vectors = [(run.name, condition) for run in runs]
        found = self.scores(vectors, self.home_and_away(runs[0]) if columns is None else columns)
        return found.over_seeds(_rng(vectors))

    def difference(
        self,
        a: Sequence[PublishedRun],
        b: Sequence[PublishedRun],
        conditions: tuple[str, str] = (Condition.TRAINED, Condition.TRAINED),
        columns: IntArray | None = None,
        *,
        draw_seeds: bool = True,
    ) -> Scores:
        """``b`` minus ``a`` on the same records, paired by seed. Without ``draw_seeds`` images alone are resampled.

        Raises:
            ValueError: the runs have other seeds, and are not compared with the base, which has none.
        """
        seeds = [[run.axes.get("seed", "0") for run in runs] for runs in (a, b)]
        if len(a) != len(b) or (seeds[0] != seeds[1] and conditions[0] != LENIENT):
            raise ValueError(f"{a[0].name} and others have the seeds {seeds[0]}, {b[0].name} and others {seeds[1]}")
        vectors = [*((run.name, conditions[0]) for run in a), *((run.name, conditions[1]) for run in b)]
        both = self.scores(vectors, self.home_and_away(b[0]) if columns is None else columns)
        split = range(len(a)), range(len(a), len(a) + len(b))
        found = both.select(split[1]) - both.select(split[0])
        return _over_seeds(found, vectors, draw_seeds)

    def gain(self, runs: Sequence[PublishedRun], columns: IntArray | None = None, *, draw_seeds: bool = True) -> Scores:
        """Trained minus the base with lenient parsing, so that learning the format does not count."""
        return self.difference(runs, runs, (LENIENT, Condition.TRAINED), columns, draw_seeds=draw_seeds)


def _over_seeds(scores: Scores, vectors: Sequence[tuple[str, str]], draw_seeds: bool) -> Scores:
    """The mean over the seeds, which are drawn or stay as they are."""
    if draw_seeds:
        return scores.over_seeds(_rng(vectors))
    return Scores(scores.value.mean(axis=0), scores.resampled.mean(axis=0))


def _rng(vectors: Sequence[tuple[str, str]]) -> np.random.Generator:
    """Draws of seeds that depend on what is compared alone, so that a number does not change with its neighbours."""
    return np.random.default_rng(zlib.crc32(repr(vectors).encode()))


def at_plateau(run: PublishedRun) -> bool:
    """Whether validation had stopped to rise: the mean of its last third is that of the third before, or hardly more.

    The validation before the first step does not count.
    """
    values = [value for step, value in run.curves.get("validation/accuracy", ()) if step > 0]
    third = len(values) // 3
    rise = float(np.mean(values[-third:]) - np.mean(values[-2 * third : -third])) if third >= 2 else math.inf
    return round(rise, 9) <= PLATEAU


def crossing(x: Sequence[float], differences: FloatArray) -> float | None:
    """Where a difference [len(x)] changes its sign for the first time: on a log scale of x, linear if x has a zero.

    ``x`` rises. A difference of exactly 0 has no sign and is left out.
    """
    forward, back = (math.log, math.exp) if x[0] > 0 else (float, float)
    signed = [(at, float(difference)) for at, difference in zip(x, differences, strict=True) if difference]
    for (x0, d0), (x1, d1) in pairwise(signed):
        if d0 * d1 < 0:
            return back(forward(x0) + d0 / (d0 - d1) * (forward(x1) - forward(x0)))
    return None


@dataclass(frozen=True)
class Square:
    """A sweep whose runs are each trained on one value of ``axis`` and tested on all. Its results are means over rows.

    All values of the axis have the same weight. All rows are scored on the same resampled images, because a mean over
    rows would have too narrow an interval if each had its own.
    """

    sweep: Sweep
    axis: str

    def runs(self, row: str, method: str) -> list[PublishedRun]:
        return self.sweep.seeds(**{self.axis: row, "algorithm": method})

    def differences(self, row: str) -> Scores:
        """GRPO - SFT of one row, at home and away."""
        return self._at_home_and_away(row, self.sweep.difference(*self._both(row), columns=self._columns))

    def accuracy(self, method: str, condition: str = Condition.TRAINED) -> Scores:
        return self._mean(lambda row, columns: self.sweep.accuracy(self.runs(row, method), condition, columns))

    def difference(self, *, draw_seeds: bool = True) -> Scores:
        """GRPO - SFT."""
        return self._mean(
            lambda row, columns: self.sweep.difference(*self._both(row), columns=columns, draw_seeds=draw_seeds)
        )

    def gain(self, *, draw_seeds: bool = True) -> Scores:
        """GRPO - the base with lenient parsing."""
        return self._mean(lambda row, columns: self.sweep.gain(self.runs(row, "grpo"), columns, draw_seeds=draw_seeds))

    def _both(self, row: str) -> tuple[list[PublishedRun], list[PublishedRun]]:
        return self.runs(row, "sft"), self.runs(row, "grpo")

    @cached_property
    def _columns(self) -> IntArray:
        return self.sweep.columns(self.axis)

    @cached_property
    def _values(self) -> list[str]:
        return in_order(getattr(record, self.axis) for record in self.sweep.records)

    def _at_home_and_away(self, row: str, scores: Scores) -> Scores:
        """The scores of a row on its own value of the axis, and their mean over the others."""
        home = self._values.index(row)
        others = [column for column in range(len(self._values)) if column != home]
        value = np.array([scores.value[home], scores.value[others].mean()])
        return Scores(value, np.stack([scores.resampled[home], scores.resampled[others].mean(axis=0)]))

    def _mean(self, of_row: Callable[[str, IntArray], Scores]) -> Scores:
        """The mean over the rows at home and away, from the scores of each row by the values of the axis."""
        rows = [self._at_home_and_away(row, of_row(row, self._columns)) for row in self.sweep.values(self.axis)]
        value, resampled = np.stack([row.value for row in rows]), np.stack([row.resampled for row in rows])
        return Scores(value.mean(axis=0), resampled.mean(axis=0))


def false_share(sweep: Sweep, runs: Sequence[PublishedRun], condition: str) -> float:
    """Share of false claims in the rationales of ``runs``, a mean over the seeds."""
    counts = (_claims_by_image(sweep, run.name, condition).sum(axis=0) for run in runs)
    return float(np.mean([false / claims for false, claims in counts]))


def false_claims(sweep: Sweep, runs: Sequence[PublishedRun], *, draw_seeds: bool = True) -> Scores:
    """Share of false claims in the rationales of ``runs`` minus that of their base, a mean over the seeds, in column 0.

    Without ``draw_seeds`` images alone are resampled.
    """

    def shares(sums: FloatArray) -> FloatArray:
        """Trained minus base of each run, [..., V], from [..., V * 4] sums."""
        of_run = sums.reshape(*sums.shape[:-1], len(runs), 4)
        return np.asarray(of_run[..., 0] / of_run[..., 1] - of_run[..., 2] / of_run[..., 3])

    conditions = Condition.TRAINED, Condition.BASE
    both = [_claims_by_image(sweep, run.name, condition) for run in runs for condition in conditions]
    by_image = np.concatenate(both, axis=1)
    resampled = shares(bootstrap_sums(by_image, sweep.resamples, np.random.default_rng(0)))
    found = Scores(shares(by_image.sum(axis=0))[:, None], resampled.T[:, None])
    return _over_seeds(found, [(run.name, "false claims") for run in runs], draw_seeds)


@cache
def _claims_by_image(sweep: Sweep, run: str, condition: str) -> FloatArray:
    """False and all claims in the rationales of a run on each image, [K, 2]."""
    by_id = {record.id: record for record in sweep.records}
    sums = np.zeros((len(by_id), 2))
    for i, r in enumerate(check_rationales(sweep.predictions[run][condition], by_id)):
        sums[i] = sum(not claim.true for claim in r.claims), len(r.claims)
    return sums_by_cluster([record.image_key for record in sweep.records], *sums.T)
