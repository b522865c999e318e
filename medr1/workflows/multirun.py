"""A multirun as Hydra runs it: all its runs are composed and checked first, and its report is written at the end."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import fields, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from medr1.atomic_write import read_json
from medr1.config.checkpoints import fingerprint
from medr1.config.naming import is_below, metric_part, sweep_name
from medr1.config.override_text import override_text
from medr1.config.paths import CHECKOUT
from medr1.config.schema import marked_keys, values_before
from medr1.config.settings import TrainConfig
from medr1.config.validate import check_validation_metric
from medr1.data.sources.phantoms import PhantomsConfig
from medr1.errors import ConfigError
from medr1.runs.run_directory import RunDirectory, starting_weights
from medr1.runs.selection import chosen_axes
from medr1.runs.sweep import Job, Manifest, State, SweepDirectory
from medr1.tracking.address import stored_run
from medr1.training.algorithms import ALGORITHMS
from medr1.workflows.components import check_typed, checked
from medr1.workflows.model_kinds import MODEL_KINDS
from medr1.workflows.search import Search, begin_search, run_search
from medr1.workflows.sweep_inputs import check_inputs
from medr1.workflows.sweep_job import watch_remote_runs
from medr1.workflows.sweep_runs import (
    ComposedRun,
    Swept,
    axis,
    compose_all,
    errors_end_the_command,
    parse,
    without_hydra,
)

if TYPE_CHECKING:
    from medr1.tracking.tracker import Status, Tracker

# Overrides of these groups, like those of unhashed settings, do not enter the name of the sweep's directory.
_UNNAMED_GROUPS = ("launcher", "hydra")

_open_trackers: list[Tracker] = []


def interrupted() -> None:
    """Ends the sweep's MLflow run as KILLED. Repeating the sweep's command opens it again."""
    _end_trackers("KILLED")


def _end_trackers(status: Status) -> None:
    for tracker in _open_trackers:
        tracker.end_run(status)


class SweepCallback(Callback):
    """Called by Hydra at the start and end of every command of train.py."""

    _wanted: list[str] | None = None  # the runs of this command, unless it is a search, which finds them one by one

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints the plan of a single run, before Hydra creates a directory for the run."""
        if config.plan:
            with errors_end_the_command():
                typed = [override.lstrip("+").partition("=")[0] for override in config.hydra.overrides.task]
                _print_plans([("", without_hydra(config))], typed)
            sys.exit(0)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Composes and checks all runs, names the sweep, starts its run in MLflow. Runs a search to its end."""
        if config.plan:
            with errors_end_the_command():
                swept = parse(config)
                runs = compose_all(config, swept)
                _print_plans([(" ".join(run.overrides), run.cfg) for run in runs], _typed(config, swept))
            sys.exit(0)
        if CHECKOUT:  # the workers of some launchers start in another folder, where a checkout cannot be imported
            paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
            os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        logging.getLogger("hydra").setLevel(logging.WARNING)  # the sweep prints which runs it starts
        with errors_end_the_command():
            directory, search = create_sweep(config)
            _start_tracker(config, directory)
        self._wanted = None if search else directory.read().wanted
        if _on_other_machines(config.hydra.launcher) and str(config.tracking.uri).startswith("sqlite:"):
            print(
                "warning: several machines can damage a SQLite file on a network disk; use a server instead: "
                "tracking.uri=http://HOST:5000",
                file=sys.stderr,
            )
        if search is None:
            watch_remote_runs(config.hydra.launcher, directory, directory.read().wanted)
            return
        with errors_end_the_command():
            run_search(config, search)
        self.on_multirun_end(config)
        sys.exit(0)  # Hydra's sweeper, which would begin now, knows its runs before it starts

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Writes the report of the finished runs. Exits with status 1 if a run is not finished."""
        directory = SweepDirectory(Path(config.hydra.sweep.dir))
        manifest = directory.read()
        # Another command may have begun in the same directory, which also becomes its latest one.
        states = directory.states(self._wanted or manifest.wanted)
        try:
            with errors_end_the_command():
                from medr1.workflows.sweep_report import report_sweep

                report_sweep(directory.path, str(config.tracking.uri), tracks=bool(config.tracking.enabled))
        except BaseException:
            _end_trackers("FAILED")
            raise
        missing = [name for name, state in states.items() if state != State.FINISHED]
        for name in missing:
            print(f"{states[name].value}: {directory.run(name).log}", file=sys.stderr)
        if missing:
            print(f"{len(missing)} of {len(states)} runs are not finished; repeat the command", file=sys.stderr)
        if self._wanted is None and len(states) < manifest.total:
            print(f"the search has ended after {len(states)} of {manifest.total} runs", file=sys.stderr)
        if missing or (self._wanted is None and len(states) < manifest.total):
            sys.exit(1)


