"""A multirun as Hydra runs it: all its runs are composed and checked first, and its report is written at the end."""

from __future__ import annotations

import copy
import itertools
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from medr1.config.naming import is_below, job_name, sweep_name
from medr1.config.paths import CHECKOUT
from medr1.config.schema import marked_keys
from medr1.config.settings import TrainConfig
from medr1.config.validate import check_validation_metric
from medr1.domain.records import AXES
from medr1.errors import USER_ERROR, ConfigError, Medr1Error
from medr1.runs.selection import chosen_axes
from medr1.runs.storage import storage_problem
from medr1.runs.sweep import Job, Manifest, State, SweepDirectory
from medr1.tracking.address import stored_run
from medr1.training.algorithms import ALGORITHMS
from medr1.workflows.components import check_environment, check_typed, checked, explain
from medr1.workflows.sweep_job import print_progress, quoted, run_environment

if TYPE_CHECKING:
    from medr1.tracking.tracker import Tracker

# Overrides of these groups, like those of unhashed settings, do not enter the name of the sweep's directory.
_UNNAMED_GROUPS = ("launcher", "hydra")

_open_trackers: list[Tracker] = []


def interrupted() -> None:
    """Ends the sweep's MLflow run as KILLED. Repeating the sweep's command opens it again."""
    for tracker in _open_trackers:
        tracker.end_run("KILLED")


