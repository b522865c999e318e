"""The sweep as Hydra runs it: what is planned before the first run, each run as a process of its own, what is said at
the end.

A run of a sweep is the same command as a single run, in its own process tree: one that dies takes nothing with it,
distributed training starts as it always does, and any launcher (one after the other, joblib, submitit, ray) will do.
"""

from __future__ import annotations

import copy
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from medr1.config.messages import explain
from medr1.config.naming import job_name, sweep_name
from medr1.config.paths import PACKAGE
from medr1.config.settings import TrainConfig
from medr1.config.validate import check
from medr1.errors import USER_ERROR, ConfigError, Medr1Error
from medr1.runs.run_directory import write_json
from medr1.runs.sweep import Job, Manifest, State, SweepDirectory, cores, time_left
from medr1.tracking.address import stored_run

if TYPE_CHECKING:
    from medr1.tracking.tracker import Tracker

_TRAIN = PACKAGE.parent / "train.py"
# Overrides that say where and how, not what: they do not make another sweep.
_PLACE = ("sweep", "launcher", "output_dir", "tracking", "hydra")


_open_parents: list[Tracker] = []


def interrupted() -> None:
    """Closes the sweep's run in MLflow; the same command opens it again."""
    for parent in _open_parents:
        parent.finish("KILLED")


