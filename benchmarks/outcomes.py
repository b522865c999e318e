"""The outcomes of a published sweep on its test records: accuracies, differences and where they change their sign."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise

import numpy as np

from benchmarks.published import PublishedRun, PublishedSweep
from medr1.domain.records import Record, in_order
from medr1.evaluation.bootstrap import FloatArray, Scores, bootstrap_statistic, score, sums_by_image
from medr1.evaluation.predictions import Condition, Prediction
from medr1.evaluation.rationales import check_rationales
from medr1.evaluation.statistics import Estimate
from medr1.evaluation.sweep_tables import ALL

RESAMPLES = 2000
PLATEAU = 0.01  # a training has ended if its last four validations are at most so much above the four before
LENIENT = "lenient"  # the condition of the base with lenient parsing
HOME, AWAY = 0, 1  # columns: the records like those that were trained on, and all others


@dataclass(frozen=True, eq=False)  # hashed by identity
class Sweep:
    """The runs of one sweep with their outcomes on the test records."""

    published: PublishedSweep

    @cached_property
    def records(self) -> list[Record]:
        return self.published.records()

    @cached_property
    def predictions(self) -> dict[str, dict[str, list[Prediction]]]:
        """By run and condition."""
        return {run.name: run.predictions(self.records) for run in self.published.runs}

    @cached_property
    def outcomes(self) -> dict[tuple[str, str], FloatArray]:
        """By run and condition: whether each answer is correct, [n]. ``LENIENT``: the base, read leniently."""
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

    def values(self, axis: str) -> list[str]:
        return list(dict.fromkeys(run.axes[axis] for run in self.published.runs))

    @property
    def seed_count(self) -> int:
        return len({run.axes.get("seed") for run in self.published.runs})

    def scores(self, vectors: Sequence[tuple[str, str]], is_home: Callable[[Record], bool]) -> Scores:
        """The accuracies of runs under conditions on both columns, with common resamples."""
        column = np.array([HOME if is_home(record) else AWAY for record in self.records], dtype=np.intp)
        if not column.any():
            column[:] = HOME
        images = np.unique([record.image_key for record in self.records], return_inverse=True)[1].astype(np.intp)
        return score(np.stack([self.outcomes[v] for v in vectors]), column, images, RESAMPLES, np.random.default_rng(0))

    def accuracy(self, runs: Sequence[PublishedRun], condition: str = Condition.TRAINED) -> Scores:
        """Mean over the seeds ``runs``; columns are home, away (if there is any) and all records."""
        vectors = [(run.name, condition) for run in runs]
        return self.scores(vectors, _at_home(runs[0])).over_seeds(_rng(vectors))

    def difference(
        self,
        a: Sequence[PublishedRun],
        b: Sequence[PublishedRun],
        conditions: tuple[str, str] = (Condition.TRAINED, Condition.TRAINED),
    ) -> Scores:
        """``b`` minus ``a`` on the same records, paired by seed."""
        vectors = [*((run.name, conditions[0]) for run in a), *((run.name, conditions[1]) for run in b)]
        both = self.scores(vectors, _at_home(b[0]))
        split = range(len(a)), range(len(a), len(a) + len(b))
        return (both.select(split[1]) - both.select(split[0])).over_seeds(_rng(vectors))

    def gain(self, runs: Sequence[PublishedRun]) -> Scores:
        """Trained minus the base read leniently, so that learning the format does not count."""
        return self.difference(runs, runs, (LENIENT, Condition.TRAINED))


def _rng(vectors: Sequence[tuple[str, str]]) -> np.random.Generator:
    """Draws of seeds that depend on what is compared alone, so that a number does not change with its neighbours."""
    return np.random.default_rng(zlib.crc32(repr(vectors).encode()))


def _at_home(run: PublishedRun) -> Callable[[Record], bool]:
    return lambda record: run.modality in (ALL, record.modality) and run.question_type in (ALL, record.question_type)


def at_plateau(run: PublishedRun) -> bool:
    """Whether validation had stopped to rise."""
    values = [value for _, value in run.curves["validation/accuracy"]]
    return len(values) >= 8 and float(np.mean(values[-4:]) - np.mean(values[-8:-4])) <= PLATEAU


def crossing(x: Sequence[float], differences: FloatArray) -> float | None:
    """Where a difference [len(x)] changes its sign for the first time: on a log scale of x, linear if x has a zero."""
    forward, back = (math.log, math.exp) if min(x) > 0 else (float, float)
    for (x0, d0), (x1, d1) in pairwise(zip(x, differences, strict=True)):
        if d0 * d1 < 0:
            return back(forward(x0) + float(d0 / (d0 - d1)) * (forward(x1) - forward(x0)))
    return None


@cache  # several parts of the page need it
def generalization(sweep: Sweep, axis: str) -> dict[str, Scores]:
    """Means over the rows of a square sweep: each method, GRPO - SFT, and GRPO - the base read leniently."""
    rows = in_order(sweep.values(axis))

    def mean(of_row: Callable[[str], Scores]) -> Scores:
        found = [of_row(row) for row in rows]
        return Scores(np.mean([f.value for f in found], axis=0), np.mean([f.resampled for f in found], axis=0))

    def runs(row: str, method: str) -> list[PublishedRun]:
        return sweep.seeds(**{axis: row, "algorithm": method})

    return {
        "GRPO": mean(lambda row: sweep.accuracy(runs(row, "grpo"))),
        "SFT": mean(lambda row: sweep.accuracy(runs(row, "sft"))),
        "GRPO - SFT": mean(lambda row: sweep.difference(runs(row, "sft"), runs(row, "grpo"))),
        "GRPO - base, read leniently": mean(lambda row: sweep.gain(runs(row, "grpo"))),
    }


def false_claims(sweep: Sweep, runs: Sequence[PublishedRun]) -> Estimate:
    """Share of false claims in the rationales of ``runs`` minus that of the base, over images, with pooled seeds."""
    by_id = {record.id: record for record in sweep.records}

    def counts(condition: str) -> FloatArray:
        """False and all claims of each image, [K, 2]."""
        sums = np.zeros((len(by_id), 2))
        for run in runs:
            for i, r in enumerate(check_rationales(sweep.predictions[run.name][condition], by_id)):
                sums[i] += (sum(not claim.true for claim in r.claims), len(r.claims))
        return sums_by_image([record.image_key for record in sweep.records], *sums.T)

    both = np.concatenate([counts(Condition.TRAINED), counts(Condition.BASE)], axis=1)
    return bootstrap_statistic(both, lambda sums: sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3])