@contextmanager
def _errors_end_the_command() -> Iterator[None]:
    """Hydra turns an error in a callback into a warning and continues; here the command ends."""
    try:
        yield
    except (Medr1Error, HydraException, OmegaConfBaseException) as error:
        message = str(error) if isinstance(error, Medr1Error) else explain(error, TrainConfig)
        print(f"error: {message}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except Exception as error:
        if problem := storage_problem(error):
            print(f"error: {problem}; then repeat the command, which continues the sweep", file=sys.stderr)
            sys.exit(USER_ERROR)
        traceback.print_exc()
        sys.exit(1)


class SweepCallback(Callback):
    """Called by Hydra at the start and end of every command of train.py."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints the plan of a single run, before Hydra creates a directory for the run."""
        if config.plan:
            with _errors_end_the_command():
                _print_plans([("", _without_hydra(config))])
            sys.exit(0)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Composes and checks all runs, names the sweep, starts its run in MLflow."""
        if config.plan:
            with _errors_end_the_command():
                runs = [(" ".join(overrides), cfg) for _, overrides, cfg, _ in _compose_runs(config, _parse(config)[0])]
                _print_plans(runs)
            sys.exit(0)
        if CHECKOUT:  # the workers of some launchers start in another folder, where a checkout cannot be imported
            paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
            os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        logging.getLogger("hydra").setLevel(logging.WARNING)  # the sweep prints which runs it starts
        with _errors_end_the_command():
            directory = create_sweep(config)
            _start_tracker(config, directory)
        if _on_other_machines(config.hydra.launcher) and str(config.tracking.uri).startswith("sqlite:"):
            print(
                "warning: several machines can damage a SQLite file on a network disk; use a server instead: "
                "tracking.uri=http://HOST:5000",
                file=sys.stderr,
            )
        if "submitit_folder" in config.hydra.launcher:  # what its jobs print is written to their own logs only
            states = directory.states(directory.read().wanted)
            threading.Thread(target=print_progress, args=(directory, states), daemon=True).start()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Writes the report of the finished runs. Exits with status 1 if a run is not finished."""
        directory = SweepDirectory(Path(config.hydra.sweep.dir))
        states = directory.states(directory.read().wanted)
        with _errors_end_the_command():
            from medr1.workflows.sweep_report import report_sweep

            report_sweep(directory.path)
        missing = [name for name, state in states.items() if state != State.FINISHED]
        for name in missing:
            print(f"{states[name].value}: {directory.run(name).log}", file=sys.stderr)
        if missing:
            print(f"{len(missing)} of {len(states)} runs are not finished; repeat the command", file=sys.stderr)
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
    _open_trackers.append(tracker)


def _print_plans(runs: Sequence[tuple[str, DictConfig]]) -> None:
    """Prints the plan of each run, given as (overrides, config).

    Raises:
        ConfigError: a run is misconfigured or cannot fit.
    """
    if any(cfg.resume is not None for _, cfg in runs):
        raise ConfigError("plan=true plans a new run; leave out resume=")
    planned = [(overrides, checked(cfg, TrainConfig)) for overrides, cfg in runs]
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


def _without_hydra(config: DictConfig) -> DictConfig:
    cfg = copy.deepcopy(config)
    with read_write(cfg), open_dict(cfg):
        cfg.pop("hydra", None)
    return cfg


def _parse(config: DictConfig) -> tuple[dict[str, list[str]], list[str]]:
    """The values of each override, and the keys that vary over the sweep.

    As in Hydra's own sweeper, the values of the sweep's file come first and those of the command line replace them.
    """
    params = OmegaConf.to_container(config.hydra.sweeper.get("params") or OmegaConf.create({}))
    assert isinstance(params, dict)
    values: dict[str, list[str]] = {}
    varied = [str(key) for key in params]
    texts = [f"{key!s}={value!s}" for key, value in params.items()] + list(config.hydra.overrides.task)
    for override in OverridesParser.create().parse_overrides(texts):
        key = override.get_key_element()
        if override.is_sweep_override():
            values[key] = [str(value) for value in override.sweep_string_iterator()]
            varied += [key] if key not in (*varied, "seed") else []
        else:
            values[key] = [str(override.get_value_element_as_str())]
    return values, varied


def _compose_runs(
    config: DictConfig, values: Mapping[str, list[str]]
) -> Iterator[tuple[dict[str, str], list[str], DictConfig, TrainConfig]]:
    """For each run: its value of each key, its overrides, its composed config, and that config as checked dataclasses.

    Raises:
        ConfigError: a run is misconfigured; names the run's overrides.
    """
    loader = GlobalHydra.instance().config_loader()
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        overrides = [f"{key}={value}" for key, value in chosen.items()]
        cfg = _without_hydra(loader.load_sweep_config(config, overrides))
        try:
            settings = checked(cfg, TrainConfig)
            check_environment(settings, run_environment(config.hydra.launcher))
        except ConfigError as error:
            raise ConfigError(f"{' '.join(overrides)}: {error}") from error
        yield chosen, overrides, cfg, settings


def create_sweep(config: DictConfig) -> SweepDirectory:
    """Writes the manifest of the sweep that a multirun config asks for, and tells Hydra its directory.

    Raises:
        ConfigError: a run of it is misconfigured; names the run's overrides.
    """
    values, varied = _parse(config)
    title = config.sweep.name or "-".join(["multirun", *map(_axis, varied)])
    runs = list(_compose_runs(config, values))
    of_file = config.hydra.sweeper.get("params") or {}
    typed = [key for key in values if key not in of_file and not is_below(key, ("sweep",))]
    check_typed([settings for *_, settings in runs], typed)
    unhashed = {key for *_, settings in runs for key in marked_keys(settings, "is_hashed", False)}
    places = (*_UNNAMED_GROUPS, *unhashed)
    unnamed = [k for k, v in values.items() if v == [title] or any(k == p or k.startswith(f"{p}.") for p in places)]
    fixed = [f"{k}={v[0]}" for k, v in values.items() if k not in (*varied, *unnamed, "seed")]
    directory = SweepDirectory(Path(config.output_dir).absolute() / sweep_name(title, fixed))
    # The seed is always an axis, so that a later command can add seeds to the same tables.
    jobs = [
        Job(job_name(cfg), _axes(cfg, varied, chosen) | {"seed": str(cfg.seed)}, overrides)
        for chosen, overrides, cfg, _ in runs
    ]
    by_name = {job.name: job for job in jobs}
    for job in jobs:
        other = by_name[job.name]
        if other.overrides != job.overrides:
            raise ConfigError(
                f"{' '.join(job.overrides)} and {' '.join(other.overrides)} are the same run, because they differ "
                "only in settings that cannot change a prediction; start a sweep for each, with its own output_dir"
            )
    rows = _axis(config.sweep.rows or _rows(varied, is_selected=config.sweep.select is not None))
    if config.sweep.chain is not None:
        jobs = _chained(jobs, _axis(config.sweep.chain))
        by_name = {job.name: job for job in jobs}
    if config.sweep.select is not None:
        _check_select(str(config.sweep.select), [settings for *_, settings in runs], jobs[0].axes, rows)
    columns = "question_type" if rows == "question_type" and not config.sweep.name else str(config.sweep.columns)
    command, select = list(config.hydra.overrides.task), config.sweep.select or ""
    directory.add(Manifest(title, rows, columns, command, list(by_name), by_name, select))
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = str(directory.path)
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(directory.path)}")
    states = list(directory.states(by_name).values())
    finished, interrupted_runs = states.count(State.FINISHED), states.count(State.INTERRUPTED)
    print(f"{len(jobs)} runs in {directory.path}: {finished} finished, {interrupted_runs} to be continued")
    return directory