def _start_tracker(config: DictConfig, directory: SweepDirectory) -> None:
    if not config.tracking.enabled:
        return
    from medr1.tracking.tracker import Tracker

    before, manifest = stored_run(directory.path), directory.read()
    tracker = Tracker.start(
        str(config.tracking.uri),
        str(config.tracking.experiment),
        directory.path.name,
        directory.path,
        tags={"sweep": manifest.title},
        run_id=before.run_id if before else None,
    )
    tracker.log_params({"rows": manifest.rows, "columns": manifest.columns})
    tracker.log_params({metric_part(key.lstrip("+")): text for key, text in manifest.searched.items()})
    _open_trackers.append(tracker)


def _print_plans(runs: Sequence[tuple[str, DictConfig]], typed: Sequence[str]) -> None:
    """Prints the plan of each run, given as (overrides, config). ``typed``: the keys of the command's overrides.

    Raises:
        ConfigError: a run is misconfigured or cannot fit.
    """
    if any(cfg.resume is not None for _, cfg in runs):
        raise ConfigError("plan=true plans a new run; leave out resume=")
    planned = [(overrides, checked(cfg, TrainConfig)) for overrides, cfg in runs]
    check_typed([settings for _, settings in planned], typed)
    from medr1.workflows.plan import plan

    refused: list[str] = []
    for number, (overrides, settings) in enumerate(planned, 1):
        if len(runs) > 1:
            print(f"\n[{number}/{len(runs)}] {overrides}", flush=True)
        try:
            plan(settings)
        except ConfigError as error:
            if len(runs) == 1:
                raise
            print(f"error: {error}", flush=True)
            refused.append(overrides)
    if refused:
        raise ConfigError(f"{len(refused)} of {len(runs)} runs cannot fit: " + "; ".join(refused))


def _typed(config: DictConfig, swept: Swept) -> list[str]:
    """The keys that the command of a sweep sets, without those of its file."""
    of_file = config.hydra.sweeper.get("params") or {}
    return [key for key in (*swept.values, *swept.space) if key not in of_file and not is_below(key, ("sweep",))]


