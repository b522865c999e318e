"""A sweep: several runs in one directory, each named by its config, so that the same run is never computed twice.

The manifest lists the runs. The state of a run is read from the run's own files, so that parallel runs never write to
the same file and a kill leaves nothing to repair.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock

from medr1.atomic_write import read_json, write_json
from medr1.errors import ConfigError
from medr1.runs.run_directory import SWEEP_MANIFEST, RunDirectory


class State(StrEnum):
    """The state of a run. A run is interrupted if it has started and neither finished nor failed."""

    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a sweep: its values on the axes of the tables, and its overrides.

    ``continues``: the run whose trained model it begins with, or "".
    """

    name: str
    axes: Mapping[str, str]
    overrides: Sequence[str]
    continues: str = ""


@dataclass(slots=True)
class Manifest:
    """The content of sweep.json: all runs by name, and in ``wanted`` the runs of the latest command in its order.

    ``select``: the validation metric by which the report chooses among settings, or "". ``searched``: the ranges that a
    search draws values from, by axis. ``planned``: the number of runs that the command comes to; those of a search are
    chosen one after another. ``folder``: where the command was typed, from which relative paths lead.
    """

    title: str
    rows: str
    columns: str
    command: list[str]
    wanted: list[str]
    jobs: dict[str, Job] = field(default_factory=dict)
    select: str = ""
    searched: dict[str, str] = field(default_factory=dict)
    planned: int = 0
    folder: str = ""

    @property
    def total(self) -> int:
        return max(self.planned, len(self.wanted))


@dataclass(frozen=True, slots=True)
class SweepDirectory:
    """sweep.json, a directory for each run, base/ (predictions of the base model, shared by the runs) and report/."""

    path: Path

    @property
    def manifest_file(self) -> Path:
        return self.path / SWEEP_MANIFEST

    @property
    def report(self) -> Path:
        return self.path / "report"

    def add(self, manifest: Manifest, *, retries: bool = True) -> Manifest:
        """Adds the manifest to that of earlier commands. ``retries``: removes the failure marks of the wanted runs."""
        self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path / ".sweep.lock"):
            before = self.read().jobs if self.manifest_file.exists() else {}
            manifest.jobs = {**before, **manifest.jobs}
            # A list, because the tables have rows and methods in the order of the runs.
            jobs = [asdict(job) for job in manifest.jobs.values()]
            write_json(self.manifest_file, {**asdict(manifest), "jobs": jobs})
        if retries:
            for name in manifest.wanted:
                self.run(name).failure.unlink(missing_ok=True)
        return manifest

    def read(self) -> Manifest:
        """Reads the manifest.

        Raises:
            ConfigError: sweep.json is missing or damaged.
        """
        try:
            stored = read_json(self.manifest_file)
            jobs = {job["name"]: Job(**job) for job in stored.pop("jobs")}
            return Manifest(**stored, jobs=jobs)
        except FileNotFoundError as error:
            raise ConfigError(f"{self.path} is no sweep: it has no {self.manifest_file.name}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{self.manifest_file} is damaged ({error}); remove it and repeat the sweep's command; finished "
                "runs are not computed again"
            ) from error

    def run(self, name: str) -> RunDirectory:
        return RunDirectory(self.path / name)

    def state(self, name: str) -> State:
        run = self.run(name)
        if run.finished.is_file():
            return State.FINISHED
        if run.failure.is_file():
            return State.FAILED
        return State.INTERRUPTED if run.config.is_file() else State.WAITING

    def states(self, names: Iterable[str]) -> dict[str, State]:
        return {name: self.state(name) for name in names}

    @contextmanager
    def shared_base_predictions(self, inputs: Mapping[str, Any]) -> Iterator[Path]:
        """The file of base predictions that all runs with the same ``inputs`` share, locked during the block."""
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]
        folder = self.path / "base"
        folder.mkdir(exist_ok=True)
        with FileLock(folder / f".{key}.lock"):
            yield folder / f"{key}.jsonl"

    def seconds(self, name: str) -> float | None:
        """The duration of a finished run since its start or its latest resume, or None."""
        timing = self.run(name).timing
        return float(read_json(timing)["seconds"]) if timing.exists() else None


def sweep_of(run: RunDirectory) -> SweepDirectory | None:
    """The sweep that a run belongs to, or None."""
    above = SweepDirectory(run.path.parent)
    return above if above.manifest_file.is_file() else None


def seconds_left(seconds: Sequence[float], left: int, parallel: int) -> float | None:
    """Estimated seconds until ``left`` runs are done, from the mean of ``seconds`` of other runs; else None."""
    return sum(seconds) / len(seconds) * left / parallel if seconds else None


def cores_per_run(parallel: int) -> int:
    """The CPU cores for each of ``parallel`` runs."""
    return max(1, (os.cpu_count() or 1) // parallel)
