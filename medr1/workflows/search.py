"""A hyperparameter search (``sweep.trials``): runs through Hydra's launcher, chosen one round after another."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig

from medr1.config.settings import greater_is_better
from medr1.errors import ConfigError
from medr1.runs.search import Cell, Trial, candidates, cell_of, read_trials
from medr1.runs.sweep import Job, Manifest, State, SweepDirectory
from medr1.workflows.sweep_job import run_job, watch_remote_runs
from medr1.workflows.sweep_runs import ComposedRun, Swept, axis, compose


class Search:
    """A search in its directory: which runs come next.

    Each cell of the tables (a row and an algorithm) has trials of its own. A round has for each of them its unfinished
    trials, at most ``trials_at_once``, or so many new ones.
    """

    def __init__(
        self, config: DictConfig, swept: Swept, directory: SweepDirectory, cells: Mapping[Cell, list[dict[str, str]]]
    ) -> None:
        """``cells``: for each cell the overrides of its runs, without the searched ones, of each seed."""
        self.config, self.swept, self.directory, self.cells = config, swept, directory, cells
        self.space = {axis(key): of for key, of in swept.space.items()}
        self.trials, self.at_once = int(config.sweep.trials), int(config.sweep.trials_at_once)
        self.launched: set[str] = set()
        self._reported: set[tuple[Cell, int]] = set()

    def next_round(self) -> list[list[str]]:
        """The overrides of the next runs; none if the search has ended.

        Raises:
            DataError: a finished run without the metric.
        """
        manifest = self.directory.read()
        trials = read_trials(self.directory, manifest, manifest.wanted)
        states = self.directory.states(manifest.wanted)
        self._report(trials, manifest.select)
        if self.config.sweep.stop_on_failure and State.FAILED in states.values():
            return []
        jobs: list[Job] = []
        for cell in self.cells:
            own = trials.setdefault(cell, [])
            unfinished = [left for trial in own if (left := self._left(trial, states))][: self.at_once]
            jobs += [manifest.jobs[name] for left in unfinished for name in left]
            if not unfinished:
                jobs += self._new_trials(cell, own, manifest)
        manifest.jobs |= {job.name: job for job in jobs}
        manifest.wanted = list(dict.fromkeys([*manifest.wanted, *(job.name for job in jobs)]))
        self.directory.add(manifest, retries=False)
        self.launched |= {job.name for job in jobs}
        watch_remote_runs(self.config.hydra.launcher, self.directory, [job.name for job in jobs])
        return [list(job.overrides) for job in jobs]

    def _left(self, trial: Trial, states: Mapping[str, State]) -> list[str]:
        """The runs of a trial that this command still has to start."""
        ended = (State.FINISHED, State.FAILED)
        return [name for name in trial.runs.values() if states[name] not in ended and name not in self.launched]

    def _new_trials(self, cell: Cell, trials: list[Trial], manifest: Manifest) -> Iterator[Job]:
        """The runs of the next trials of a cell, which are added to ``trials``."""
        for _ in range(min(self.at_once, self.trials - len(trials))):
            if not (jobs := self._choose(cell, trials, manifest)):
                return
            settings = {key: jobs[0].axes[key] for key in self.space}
            trials.append(Trial(settings, {job.axes["seed"]: job.name for job in jobs}, State.WAITING, None))
            print(f"{_title(cell, len(trials))}: {_text(settings)}", flush=True)
            yield from jobs

    def _choose(self, cell: Cell, trials: Sequence[Trial], manifest: Manifest) -> list[Job]:
        """The runs of the next trial. None if there are no other settings that can be composed."""
        for settings in candidates(self.space, trials, manifest.select):
            try:
                return self.compose(cell, settings)
            except ConfigError as error:
                print(f"{_title(cell, len(trials) + 1)}: other settings than {error}", file=sys.stderr)
        print(f"{_title(cell, len(trials) + 1)}: no other settings are possible; the search ends", file=sys.stderr)
        return []

    def compose(self, cell: Cell, settings: Mapping[str, str]) -> list[Job]:
        """The runs of a trial, one for each seed.

        Raises:
            ConfigError: the settings contradict each other; names them.
        """
        searched = {key: settings[axis(key)] for key in self.swept.space}
        varied = self.swept.varied
        return [compose(self.config, {**chosen, **searched}, varied).job() for chosen in self.cells[cell]]

    def _report(self, trials: Mapping[Cell, Sequence[Trial]], metric: str) -> None:
        """Prints the value of each trial that has ended since the last round."""
        sign = 1 if greater_is_better(metric) else -1
        for cell, own in trials.items():
            ended = {number: trial.value for number, trial in enumerate(own, 1) if trial.value is not None}
            if not ended:
                continue
            best = max(ended, key=lambda number: sign * ended[number])
            for number in (number for number in ended if (cell, number) not in self._reported):
                self._reported.add((cell, number))
                print(
                    f"{_title(cell, number)}: {metric} {ended[number]:.4f}; best {ended[best]:.4f} in trial {best}",
                    flush=True,
                )


def begin_search(
    config: DictConfig, swept: Swept, probes: Sequence[ComposedRun], directory: SweepDirectory, manifest: Manifest
) -> Search:
    """A search with the trials of earlier commands, and its manifest.

    Raises:
        ConfigError: a setting of an earlier trial cannot be composed any more.
    """
    manifest.searched = {axis(key): of.text for key, of in swept.space.items()}
    cells: dict[Cell, list[dict[str, str]]] = {}
    for run in probes:
        of_cell = cells.setdefault(cell_of(run.job().axes, manifest.searched), [])
        chosen = {key: value for key, value in run.chosen.items() if key not in swept.space}
        of_cell += [chosen] if chosen not in of_cell else []
    search = Search(config, swept, directory, cells)
    jobs: list[Job] = []
    done = 0
    if directory.manifest_file.is_file():
        before = directory.read()
        before.searched, before.select = manifest.searched, manifest.select
        trials = read_trials(directory, before, before.jobs)
        done = max((len(of_cell) for of_cell in trials.values()), default=0)
        for cell in cells:
            jobs += [job for t in trials.get(cell, [])[: search.trials] for job in search.compose(cell, t.settings)]
    manifest.jobs = {job.name: job for job in jobs}
    manifest.wanted = list(manifest.jobs)
    manifest.planned = search.trials * sum(map(len, cells.values()))
    directory.add(manifest)
    finished = list(directory.states(manifest.wanted).values()).count(State.FINISHED)
    print(f"search in {directory.path}: sweep.trials={search.trials}, {manifest.planned} runs, {finished} finished")
    if done > search.trials:
        print(f"{done} trials were begun by earlier commands; the report has all that are finished, none is added")
    return search


def run_search(config: DictConfig, search: Search) -> None:
    """Runs the rounds of a search, each through the launcher, as Hydra's sweeper does with the runs of a sweep."""
    context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=run_job, config=config)
    started = 0
    while runs := search.next_round():
        for result in launcher.launch(runs, initial_job_idx=started):
            _ = result.return_value  # raises the error of a run that could not be started
        started += len(runs)


def _title(cell: Cell, number: int) -> str:
    return " ".join([*(value for _, value in cell), f"trial {number}"])


def _text(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())
