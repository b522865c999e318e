"""One run of a sweep: the command of a single run, in a process of its own.

Its own process tree isolates a crash, lets distributed training start as in a single run, and works with any launcher
(one after the other, joblib, submitit, ray).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from medr1.atomic_write import read_json, write_json
from medr1.config.override_text import override_text
from medr1.config.schema import marked_keys
from medr1.config.settings import TrainConfig
from medr1.runs.run_directory import RunDirectory
from medr1.runs.sweep import Manifest, State, SweepDirectory, cores_per_run, seconds_left
from medr1.waiting_lock import waiting_lock
from medr1.workflows.reward_sources import function_keys


def run_job(cfg: DictConfig) -> None:
    """Runs or continues one run of the sweep, unless it is finished.

    A run that fails is recorded and does not end the sweep, unless ``sweep.stop_on_failure`` is set.
    """
    settings = HydraConfig.get()
    directory = SweepDirectory(Path(settings.sweep.dir))
    name = Path(settings.runtime.output_dir).name
    manifest = directory.read()
    number = f"[{manifest.wanted.index(name) + 1 if name in manifest.wanted else '?'}/{manifest.total}]"
    with _claimed(directory.run(name), f"{number} {name}"):
        _run_claimed(cfg, directory, manifest, name, number)


@contextmanager
def _claimed(run: RunDirectory, shown: str) -> Iterator[None]:
    """Waits until no other command works on the run, and keeps others waiting during the block."""
    say = partial(print, f"{shown}: waiting for another command of this sweep that works on it", flush=True)
    with waiting_lock(run.path / ".job.lock", say):  # before the run starts, when its own lock is still free
        if run.is_locked:  # a sweep that was killed may leave a run behind that continues
            print(f"{shown}: waiting for another process that works on it", flush=True)
            run.wait_until_unlocked()
        yield


def _run_claimed(cfg: DictConfig, directory: SweepDirectory, manifest: Manifest, name: str, number: str) -> None:
    settings, run = HydraConfig.get(), directory.run(name)
    before = directory.states(manifest.wanted)
    if directory.state(name) == State.FINISHED:
        return
    if cfg.sweep.stop_on_failure and State.FAILED in before.values():
        print(f"{number} {name}: skipped, because another run has failed")
        return
    overrides = [override for override in settings.overrides.task if not override.startswith("launcher=")]
    if before_this := manifest.jobs[name].continues:
        if not _wait_for(directory, before_this, cfg.sweep.stop_on_failure):
            write_json(run.failure, {"status": 1, "log": run.log.name})
            print(f"{number} {name}: skipped, because {before_this}, which it continues, has failed", flush=True)
            return
        overrides = [override for override in overrides if not override.startswith("model.path=")]
        overrides.append(override_text("model.path", directory.run(before_this).path))
    is_stored = run.config.is_file()
    new = [*overrides, override_text("hydra.run.dir", run.path), "hydra.mode=RUN"]
    # A run goes on with what it stores, but for settings that may change, such as where the data lie.
    command = [override_text("resume", run.path), *_movable(run, overrides)] if is_stored else new
    print(f"{number} {name}: {'continued' if is_stored else 'started'}", flush=True)
    start = time.monotonic()
    with run.log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "medr1.cli.train", *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=run_environment(settings.launcher),
            # The workers of some launchers start in a folder of their own.
            cwd=manifest.folder if manifest.folder and Path(manifest.folder).is_dir() else None,
        )
        try:
            status = process.wait()
        except BaseException:
            process.terminate()  # SIGTERM: it closes its run in MLflow as KILLED
            process.wait()
            raise
    seconds = time.monotonic() - start
    if status or directory.state(name) != State.FINISHED:
        write_json(run.failure, {"status": status, "log": run.log.name})
        print(f"{number} {name}: failed with status {status} after {seconds:.0f} s; see {run.log}", flush=True)
        return
    write_json(run.timing, {"seconds": seconds})
    states = list(directory.states(manifest.wanted).values())
    durations = [s for job in manifest.wanted if (s := directory.seconds(job)) is not None]
    waiting = manifest.total - states.count(State.FINISHED) - states.count(State.FAILED)
    left = seconds_left(durations, waiting, _parallel_runs(settings.launcher))
    about = f", about {left / 60:.0f} min left" if left else ""
    done = f"{states.count(State.FINISHED)} of {manifest.total} done{about}"
    print(f"{number} {name}: {_score(run.summary)} in {seconds:.0f} s; {done}", flush=True)


def _wait_for(directory: SweepDirectory, name: str, stop_on_failure: bool, every: float = 1.0) -> bool:
    """Waits until a run has ended, which another process of a parallel launcher may work on. Whether it is finished."""
    while directory.state(name) in (State.WAITING, State.INTERRUPTED):
        if stop_on_failure and State.FAILED in directory.states(directory.read().wanted).values():
            return False
        time.sleep(every)
    return directory.state(name) is State.FINISHED


def watch_remote_runs(launcher: DictConfig, directory: SweepDirectory, names: Iterable[str]) -> None:
    """Prints the progress of runs whose output is written to their own logs only, those of submitit."""
    if "submitit_folder" in launcher:
        threading.Thread(target=print_progress, args=(directory, directory.states(names)), daemon=True).start()


def print_progress(directory: SweepDirectory, states: dict[str, State], every: float = 5.0) -> None:
    """Polls remotely launched runs every so many seconds and prints each change, until all have ended."""
    while {State.WAITING, State.INTERRUPTED} & set(states.values()):
        time.sleep(every)
        before, states = states, directory.states(states)
        done = list(states.values()).count(State.FINISHED)
        for name in (name for name in states if states[name] != before[name]):
            word = "started" if states[name] == State.INTERRUPTED else states[name].value
            print(f"{name}: {word}; {done} of {len(states)} done", flush=True)


def run_environment(launcher: DictConfig) -> dict[str, str]:
    """The environment of a run.

    Inside a SLURM job, Lightning would expect SLURM to start one process per device. Without the number of tasks in the
    environment it starts them itself.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_NTASKS")}
    environment["PYTHONIOENCODING"] = "utf-8:replace"  # of job.log
    environment["PYTHONSAFEPATH"] = "1"  # python -m would also import from the folder in which the command is typed
    parallel = _parallel_runs(launcher)
    if "n_jobs" in launcher and parallel > 1:  # otherwise each run would start one thread per core
        environment.setdefault("OMP_NUM_THREADS", str(cores_per_run(parallel)))
    return environment


def _movable(run: RunDirectory, overrides: list[str]) -> list[str]:
    """The overrides that may change, and those that name the user's own reward functions: they are named again."""
    stored = run.stored_config(TrainConfig)
    allowed = {*marked_keys(stored, "may_change"), *function_keys(stored)}
    return [word for word in (override.lstrip("+") for override in overrides) if word.partition("=")[0] in allowed]


def _score(summary: Path) -> str:
    conditions = read_json(summary)["conditions"]
    return ", ".join(
        f"{c} {100 * conditions[c]['overall']['accuracy']['value']:.1f} %"
        for c in ("base", "trained")
        if c in conditions
    )


def _parallel_runs(launcher: DictConfig) -> int:
    """How many runs the launcher has side by side, as far as its settings tell."""
    jobs = int(launcher.get("n_jobs") or launcher.get("array_parallelism") or 1)
    return jobs if jobs > 0 else os.cpu_count() or 1
