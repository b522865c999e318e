"""The trials of a hyperparameter search: read from the files of its runs, and the next one by Optuna's TPE sampler.

Nothing is stored but the manifest of the sweep and the runs themselves. What is asked next follows from the trials so
far and their number alone, so that a search that was killed goes on as if it had not been.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from medr1.config.search_space import Choice, Interval, Range, size
from medr1.config.settings import greater_is_better
from medr1.runs.selection import validation_value
from medr1.runs.sweep import Manifest, State, SweepDirectory

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

_LISTED = 10_000  # a space with at most so many different settings is listed
_DRAWS = 100  # from a larger one, until one is new and possible

Cell = tuple[tuple[str, str], ...]  # what has a search of its own: the values of rows, algorithm and other axes


@dataclass(frozen=True, slots=True)
class Trial:
    """One choice of the searched settings.

    ``settings``: the values by axis. ``runs``: names by seed. ``state``: finished if all runs are, else that of one
    that is not. ``value``: mean of the metric over the runs if all are finished, else None.
    """

    settings: Mapping[str, str]
    runs: Mapping[str, str]
    state: State
    value: float | None


def read_trials(directory: SweepDirectory, manifest: Manifest, names: Iterable[str]) -> dict[Cell, list[Trial]]:
    """The trials that the named runs of a search belong to, in the order in which they were chosen.

    Raises:
        DataError: a finished run without the metric.
    """
    found: dict[Cell, dict[Cell, dict[str, str]]] = {}
    for job in (manifest.jobs[name] for name in names):
        settings = tuple((axis, job.axes[axis]) for axis in manifest.searched)
        trials = found.setdefault(cell_of(job.axes, manifest.searched), {})
        trials.setdefault(settings, {})[job.axes["seed"]] = job.name
    return {
        cell: [_read_trial(directory, dict(settings), runs, manifest.select) for settings, runs in trials.items()]
        for cell, trials in found.items()
    }


def cell_of(axes: Mapping[str, str], searched: Container[str]) -> Cell:
    return tuple((axis, value) for axis, value in axes.items() if axis != "seed" and axis not in searched)


def _read_trial(directory: SweepDirectory, settings: dict[str, str], runs: dict[str, str], metric: str) -> Trial:
    states = directory.states(runs.values())
    state = next((state for state in states.values() if state != State.FINISHED), State.FINISHED)
    is_finished = state == State.FINISHED
    value = fmean(validation_value(directory.run(name), metric) for name in runs.values()) if is_finished else None
    return Trial(settings, runs, state, value)


def candidates(space: Mapping[str, Range], trials: Sequence[Trial], metric: str) -> Iterator[dict[str, str]]:
    """Settings for the next trial, none of which has been tried, the best guess first.

    The first is that of Optuna's TPE sampler, which has the values of the finished trials; trials that are not finished
    and have not failed count as running. If it has been tried, or cannot be composed, one of the others is taken, which
    are drawn at random; of a small space all that are left.
    """
    from optuna.samplers import RandomSampler, TPESampler

    tried = {tuple(trial.settings.values()) for trial in trials}
    number = len(trials)
    others: Iterator[dict[str, str]]
    if size(space) <= _LISTED:
        others = _untried(space, tried, number)
    else:
        samplers = (RandomSampler(seed=number + (draw << 16)) for draw in range(1, _DRAWS))
        others = (_ask(space, trials, metric, sampler) for sampler in samplers)
    for settings in itertools.chain([_ask(space, trials, metric, TPESampler(seed=number))], others):
        key = tuple(settings.values())
        if key not in tried:
            tried.add(key)
            yield settings


def _untried(space: Mapping[str, Range], tried: set[tuple[str, ...]], seed: int) -> Iterator[dict[str, str]]:
    """All settings of a finite space that are left, in random order."""
    values = (of.values if isinstance(of, Choice) else range(int(of.low), int(of.high) + 1) for of in space.values())
    left = [own for own in itertools.product(*([str(v) for v in of] for of in values)) if own not in tried]
    random.Random(seed).shuffle(left)
    yield from (dict(zip(space, own, strict=True)) for own in left)


def _ask(space: Mapping[str, Range], trials: Sequence[Trial], metric: str, sampler: BaseSampler) -> dict[str, str]:
    """The settings that a sampler chooses after these trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if greater_is_better(metric) else "minimize", sampler=sampler)
    distributions = {axis: _distribution(of) for axis, of in space.items()}
    study.add_trials([_frozen(trial, space, distributions) for trial in trials])
    params = study.ask(distributions).params
    return {axis: _text(of, params[axis]) for axis, of in space.items()}


def _frozen(trial: Trial, space: Mapping[str, Range], distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    from optuna.trial import TrialState, create_trial

    state = TrialState.FAIL if trial.state == State.FAILED else TrialState.RUNNING
    has_value = trial.value is not None and not math.isnan(trial.value)
    if trial.state == State.FINISHED:
        state = TrialState.COMPLETE if has_value else TrialState.FAIL
    params = {axis: _param(of, trial.settings[axis]) for axis, of in space.items()}
    value = trial.value if state == TrialState.COMPLETE else None
    return create_trial(state=state, value=value, params=params, distributions=distributions)


def _distribution(of: Range) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(of, Interval):
        if of.is_int:
            return IntDistribution(int(of.low), int(of.high), log=of.is_log)
        return FloatDistribution(of.low, of.high, log=of.is_log)
    return IntDistribution(0, len(of.values) - 1) if of.is_ordered else CategoricalDistribution(of.values)


def _param(of: Range, text: str) -> int | float | str:
    if isinstance(of, Interval):
        return int(text) if of.is_int else float(text)
    return of.values.index(text) if of.is_ordered else text


def _text(of: Range, param: int | float | str) -> str:
    if isinstance(of, Interval):
        return of.to_text(float(param))
    return of.values[int(param)] if of.is_ordered else str(param)