def create_sweep(config: DictConfig) -> tuple[SweepDirectory, Search | None]:
    """Writes the manifest of the sweep or the search that a multirun config asks for, and tells Hydra its directory.

    Raises:
        ConfigError: a run of it is misconfigured; names the run's overrides.
    """
    for key in ("hydra.sweep.dir", "hydra.sweep.subdir"):
        if any(override.lstrip("+").startswith(f"{key}=") for override in config.hydra.overrides.hydra):
            raise ConfigError(
                f"{key}: the directories of a sweep are OUTPUT_DIR/SWEEP/RUN, with names of their settings; use "
                "output_dir=DIR, sweep.name=NAME"
            )
    if config.resume is not None:
        raise ConfigError(
            f"resume={config.resume} continues one run, without -m; a sweep goes on when its command is repeated"
        )
    swept = parse(config)
    values, varied, rows = swept.values, swept.varied, swept.rows
    runs = compose_all(config, swept)
    check_typed([run.settings for run in runs], _typed(config, swept))
    title = _title(config, swept)
    unhashed = {key for run in runs for key in marked_keys(run.settings, "is_hashed", False)}
    places = (*_UNNAMED_GROUPS, *unhashed)
    name = [config.sweep.name]
    unnamed = [k for k, v in values.items() if v == name or any(k == p or k.startswith(f"{p}.") for p in places)]
    before = {key: [str(value).lower()] for key, value in values_before(runs[0].settings)}
    unnamed += [key for key, value in values.items() if before.get(key) == value]
    fixed = [f"{k}={v[0]}" for k, v in values.items() if k not in (*varied, *unnamed, "seed")]
    ranges = [of.text for of in swept.space.values()]
    directory = SweepDirectory(Path(config.output_dir).absolute() / sweep_name(title, [*ranges, *fixed]))
    jobs = [run.job() for run in runs]
    last = {job.name: run for run, job in zip(runs, jobs, strict=True)}
    for run, job in zip(runs, jobs, strict=True):
        other = last[job.name]
        if other.overrides != run.overrides:
            raise ConfigError(
                f"{run.name} and {other.name} are the same run, because they differ "
                "only in settings that cannot change a prediction; start a sweep for each, with its own output_dir"
            )
    if config.sweep.chain is not None:
        stages = next((v for key, v in values.items() if axis(key) == axis(config.sweep.chain)), [])
        if twice := next((stage for stage in stages if stages.count(stage) > 1), None):
            raise ConfigError(
                f"sweep.chain={config.sweep.chain}: {twice} occurs twice; each stage needs other settings"
            )
        jobs = _chained(jobs, axis(config.sweep.chain))
    if config.sweep.select is not None:
        _check_select(str(config.sweep.select), runs, jobs, rows)
    columns = "question_type" if rows == "question_type" and not config.sweep.name else str(config.sweep.columns)
    _check_one_table(runs, columns)
    by_name = {job.name: job for job in jobs}
    _check_earlier_runs(directory, jobs, last)
    command, select = list(config.hydra.overrides.task), config.sweep.select or ""
    manifest = Manifest(title, rows, columns, command, list(by_name), by_name, select, folder=os.getcwd())
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = str(directory.path)
        config.hydra.overrides.hydra.append(override_text("hydra.sweep.dir", directory.path))
    if swept.space:
        return directory, begin_search(config, swept, runs, directory, manifest)
    directory.add(manifest)
    states = list(directory.states(by_name).values())
    finished, interrupted_runs = states.count(State.FINISHED), states.count(State.INTERRUPTED)
    print(f"{len(jobs)} runs in {directory.path}: {finished} finished, {interrupted_runs} to be continued")
    return directory, None


