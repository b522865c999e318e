"""Chooses among the settings of a sweep by a validation metric (``sweep.select``)."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from medr1.atomic_write import read_json
from medr1.config.settings import TrainConfig, greater_is_better
from medr1.errors import DataError
from medr1.runs.run_directory import RunDirectory


@dataclass(frozen=True, slots=True)
class Option:
    """Values of the settings among which is chosen, their runs (one for each seed), and the mean of their metric."""

    settings: Mapping[str, str]
    runs: Sequence[str]
    value: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The options for one cell: one value of the rows, one algorithm. ``chosen`` is the best of ``options``.

    ``incomplete``: options that were not compared, because a run of another option's seed is missing.
    """

    cell: Mapping[str, str]
    options: Sequence[Option]
    chosen: Option
    incomplete: Sequence[Option] = ()

    def has_compared(self, settings: Mapping[str, str]) -> bool:
        """Whether these settings are one of ``options``."""
        return any(option.settings == settings for option in self.options)


def chosen_axes(axes: Iterable[str], rows: str) -> list[str]:
    """The axes of a run among whose values is chosen: all but the rows of the tables, the algorithm and the seed."""
    return [axis for axis in axes if axis not in (rows, "algorithm", "seed")]


def choose(
    axes: Mapping[str, Mapping[str, str]],
    values: Mapping[str, float],
    rows: str,
    metric: str,
    searched: Container[str] = (),
) -> list[Choice]:
    """The best option for each row and algorithm, by the mean of ``values`` over seeds. The first one if several are.

    Only options with the same seeds are compared: those with the most. ``axes`` and ``values``: by run. ``searched``:
    the axes of a search, among whose values alone is chosen.
    """
    cells: dict[tuple[tuple[str, str], ...], dict[tuple[tuple[str, str], ...], list[str]]] = {}
    for run, of_run in axes.items():
        varied = [axis for axis in of_run if axis in searched] if searched else chosen_axes(of_run, rows)
        cell = tuple((axis, value) for axis, value in of_run.items() if axis not in (*varied, "seed"))
        option = tuple((axis, of_run[axis]) for axis in varied)
        cells.setdefault(cell, {}).setdefault(option, []).append(run)
    sign = 1 if greater_is_better(metric) else -1
    choices = []
    for cell, found in cells.items():
        seeds = {own: {axes[run].get("seed") for run in runs} for own, runs in found.items()}
        largest = max(seeds.values(), key=len)
        options = {own: Option(dict(own), runs, fmean(values[run] for run in runs)) for own, runs in found.items()}
        compared = [option for own, option in options.items() if seeds[own] == largest]
        incomplete = [option for own, option in options.items() if seeds[own] != largest]
        best = max(compared, key=lambda option: sign * option.value)
        choices.append(Choice(dict(cell), compared, best, incomplete))
    return choices


def validation_value(run: RunDirectory, metric: str) -> float:
    """The metric at the checkpoint that a finished run evaluates: its best one, or the last.

    Raises:
        DataError: the run has no such metric.
    """
    lines = map(json.loads, run.metrics.read_text(encoding="utf-8").splitlines()) if run.metrics.is_file() else ()
    curve = {int(line["step"]): float(line[metric]) for line in lines if metric in line}
    if not curve:
        raise DataError(f"sweep.select={metric}: {run.path} has no such metric in metrics.jsonl")
    is_best = run.stored_config(TrainConfig).trainer.load_best_model_at_end
    return curve[read_json(run.best)["step"] if is_best else max(curve)]
