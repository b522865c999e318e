"""The directory of a run: its files, its lock and its stored config."""

from __future__ import annotations

import itertools
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from medr1 import __version__
from medr1.atomic_write import read_json, write_json, write_text
from medr1.config.enums import CheckpointChoice
from medr1.config.override_text import shell_word
from medr1.config.paths import CHECKOUT
from medr1.config.settings import CommonConfig, TrainConfig
from medr1.config.stored import read_config
from medr1.errors import CheckpointError, ConfigError

ADAPTER_CONFIG = "adapter_config.json"  # marks a directory as a PEFT adapter
SWEEP_MANIFEST = "sweep.json"  # in the directory of a sweep, where a run has its config.yaml
_VERSIONS = ("torch", "transformers", "pytorch-lightning", "peft", "mlflow", "hydra-core", "omegaconf")

T = TypeVar("T", bound=CommonConfig)


class RunDirectory:
    """The files of one run. mlflow.json and unsent/ belong to ``medr1.tracking``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock_file = path / ".run.lock"
        self.config = path / "config.yaml"  # the first file: without it, the directory holds no run
        self.environment = path / "environment.json"  # versions, git commit and facts about the data at the start
        self.checkpoints = path / "checkpoints"
        self.best_checkpoint = self.checkpoints / "best"  # weights of the best step so far, by a validation metric
        self.best = path / "best.json"  # step and value of the best checkpoint; exists with model/
        self.model = path / "model"  # the trained weights that the run evaluates; exists when training has ended
        self.models = path / "models"  # the model after the steps of trainer.save_model_steps
        self.train_records = path / "train_records.txt"  # ``Record.content_key`` of each training record, one a line
        self.pass_rates = path / "pass_rates.jsonl"  # of the training records, if they are filtered or ordered by them
        self.metrics = path / "metrics.jsonl"  # the curves of training
        self.figures = path / "figures"  # of the results, if any
        self.log = path / "job.log"  # what the run has printed, with the traceback of an unexpected error
        self.summary = path / "summary.json"
        self.results = path / "results.md"
        self.report = path / "report.html"  # settings, curves and results on one page
        self.curves = path / "curves.png"  # of training, if there were at least ten steps
        self.gallery = path / "gallery.html"  # some test questions with their images and completions
        self.finished = path / "finished.json"  # the last file; calls to MLflow may still be queued
        # Only in a sweep:
        self.failure = path / "failed.json"  # exists from a failure until the run is started again
        self.timing = path / "timing.json"

    def predictions(self, condition: str) -> Path:
        return self.path / "predictions" / f"{condition}.jsonl"

    def other_model(self, checkpoint: CheckpointChoice) -> Path:
        """The weights of the best or the last checkpoint, where model/ holds the other of the two."""
        return self.path / f"model_{checkpoint}"

    def reward_source(self, name: str, version: int) -> Path:
        """The source of a reward function of the user's own, from 1; later ones were given when the run was resumed."""
        return self.path / "rewards" / (f"{name}.py" if version == 1 else f"{name}-{version}.py")

    def reward_sources(self, name: str) -> list[Path]:
        """The stored sources of a reward function, the latest last."""
        versions = (self.reward_source(name, version) for version in itertools.count(1))
        return list(itertools.takewhile(Path.is_file, versions))

    def plugin_source(self, version: int) -> Path:
        """The folder with the sources of the plugins, from 1; later ones were there when the run was resumed."""
        return self.path / ("plugins" if version == 1 else f"plugins-{version}")

    def plugin_sources(self) -> list[Path]:
        """The folders with stored plugins, the latest last."""
        versions = (self.plugin_source(version) for version in itertools.count(1))
        return list(itertools.takewhile(Path.is_dir, versions))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the run for this process. The operating system releases the lock of a process that is killed.

        Raises:
            ConfigError: another process has locked the run, or the directory cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with FileLock(self.lock_file, blocking=False):
                yield
        except Timeout as error:
            raise ConfigError(f"{self.path} is in use by another process; wait for it, or stop it") from error
        except OSError as error:
            if self.lock_file.exists():  # an error of the run itself
                raise
            raise ConfigError(f"{self.path} cannot be written ({error}); choose another output_dir") from error

    @property
    def is_locked(self) -> bool:
        try:
            with FileLock(self.lock_file, blocking=False):
                return False
        except Timeout:
            return True

    def wait_until_unlocked(self) -> None:
        with FileLock(self.lock_file):
            pass

    def create(self, cfg: DictConfig, overrides: list[str], facts: Mapping[str, Any]) -> None:
        """Stores the resolved config, the overrides and the environment.

        Raises:
            ConfigError: the directory cannot be written, or holds a run.
        """
        if self.config.exists():
            raise ConfigError(f"{self.path} holds a run already; continue it with {shell_word('resume', self.path)}")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.path / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(overrides)))
            write_json(self.environment, {**environment(), **facts})
            self.store_config(cfg)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written ({error}); choose another output_dir") from error

    def claim_new(self) -> RunDirectory:
        """Creates the directory and returns it. If it exists, creates NAME-2, NAME-3, ... instead.

        Raises:
            OSError: it cannot be created.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            own = self.path if number == 1 else self.path.with_name(f"{self.path.name}-{number}")
            try:
                own.mkdir()
                return RunDirectory(own)
            except FileExistsError:
                if not own.is_dir():
                    raise
        raise AssertionError("unreachable")

    def discard_unless_started(self) -> None:
        """Removes the directory if it holds no file but hidden ones, and its parent if that is then empty.

        Also a command that is no run, such as an audit, may have stored its result before it failed.
        """
        if self.path.is_dir() and all(file.name.startswith(".") for file in self.path.iterdir()):
            shutil.rmtree(self.path, ignore_errors=True)
            with suppress(OSError):  # it holds other runs
                self.path.parent.rmdir()

    def store_config(self, cfg: DictConfig) -> None:
        """Stores the resolved config; replaces the stored one of a resumed run."""
        write_text(self.config, OmegaConf.to_yaml(cfg, resolve=True))

    def stored_config(self, schema: type[T]) -> T:
        """The settings of the run.

        Raises:
            ConfigError: the directory holds no run, or one whose config this version cannot read.
        """
        if not self.config.is_file():
            if (self.path / SWEEP_MANIFEST).is_file():
                raise ConfigError(
                    f"{self.path} is the directory of a sweep, which goes on when its command is repeated"
                )
            raise ConfigError(f"{self.path} is no run directory: it has no config.yaml")
        return read_config(self.config, schema)

    def best_step(self) -> int | None:
        """The step of the best checkpoint, or None if none was chosen."""
        return int(read_json(self.best)["step"]) if self.best.is_file() else None

    def latest_checkpoint(self) -> Path | None:
        """The checkpoint with the highest step, or None."""
        steps = {p: p.stem.removeprefix("step=") for p in self.checkpoints.glob("step=*.ckpt") if p.is_dir()}
        found = {int(step): p for p, step in steps.items() if step.isdigit()}
        return found[max(found)] if found else None

    def optimizer_steps(self) -> int:
        """The number of optimizer steps before the latest checkpoint, 0 without one."""
        checkpoint = self.latest_checkpoint()
        return int(checkpoint.stem.removeprefix("step=")) if checkpoint else 0

    @property
    def stands_at(self) -> str:
        """Where a run that is resumed goes on, for messages."""
        checkpoint = self.latest_checkpoint()
        return f"the checkpoint {checkpoint.stem}" if checkpoint else "the start"

    def intermediate_model(self, step: int) -> Path:
        """The model after a step of ``trainer.save_model_steps``."""
        return self.models / f"step-{step}"

    def weights(self, base: str, checkpoint: CheckpointChoice | None = None) -> tuple[str, Path | None]:
        """(checkpoint, adapter) of the trained model: (model/, None), or with LoRA (that of ``base``, model/).

        ``base``: ``model.path`` of the run, which may be a run itself. ``checkpoint``: the best or the last; None: that
        of the run's own evaluation.

        Raises:
            CheckpointError: training has not ended, or it has kept no best checkpoint.
        """
        if not self.model.is_dir():
            raise CheckpointError(
                f"{self.path} has no trained model yet; finish it with "
                f"python train.py {shell_word('resume', self.path)}"
            )
        if checkpoint is CheckpointChoice.best and not self.best.is_file():
            raise CheckpointError(
                f"checkpoint=best: {self.path} has kept no best checkpoint; train with trainer.metric_for_best_model, "
                "or use checkpoint=last"
            )
        model = self.model
        if checkpoint is not None and self.other_model(checkpoint).is_dir():
            model = self.other_model(checkpoint)
        return self.weights_in(model, base)

    def weights_in(self, model: Path, base: str) -> tuple[str, Path | None]:
        """(checkpoint, adapter) of trained weights in a directory of this run."""
        return (starting_weights(base)[0], model) if (model / ADAPTER_CONFIG).is_file() else (str(model), None)


def starting_weights(path: str) -> tuple[str, Path | None]:
    """(checkpoint, adapter) that a ``model.path`` stands for: itself, or those of the trained model of a run.

    Raises:
        CheckpointError: the training of the run has not ended. ConfigError: its config cannot be read.
    """
    if (run := run_at(path)) is None:
        return path, None
    return run.weights(run.stored_config(TrainConfig).model.path)


def run_at(path: str) -> RunDirectory | None:
    """The run in the directory that a ``model.path`` names, or None."""
    run = RunDirectory(Path(path).absolute())
    return run if run.config.is_file() else None


def environment() -> dict[str, Any]:
    """The versions and the git commit that a result was computed with."""
    return {
        "versions": {"medr1": __version__} | {name: version(name) for name in _VERSIONS},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str:
    """The commit of the checkout, with ``-dirty`` if its files have changed; empty outside of a checkout."""
    if CHECKOUT is None:  # git would find a repository that contains site-packages by chance
        return ""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(CHECKOUT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit}-dirty" if commit and git("status", "--porcelain", "--untracked-files=no") else commit
    except FileNotFoundError:  # no git on this machine
        return ""