def _check_earlier_runs(directory: SweepDirectory, jobs: Sequence[Job], runs: Mapping[str, ComposedRun]) -> None:
    """Checks that runs of earlier commands in the directory of a sweep can stand in one table with those of this one.

    Raises:
        ConfigError: they vary other settings, began with other weights under the same ``model.path``, or stand on the
            same place of the tables as a new run and differ from it in another setting.
    """
    if not directory.manifest_file.is_file():
        return
    new, advice = {*jobs[0].axes} - {"seed"}, "give this command a sweep of its own: output_dir=DIR or sweep.name=NAME"
    earlier, named = directory.read().jobs, {_place(job.axes): job.name for job in jobs}
    now_continues = {job.name: job.continues for job in jobs}
    for name, before in earlier.items():
        if before.continues != now_continues.get(name, before.continues):
            of_old, of_new = (
                f"continues {run}" if run else "begins a chain" for run in (before.continues, now_continues[name])
            )
            raise ConfigError(f"{directory.path} holds the run {name}, which {of_old}, and here it {of_new}; {advice}")
    finished = [name for name, state in directory.states(earlier).items() if state == State.FINISHED]
    if finished:
        _check_added_settings(directory.run(finished[0]), jobs[0], runs[jobs[0].name].settings, advice)
    for name, before in earlier.items():
        same = named.get(_place(before.axes), name)
        if same != name and name in finished:
            raise ConfigError(
                f"{directory.path} holds the finished run {name}, which has the values of {same} "
                f"({', '.join(f'{axis}={value}' for axis, value in before.axes.items())}) and other settings, such as "
                f"defaults that have changed since; {advice}"
            )
        if (old := {*before.axes} - {"seed"}) != new:
            raise ConfigError(
                f"{directory.path} holds runs that vary {', '.join(sorted(old)) or 'nothing'}, such as {name}, and "
                f"those of this command vary {', '.join(sorted(new)) or 'nothing'}; {advice}"
            )
    settings = {job.name: runs[job.name].settings for job in jobs}
    # Those of other commands stand in the same tables, and the values of a search come from earlier trials.
    for name in (name for name in finished if name not in settings):
        stored = directory.run(name).stored_config(TrainConfig)
        settings[name] = _where_they_are_now(stored, runs[jobs[0].name].settings, earlier[name].axes)
    check_inputs([(directory.run(name), settings[name]) for name in finished], advice)
    continues = {name: before.continues for name, before in earlier.items()} | now_continues
    now: dict[str, str | None] = {}
    for name, of_run in settings.items():
        environment, model = directory.run(name).environment, of_run.model
        if continues[name] or not environment.is_file() or not MODEL_KINDS[model.kind].is_trainable:
            continue
        before = read_json(environment).get("model_fingerprint")
        if model.path not in now:
            now[model.path] = fingerprint(*starting_weights(model.path))
        if None not in (before, now[model.path]) and before != now[model.path]:
            raise ConfigError(
                f"{directory.run(name).path} began with other weights than those that are in model.path="
                f"{model.path} now; restore them, or {advice}"
            )


def _where_they_are_now(stored: TrainConfig, now: TrainConfig, axes: Container[str]) -> TrainConfig:
    """The settings of an earlier run with this command's places of data and base model, which may have moved."""
    for key in [*marked_keys(stored, "may_change")]:
        group, _, name = key.rpartition(".")
        of_stored, of_now = (getattr(of, group, None) for of in (stored, now))
        if group in ("data", "model") and key not in axes and hasattr(of_now, name):
            setattr(of_stored, name, getattr(of_now, name))
    return stored