@contextmanager
def _loud() -> Iterator[None]:
    """Ends the command: Hydra would turn an error in a callback into a warning and go on."""
    try:
        yield
    except (Medr1Error, HydraException, OmegaConfBaseException) as error:
        message = str(error) if isinstance(error, Medr1Error) else explain(error, TrainConfig)
        print(f"error: {message}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


class SweepCallback(Callback):
    """Hydra calls it in every command; a single run passes by, unless it is only planned."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """A plan is made here, before Hydra makes a directory for the run."""
        if config.plan:
            with _loud():
                _say_plans([("", _without_hydra(config))])
            sys.exit(0)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Composes and checks all runs before the first one starts, names the sweep, opens its run in MLflow."""
        if config.plan:
            with _loud():
                runs = [(" ".join(overrides), cfg) for _, overrides, cfg in _expanded(config, _lists(config)[0])]
                _say_plans(runs)
            sys.exit(0)
        # The workers of some launchers start elsewhere, where only what is installed can be imported.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(_TRAIN.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        logging.getLogger("hydra").setLevel(logging.WARNING)  # the sweep says itself what it starts
        with _loud():
            directory = plan(config)
            self._open(config, directory)
        if _on_other_machines(config.hydra.launcher) and str(config.tracking.uri).startswith("sqlite:"):
            print(
                "warning: several machines can damage a SQLite file on a network disk; safer is a server: "
                "tracking.uri=http://HOST:5000",
                file=sys.stderr,
            )
        if "submitit_folder" in config.hydra.launcher:  # what its jobs print stays in their own logs
            states = directory.states(directory.read().wanted)
            threading.Thread(target=watch, args=(directory, states), daemon=True).start()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Tables, figures and report of what is there; the exit status says whether something is missing."""
        directory = SweepDirectory(Path(config.hydra.sweep.dir))
        states = directory.states(directory.read().wanted)
        with _loud():
            from medr1.workflows.sweep_report import report_sweep

            report_sweep(directory.path)
        missing = [name for name, state in states.items() if state != State.FINISHED]
        for name in missing:
            print(f"{states[name].value}: {directory.run(name).log}", file=sys.stderr)
        if missing:
            print(f"{len(missing)} of {len(states)} runs are missing; the same command goes on", file=sys.stderr)
            sys.exit(1)

    def _open(self, config: DictConfig, directory: SweepDirectory) -> None:
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
        tracker.params({"rows": manifest.rows, "columns": manifest.columns})
        _open_parents.append(tracker)


def _say_plans(runs: Sequence[tuple[str, DictConfig]]) -> None:
    """The plan of each run.

    Raises:
        ConfigError: some cannot fit; says of the last one of them what to change.
    """
    for _, cfg in runs:
        if cfg.resume is not None:
            raise ConfigError("plan=true plans a new run; leave out resume=")
        check(cfg)
    from medr1.workflows.plan import plan as say_plan

    refused: list[str] = []
    for number, (overrides, cfg) in enumerate(runs, 1):
        if len(runs) > 1:
            print(f"\n[{number}/{len(runs)}] {overrides}", flush=True)
        try:
            say_plan(OmegaConf.to_object(cfg))
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


def _lists(config: DictConfig) -> tuple[dict[str, list[str]], list[str]]:
    """The values of each override, of which the product is made, and the keys that vary."""
    params = OmegaConf.to_container(config.hydra.sweeper.get("params") or OmegaConf.create({}))
    assert isinstance(params, dict)
    # As Hydra's own sweeper has it: the values of the sweep's file first, those of the command line in their place.
    lists: dict[str, list[str]] = {}
    varied = [str(key) for key in params]
    texts = [f"{key!s}={value!s}" for key, value in params.items()] + list(config.hydra.overrides.task)
    for override in OverridesParser.create().parse_overrides(texts):
        key = override.get_key_element()
        if override.is_sweep_override():
            lists[key] = [str(value) for value in override.sweep_string_iterator()]
            varied += [key] if key not in (*varied, "seed") else []
        else:
            lists[key] = [str(override.get_value_element_as_str())]
    return lists, varied


def _expanded(
    config: DictConfig, lists: dict[str, list[str]]
) -> Iterator[tuple[dict[str, str], list[str], DictConfig]]:
    """What each run chooses, its overrides and its config, checked.

    Raises:
        ConfigError: a run is misconfigured; names the run's overrides.
    """
    loader = GlobalHydra.instance().config_loader()
    for values in itertools.product(*lists.values()):
        chosen = dict(zip(lists, values, strict=True))
        overrides = [f"{key}={value}" for key, value in chosen.items()]
        cfg = _without_hydra(loader.load_sweep_config(config, overrides))
        try:
            check(cfg)
        except ConfigError as error:
            raise ConfigError(f"{' '.join(overrides)}: {error}") from error
        yield chosen, overrides, cfg


def plan(config: DictConfig) -> SweepDirectory:
    """Writes the manifest of the sweep that ``config`` (of Hydra's multirun) asks for, and tells Hydra its directory.

    Raises:
        ConfigError: a run of it is misconfigured; names the run's overrides.
    """
    lists, varied = _lists(config)
    title = config.sweep.name or "-".join(["multirun", *varied])
    named = [k for k, v in lists.items() if k.split(".")[0] in _PLACE or v == [title]]  # an experiment names its sweep
    fixed = [f"{k}={v[0]}" for k, v in lists.items() if k not in (*varied, *named, "seed")]
    directory = SweepDirectory(Path(config.output_dir).absolute() / sweep_name(title, fixed))
    # The seed is always an axis, so that a later command can add seeds to the same tables.
    jobs = [
        Job(job_name(cfg), {key: chosen[key] for key in varied} | {"seed": str(cfg.seed)}, overrides)
        for chosen, overrides, cfg in _expanded(config, lists)
    ]
    by_name = {job.name: job for job in jobs}
    rows = config.sweep.rows or next((k for k in varied if k != "algorithm"), "algorithm" if varied else "seed")
    columns = "question_type" if rows == "question_type" and not config.sweep.name else str(config.sweep.columns)
    given = list(config.hydra.overrides.task)
    directory.add(Manifest(title, rows, columns, given, list(by_name), by_name))
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = str(directory.path)
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={_quoted(directory.path)}")
    _say(directory, jobs)
    return directory


def _say(directory: SweepDirectory, jobs: Sequence[Job]) -> None:
    states = list(directory.states(job.name for job in jobs).values())
    done, begun = states.count(State.FINISHED), states.count(State.INTERRUPTED)
    print(f"{len(jobs)} runs in {directory.path}: {done} finished before, {begun} to be continued")


def watch(directory: SweepDirectory, states: dict[str, State], every: float = 5.0) -> None:
    """Says what becomes of runs that are started out of sight, until all are done; looks every so many seconds."""
    while {State.WAITING, State.INTERRUPTED} & set(states.values()):
        time.sleep(every)
        before, states = states, directory.states(states)
        done = list(states.values()).count(State.FINISHED)
        for name in (name for name in states if states[name] != before[name]):
            word = "started" if states[name] == State.INTERRUPTED else states[name].value
            print(f"{name}: {word}; {done} of {len(states)} done", flush=True)


def run_job(cfg: DictConfig) -> None:
    """One run of the sweep, unless it is finished: the command line of a single run, in a process of its own.

    A run that fails is noted and does not end the sweep.
    """
    settings = HydraConfig.get()
    directory = SweepDirectory(Path(settings.sweep.dir))
    name = Path(settings.runtime.output_dir).name
    manifest = directory.read()
    number = f"[{manifest.wanted.index(name) + 1 if name in manifest.wanted else '?'}/{len(manifest.wanted)}]"
    run = directory.run(name)
    if run.is_locked:  # a sweep that was killed may leave a run behind that goes on
        print(f"{number} {name}: waiting for another process that works on it", flush=True)
        run.wait()
    before = directory.states(manifest.wanted)
    if directory.state(name) == State.FINISHED:
        return
    if cfg.sweep.stop_on_failure and State.FAILED in before.values():
        print(f"{number} {name}: left out, because another run has failed")
        return
    where = [f"hydra.run.dir={_quoted(run.path)}", "hydra.mode=RUN"]
    given = [override for override in settings.overrides.task if not override.startswith("launcher=")]
    command = [f"resume={_quoted(run.path)}"] if run.config.is_file() else [*given, *where]
    environment = run_environment(settings.launcher)
    print(f"{number} {name}: {'continued' if run.config.is_file() else 'started'}", flush=True)
    start = time.monotonic()
    run.path.mkdir(parents=True, exist_ok=True)
    with run.log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, str(_TRAIN), *command], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            status = process.wait()
        except BaseException:
            process.terminate()  # it closes its run in MLflow as killed
            process.wait()
            raise
    seconds = time.monotonic() - start
    if status or directory.state(name) != State.FINISHED:
        write_json(run.failure, {"status": status, "log": run.log.name})
        print(f"{number} {name}: failed with status {status} after {seconds:.0f} s; see {run.log}", flush=True)
        return
    write_json(run.timing, {"seconds": seconds})
    states = list(directory.states(manifest.wanted).values())
    took = [s for job in manifest.wanted if (s := directory.seconds(job)) is not None]
    left = time_left(
        took, len(states) - states.count(State.FINISHED) - states.count(State.FAILED), _parallel(settings.launcher)
    )
    about = f", about {left / 60:.0f} min left" if left else ""
    done = f"{states.count(State.FINISHED)} of {len(states)} done{about}"
    print(f"{number} {name}: {_score(run.summary)} in {seconds:.0f} s; {done}", flush=True)


def _score(summary: Path) -> str:
    conditions = json.loads(summary.read_bytes())["conditions"]
    return ", ".join(
        f"{c} {100 * conditions[c]['overall']['accuracy']:.1f} %" for c in ("base", "trained") if c in conditions
    )


def _parallel(launcher: DictConfig) -> int:
    """How many runs the launcher has side by side, as far as it says."""
    jobs = int(launcher.get("n_jobs") or launcher.get("array_parallelism") or 1)
    return jobs if jobs > 0 else os.cpu_count() or 1


def _on_other_machines(launcher: DictConfig) -> bool:
    return "partition" in launcher or OmegaConf.select(launcher, "ray.init.address") is not None


def run_environment(launcher: DictConfig) -> dict[str, str]:
    """The environment of a run.

    Inside a job of SLURM, Lightning would expect SLURM to start a process for each device; it starts them itself where
    it does not see the number of tasks.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_NTASKS")}
    if "n_jobs" in launcher and _parallel(launcher) > 1:  # or each run would start as many threads as there are cores
        environment.setdefault("OMP_NUM_THREADS", str(cores(_parallel(launcher))))
    return environment


def _quoted(path: Path) -> str:
    """A path as Hydra's override grammar takes any text."""
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
