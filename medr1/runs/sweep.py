"""A sweep: several runs in one directory, each named by what matters in its config, so that none is ever run twice.

The manifest says which runs there are to be; how far each has come is read from its own files. So nothing that runs in
parallel writes to one file, and a kill at any moment leaves nothing to repair.
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

from medr1.atomic_write import write_json
from medr1.errors import ConfigError
from medr1.runs.run_directory import RunDirectory


class State(StrEnum):
    """How far a run has come."""

    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a sweep: the values of the axes that it stands for, and the overrides that make it."""

    name: str
    axes: Mapping[str, str]
    overrides: Sequence[str]


@dataclass(slots=True)
class Manifest:
    """The runs of a sweep, by name, and those that the latest command asked for, in its order."""

    title: str
    rows: str
    columns: str
    command: list[str]
    wanted: list[str]
    jobs: dict[str, Job] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SweepDirectory:
    """sweep.json, a directory for each run, base/ (answers of the untrained model, asked once), report/."""

    path: Path

    @property
    def manifest_file(self) -> Path:
        return self.path / "sweep.json"

    @property
    def report(self) -> Path:
        return self.path / "report"

    def add(self, manifest: Manifest) -> Manifest:
        """Writes the manifest, together with the runs of earlier commands; marks of failure of those wanted go."""
        self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path / ".sweep.lock"):
            before = self.read().jobs if self.manifest_file.exists() else {}
            manifest.jobs = {**before, **manifest.jobs}
            # A list, because the order of the runs is that of rows and methods in every table.
            jobs = [asdict(job) for job in manifest.jobs.values()]
            write_json(self.manifest_file, {**asdict(manifest), "jobs": jobs})
        for name in manifest.wanted:
            self.run(name).failure.unlink(missing_ok=True)
        return manifest

    def read(self) -> Manifest:
        """The manifest.

        Raises:
            ConfigError: there is none, or it is damaged.
        """
        try:
            stored = json.loads(self.manifest_file.read_bytes())
            jobs = {job["name"]: Job(**job) for job in stored.pop("jobs")}
            return Manifest(**stored, jobs=jobs)
        except FileNotFoundError as error:
            raise ConfigError(f"{self.path} is no sweep: it has no {self.manifest_file.name}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{self.manifest_file} is damaged ({error}); remove it and give the sweep's command again: "
                "finished runs are kept"
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
    def shared_base_predictions(self, asked: Mapping[str, Any]) -> Iterator[Path]:
        """The file of answers that runs share which ask the same; held, so that only the first one asks."""
        key = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]
        folder = self.path / "base"
        folder.mkdir(exist_ok=True)
        with FileLock(folder / f".{key}.lock"):
            yield folder / f"{key}.jsonl"

    def seconds(self, name: str) -> float | None:
        """How long a run took to finish, from its start or its latest continuation; None before."""
        try:
            return float(json.loads(self.run(name).timing.read_bytes())["seconds"])
        except FileNotFoundError:
            return None


def sweep_of(run: RunDirectory) -> SweepDirectory | None:
    """The sweep that a run belongs to: the directory above it, if that is one."""
    above = SweepDirectory(run.path.parent)
    return above if above.manifest_file.is_file() else None


def seconds_left(seconds: Sequence[float], left: int, parallel: int) -> float | None:
    """Seconds until ``left`` runs are done, from how long others took; None before the first."""
    return sum(seconds) / len(seconds) * left / parallel if seconds else None


def cores(parallel: int) -> int:
    """Cores for each of so many runs side by side."""
    return max(1, (os.cpu_count() or 1) // parallel)
