"""The directory of a run: what lies where, and how each file is written so that a kill leaves no half of one."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from medr1 import __version__
from medr1.atomic_write import write_json, write_text
from medr1.config.paths import CHECKOUT
from medr1.config.settings import CommonConfig
from medr1.config.stored import read_config
from medr1.errors import CheckpointError, ConfigError

ADAPTER_CONFIG = "adapter_config.json"  # by it PEFT knows an adapter
_VERSIONS = ("torch", "transformers", "pytorch-lightning", "peft", "mlflow", "hydra-core", "omegaconf")


T = TypeVar("T", bound=CommonConfig)


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """config.yaml, environment.json, checkpoints/, model/, predictions/, summary.json, results.md, mlflow.json and,
    last of all, finished.json; in a sweep also job.log, timing.json and, after a failure, failed.json."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, commit, and the data as it was when the run began."""
        return self.path / "environment.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The trained weights; its existence says that training has ended."""
        return self.path / "model"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def finished(self) -> Path:
        """There once nothing is left to do but to send MLflow what it has missed, if it was away: see ``unsent/``."""
        return self.path / "finished.json"

    @property
    def results(self) -> Path:
        return self.path / "results.md"

    @property
    def log(self) -> Path:
        """What a run of a sweep printed, with the whole traceback if it failed."""
        return self.path / "job.log"

    @property
    def failure(self) -> Path:
        """There from a failure until the run is tried again."""
        return self.path / "failed.json"

    @property
    def timing(self) -> Path:
        return self.path / "timing.json"

    @property
    def lock_file(self) -> Path:
        """Locked by the process that works on the run."""
        return self.path / ".run.lock"

    def predictions(self, condition: str) -> Path:
        return self.path / "predictions" / f"{condition}.jsonl"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps every other process from working on this run; released when the process ends, however it ends.

        Raises:
            ConfigError: another process holds it, or the place cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with FileLock(self.lock_file, blocking=False):
                yield
        except Timeout as error:
            raise ConfigError(f"{self.path} is being worked on by another process; wait for it, or stop it") from error
        except OSError as error:
            if self.lock_file.exists():
                raise
            raise ConfigError(f"{self.path} cannot be written ({error}); choose another output_dir") from error

    @property
    def is_locked(self) -> bool:
        """Whether a process works on it just now."""
        try:
            with FileLock(self.lock_file, blocking=False):
                return False
        except Timeout:
            return True

    def wait(self) -> None:
        """Until no process works on it."""
        with FileLock(self.lock_file):
            pass

    def create(self, cfg: DictConfig, overrides: list[str], facts: Mapping[str, Any]) -> None:
        """Stores the resolved config, the overrides and the environment, before anything is computed.

        Raises:
            ConfigError: the place cannot be written, or holds another run.
        """
        if self.config.exists():
            raise ConfigError(f"{self.path} holds a run already; continue it with resume={self.path}")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.path / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(overrides)))
            write_json(self.environment, {**environment(), **facts})
            write_text(self.config, OmegaConf.to_yaml(cfg, resolve=True))
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written ({error}); choose another output_dir") from error

    def stored_config(self, schema: type[T]) -> T:
        """The settings of the run.

        Raises:
            ConfigError: the directory holds no run, or one whose config this version cannot read.
        """
        if not self.config.is_file():
            raise ConfigError(f"{self.path} is no run directory: it has no config.yaml")
        return read_config(self.config, schema)

    def latest_checkpoint(self) -> Path | None:
        """The checkpoint with the highest step, or None before the first."""
        steps = {p: p.stem.removeprefix("step=") for p in self.checkpoints.glob("step=*.ckpt") if p.is_dir()}
        found = {int(step): p for p, step in steps.items() if step.isdigit()}
        return found[max(found)] if found else None

    def trained_model(self) -> Path:
        if not self.model.is_dir():
            raise CheckpointError(f"{self.path} has no trained model yet; finish it with train.py resume={self.path}")
        return self.model

    def weights(self, base: str) -> tuple[str, Path | None]:
        """What the trained model is loaded from: itself, or ``base`` and the adapter that was stored in its place.

        Raises:
            CheckpointError: training has not ended.
        """
        model = self.trained_model()
        return (base, model) if (model / ADAPTER_CONFIG).is_file() else (str(model), None)


def environment() -> dict[str, Any]:
    """Versions and commit, so that a number can be traced to what made it."""
    return {
        "versions": {"medr1": __version__} | {name: version(name) for name in _VERSIONS},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str:
    """The commit of the project's own files, marked where they were changed since; empty outside of git."""
    if CHECKOUT is None:  # git would find the repository in which the environment happens to lie
        return ""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(CHECKOUT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit}-dirty" if commit and git("status", "--porcelain", "--untracked-files=no") else commit
    except FileNotFoundError:  # no git on this machine
        return ""