def _rows(varied: Sequence[str], *, is_selected: bool) -> str:
    """The key that makes the rows of the tables: the first one that varies, except for the algorithm.

    If the sweep selects among settings, the first one that is not among these, modality or question type.
    """
    own = [key for key in varied if key != "algorithm" and (not is_selected or _axis(key) in AXES)]
    return next(iter(own), "algorithm" if "algorithm" in varied else "seed")


def _chained(jobs: Sequence[Job], axis: str) -> list[Job]:
    """The runs, each with the run that it continues: that with the value before its own on the axis ``axis``.

    Raises:
        ConfigError: the sweep does not vary the axis.
    """
    stages = list(dict.fromkeys(job.axes.get(axis, "") for job in jobs))
    if len(stages) < 2:
        raise ConfigError(f"sweep.chain={axis} needs several values of {axis}, which are trained one after another")
    others = {(*sorted(job.axes.items()),): job.name for job in jobs}
    chained = []
    for job in jobs:
        done = stages[: stages.index(job.axes[axis])]
        before = others[(*sorted({**job.axes, axis: done[-1]}.items()),)] if done else ""
        axes = {**job.axes, axis: "_then_".join([*done, job.axes[axis]])}
        chained.append(replace(job, axes=axes, continues=before))
    return chained


def _check_select(metric: str, runs: Sequence[TrainConfig], axes: Mapping[str, str], rows: str) -> None:
    """Checks that the report can choose among settings by a validation metric.

    Raises:
        ConfigError: a run without the metric, or nothing to choose from.
    """
    for settings in runs:
        if not ALGORITHMS[settings.algorithm.kind].trains:
            name = settings.algorithm.name
            raise ConfigError(f"sweep.select={metric}: algorithm={name} trains nothing to validate; leave it out")
        check_validation_metric(settings, "sweep.select", metric)
    if not chosen_axes(axes, rows):
        raise ConfigError(
            f"sweep.select={metric} has nothing to choose from: give several values of a setting other than {rows}, "
            "algorithm and seed"
        )


def _axis(key: str) -> str:
    """The axis of the tables that a key varies: ``modality.name`` is that of ``modality``."""
    return next((axis for axis in AXES if key == f"{axis}.name"), key)


def _axes(cfg: DictConfig, varied: Sequence[str], chosen: Mapping[str, str]) -> dict[str, str]:
    """The values of a run on the axes of the tables. Those of the data have no quotes, which the command may need."""
    return {_axis(key): str(cfg[_axis(key)].name) if _axis(key) in AXES else chosen[key] for key in varied}


def _on_other_machines(launcher: DictConfig) -> bool:
    return "partition" in launcher or OmegaConf.select(launcher, "ray.init.address") is not None