def _place(axes: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The place of a run in the tables of its sweep."""
    return (*sorted(axes.items()),)


def _check_added_settings(run: RunDirectory, job: Job, settings: TrainConfig, advice: str) -> None:
    """Checks that an earlier run has the same values of settings that were added to medr1 since it was made.

    Raises:
        ConfigError: names the setting, both values, and the override that continues the sweep.
    """
    earlier = run.stored_config(TrainConfig)
    both = {key for key, _ in values_before(earlier)} & {key for key, _ in values_before(settings)}
    for key in sorted(both - job.axes.keys()):
        old, new = (str(attrgetter(key)(of)).lower() for of in (earlier, settings))
        if old != new:
            raise ConfigError(
                f"{run.path.parent} holds runs with {key}={old}, such as {run.path.name}, and those of this command "
                f"have {new}; add {key}={old}, or {advice}"
            )


def _title(config: DictConfig, swept: Swept) -> str:
    keys = [axis(key) for key in (swept.space if config.sweep.name else swept.varied)]
    if swept.space:
        return "-".join(["search", *filter(None, [config.sweep.name]), *keys])
    return config.sweep.name or "-".join(["multirun", *keys])


def _chained(jobs: Sequence[Job], axis: str) -> list[Job]:
    """The runs, each with the run that it continues: that with the value before its own on the axis ``axis``.

    Raises:
        ConfigError: the sweep does not vary the axis.
    """
    stages = list(dict.fromkeys(job.axes.get(axis, "") for job in jobs))
    if len(stages) < 2:
        raise ConfigError(f"sweep.chain={axis} needs several values of {axis}, which are trained one after another")
    others = {_place(job.axes): job.name for job in jobs}
    chained = []
    for job in jobs:
        done = stages[: stages.index(job.axes[axis])]
        before = others[_place({**job.axes, axis: done[-1]})] if done else ""
        axes = {**job.axes, axis: "_then_".join([*done, job.axes[axis]])}
        chained.append(replace(job, axes=axes, continues=before))
    return chained


def _check_one_table(runs: Sequence[ComposedRun], columns: str) -> None:
    """Checks that the runs are tested on the same records, as far as their settings tell, and that these have columns.

    Raises:
        ConfigError: values of a setting with which test records differ, or columns that the records do not have.
    """
    if columns == "scanner":
        for run in (run for run in runs if not isinstance(run.settings.data, PhantomsConfig)):
            raise ConfigError(
                f"sweep.columns=scanner: {run.name} has data={run.settings.data.name}, and only phantoms have "
                "scanners; use sweep.columns=modality"
            )
    first = _test_settings(runs[0].settings)
    for run in runs[1:]:
        own = _test_settings(run.settings)
        if different := [key for key in first.keys() & own.keys() if own[key] != first[key]]:
            key = different[0]
            raise ConfigError(
                f"{key}={first[key]} and {key}={own[key]} have other test records, and the runs of a sweep stand in "
                "one table; give each value a sweep of its own"
            )


def _test_settings(cfg: TrainConfig) -> dict[str, Any]:
    """The settings that give other test records with each value, by key."""
    data = {f"data.{key}": attrgetter(key)(cfg.data) for key in marked_keys(cfg.data, "other_test")}
    return {**data, "evaluation.limit": cfg.evaluation.limit}


def _check_select(metric: str, runs: Sequence[ComposedRun], jobs: Sequence[Job], rows: str) -> None:
    """Checks that the report can choose among settings by a validation metric.

    Raises:
        ConfigError: a run without the metric, nothing to choose from, or options that have other records.
    """
    for settings in (run.settings for run in runs):
        if not ALGORITHMS[settings.algorithm.kind].trains:
            name = settings.algorithm.name
            raise ConfigError(f"sweep.select={metric}: algorithm={name} trains nothing to validate; leave it out")
        check_validation_metric(settings, "sweep.select", metric)
    among = chosen_axes(jobs[0].axes, rows)
    if not among:
        raise ConfigError(
            f"sweep.select={metric} has nothing to choose from: give several values of a setting other than {rows}, "
            "algorithm and seed"
        )
    first: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for run, job in zip(runs, jobs, strict=True):
        own = _record_settings(run.settings)
        others = first.setdefault(tuple(v for key, v in job.axes.items() if key not in among), own)
        if different := [key for key in own if own[key] != others.get(key)]:
            key = different[0]
            raise ConfigError(
                f"{run.name}: sweep.select={metric} compares settings on the same records, and {key}="
                f"{own[key]} in place of {others.get(key)} changes them; leave it out, or make it the rows of the "
                f"tables with sweep.rows"
            )


def _record_settings(cfg: TrainConfig) -> dict[str, Any]:
    """The settings by which validation and test records are chosen, by key."""
    same = {*marked_keys(cfg.data, "same_records"), *marked_keys(cfg.data, "is_hashed", False)}
    data = {f"data.{item.name}": getattr(cfg.data, item.name) for item in fields(cfg.data) if item.name not in same}
    limits = {f"evaluation.{name}": getattr(cfg.evaluation, name) for name in ("limit", "validation_limit")}
    return {"modality": cfg.modality.name, "question_type": cfg.question_type.name, **data, **limits}


def _on_other_machines(launcher: DictConfig) -> bool:
    return "partition" in launcher or OmegaConf.select(launcher, "ray.init.address") is not None
