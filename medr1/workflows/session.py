"""Opens and closes a run: lock, data, config, MLflow. Imports no torch."""

from __future__ import annotations

import getpass
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from medr1.atomic_write import read_json, write_json, write_text
from medr1.config.override_text import shell_word
from medr1.config.settings import ALL, CommonConfig, EvaluateConfig, TrainConfig
from medr1.data.dataset import Dataset, limit_cells, load_dataset
from medr1.data.image_loader import cached_image_loader
from medr1.data.image_size import ImageSize
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.errors import ConfigError, Medr1Error, RewardError, ServerError, StorageError
from medr1.evaluation.image_ablation import ImageAblation
from medr1.evaluation.prediction_store import Generate, PredictionStore
from medr1.evaluation.predictions import Condition, Measure
from medr1.generation.engines import ENGINES
from medr1.runs.run_directory import RunDirectory
from medr1.runs.storage import storage_problem
from medr1.runs.sweep import sweep_of
from medr1.runs.terminal import log_to
from medr1.tracking.address import stored_run
from medr1.tracking.metrics_file import MetricsFile
from medr1.tracking.offline_queue import has_pending_calls, replay_pending_calls
from medr1.tracking.tracker import PARENT_TAG, AnyTracker, NullTracker, Tracker
from medr1.training.algorithms import ALGORITHMS
from medr1.workflows import plugin_sources, reward_sources
from medr1.workflows.components import steps_done
from medr1.workflows.model_kinds import MODEL_KINDS

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Session:
    """A run that has been opened: locked, with its data loaded, its config stored and its MLflow run started.

    ``tested``: the test records that are evaluated: all, or the sample of ``evaluation.limit``.
    """

    cfg: CommonConfig
    run: RunDirectory
    data: Dataset
    tested: list[Record]
    tracker: AnyTracker
    is_resumed: bool

    @property
    def resume_command(self) -> str:
        return resume_command(self.cfg, self.run)


@contextmanager
def open_session(
    cfg: CommonConfig,
    run: RunDirectory,
    overrides: list[str],
    *,
    is_resumed: bool,
    facts: Mapping[str, Any],
    preflight: Callable[[Dataset], None] = lambda data: None,
    choose: Callable[[Dataset], Dataset] = lambda data: data,
) -> Iterator[Session]:
    """Opens a run; at the end of the block marks it as finished.

    Only rank zero locks, writes files and logs to MLflow. The lock and the MLflow run are also released if the block
    raises. ``facts`` are added to environment.json and must contain ``device``. ``preflight`` is called for a new run
    before its config is stored, and may raise. ``choose`` is called then, in all processes and also for a resumed run,
    and chooses its training records.

    Raises:
        ConfigError: the directory holds another run, is locked by another process, or its data has changed.
        DataError: the data cannot be used. TrackingError: MLflow does not answer.
        StorageError: a disk is full or may not be written; says what is safe and how to continue.
    """
    is_first = is_first_process()
    lock, engine = run.lock() if is_first else nullcontext(), ENGINES[cfg.rollout.kind]
    with _how_to_continue(cfg, run), lock, engine.opened(cfg.rollout, run.path):
        data = load_data(cfg)
        if is_first:
            for message in data.messages:
                log.info(message)
            if not is_resumed:
                preflight(data)
        loaded, data = data, choose(data)
        if isinstance(cfg, TrainConfig):
            set_max_steps(cfg, len(data.train))
        tested = limit_cells(data.test, cfg.evaluation.limit)
        if not is_first:
            yield Session(cfg, run, data, tested, NullTracker(), is_resumed)
            return
        for message in data.messages[len(loaded.messages) :]:
            log.info(message)
        if not is_resumed:
            stored = OmegaConf.structured(cfg)
            fingerprints = {"data_fingerprint": data.fingerprint, "loaded_fingerprint": loaded.fingerprint}
            trained_on = sorted({(record.modality, record.question_type) for record in data.train})
            run.create(stored, overrides, {**fingerprints, "data": data.facts, "trained_on": trained_on, **facts})
            if _trains(cfg):
                write_text(run.train_records, "".join(f"{record.content_key}\n" for record in data.train))
        elif read_json(run.environment)["data_fingerprint"] != data.fingerprint:
            raise ConfigError(f"{run.path}: the data has changed since this run began; start a new run")
        else:
            _check_model(cfg, run, facts)
            run.store_config(OmegaConf.structured(replace(cfg, resume=None)))

        log_to(run.log)
        plugin_sources.store(run)
        sources = reward_sources.store(cfg, run)
        log.info(_description(cfg, run, data, len(tested), str(facts["device"]), is_resumed))
        with _start_tracker(cfg, run, is_resumed) as tracker:
            _log_start(tracker, cfg, run, data)
            if cfg.tracking.log_system_metrics:
                tracker.log_system_metrics()
            for file in sources:
                tracker.log_artifact(file, file.parent.name)
            yield Session(cfg, run, data, tested, tracker, is_resumed)
        # Written last, when MLflow has everything or it is queued in the run directory.
        write_json(run.finished, {"summary": run.summary.name})


def _check_model(cfg: CommonConfig, run: RunDirectory, facts: Mapping[str, Any]) -> None:
    """Checks that a run whose ``model.path`` has changed is resumed with the same weights."""
    before, now = (of.get("model_fingerprint") for of in (read_json(run.environment), facts))
    if before is not None and now is None:
        raise ConfigError(
            f"{run.path}: model.path={cfg.model.path} is not in the cache of this machine, so that its weights cannot "
            f"be compared with those that this run began with; download them first: hf download {cfg.model.path}"
        )
    if before is not None and now != before:
        raise ConfigError(
            f"{run.path}: the weights in model.path={cfg.model.path} are not those that this run began with; give the "
            "directory in which they lie now, or start a new run"
        )


def load_data(cfg: CommonConfig) -> Dataset:
    """The data of a run. A run that trains must have training records.

    Records whose texts contain a special token of the model's tokenizer are left out or refused, as bad records are.

    Raises:
        DataError: see ``load_dataset``.
    """
    return load_dataset(
        cfg.data,
        cfg.modality.name,
        cfg.question_type.name,
        control_tokens=MODEL_KINDS[cfg.model.kind].control_tokens(cfg.model),
        is_trained=_trains(cfg),
        is_other_data=isinstance(cfg, EvaluateConfig) and cfg.run is not None,
    )


def _trains(cfg: CommonConfig) -> bool:
    return isinstance(cfg, TrainConfig) and ALGORITHMS[cfg.algorithm.kind].trains


@contextmanager
def _how_to_continue(cfg: CommonConfig, run: RunDirectory) -> Iterator[None]:
    """Says how a run that ends early is continued. An error of storage, whatever library raises it, has one message."""
    try:
        yield
    except KeyboardInterrupt:
        if is_first_process() and run.config.is_file():
            log.info("interrupted. Continue with: %s%s", resume_command(cfg, run), _safe(run))
        raise
    except (RewardError, ServerError) as error:
        if not run.config.is_file():
            raise type(error)(f"{error}. Then repeat the command; the run has not begun") from error
        again = reward_sources.function_overrides(cfg) if isinstance(error, RewardError) else ""
        raise type(error)(f"{error}. Then continue with: {resume_command(cfg, run)}{again}{_safe(run)}") from error
    except Medr1Error:
        raise
    except Exception as error:
        if (problem := storage_problem(error)) is None:
            raise
        if not run.config.is_file():
            raise StorageError(f"{problem}, or choose another output_dir. The run has not begun") from error
        raise StorageError(f"{problem}. Then continue with: {resume_command(cfg, run)}{_safe(run)}") from error


def _safe(run: RunDirectory) -> str:
    """What a run that has failed has stored, as the last line of a message."""
    stored = [f"the checkpoint {checkpoint.stem}"] if (checkpoint := run.latest_checkpoint()) else []
    stored += ["the trained model"] if run.model.is_dir() else []
    stored += [f"the predictions {file.stem}" for file in sorted(run.predictions("").parent.glob("*.jsonl"))]
    return f"\nSafe in {run.path}: {', '.join(stored) or 'its configuration'}"


def _description(
    cfg: CommonConfig, run: RunDirectory, data: Dataset, tested: int, device: str, is_resumed: bool
) -> str:
    """What a run does, in one line."""
    steps = ""
    if isinstance(cfg, TrainConfig):
        trainer = cfg.trainer
        device = f"{trainer.processes} x {device}" if trainer.processes > 1 else device
        steps = f", {cfg.algorithm.name}, {trainer.max_steps} steps of {trainer.train_batch_size} prompts"
    limit = f" of {len(data.test)} (evaluation.limit={cfg.evaluation.limit})" if tested < len(data.test) else ""
    return (
        f"{'resumed: ' if is_resumed else ''}model {cfg.model.name} on {device}{steps}, data {cfg.data.name} with "
        f"{len(data.train)} training and {tested}{limit} test records, run directory {run.path}"
    )


def set_max_steps(cfg: TrainConfig, records: int) -> None:
    """Computes ``trainer.max_steps`` from ``trainer.num_train_epochs`` where it is null."""
    trainer = cfg.trainer
    if trainer.max_steps is None:
        assert trainer.num_train_epochs is not None
        trainer.max_steps = math.ceil(trainer.num_train_epochs * records / trainer.train_batch_size)
        if trainer.save_model_steps and max(trainer.save_model_steps) > trainer.max_steps:
            raise ConfigError(
                f"trainer.save_model_steps=[{','.join(map(str, trainer.save_model_steps))}]: use steps from 1 to "
                f"{trainer.max_steps}, the steps of trainer.num_train_epochs={trainer.num_train_epochs:g}"
            )


def is_first_process() -> bool:
    """Whether this process is rank zero, which writes files and logs to MLflow.

    Also correct before Lightning has started the other processes: it reads the environment variables that Lightning or
    another launcher (torchrun, SLURM) sets.
    """
    if int(os.environ.get("NODE_RANK", "0")) > 0:
        return False
    if "pytorch_lightning" not in sys.modules:
        return True
    from pytorch_lightning.utilities import rank_zero_only

    return not getattr(rank_zero_only, "rank", 0)


def prediction_settings(session: Session) -> dict[str, Any]:
    """Constructor arguments of a ``PredictionStore`` over the test records of a run."""
    cfg = session.cfg
    return {
        "records": session.tested,
        "mode": ReasoningMode(cfg.reasoning.mode),
        "load": cached_image_loader(ImageSize.from_config(cfg.data, cfg.model)),
        "file": session.run.predictions,
        "max_completion_length": cfg.evaluation.max_completion_length,
        "temperature": cfg.evaluation.temperature,
        "seed": cfg.seed,
    }


def run_measures(
    session: Session,
    store: PredictionStore,
    condition: Condition,
    generate: Generate,
    shared: Callable[..., AbstractContextManager[None]] = lambda name, **settings: nullcontext(),
) -> None:
    """The samples and rotations that the config asks of the model ``condition``.

    ``shared``: a context in which a file is shared with the runs that have the same settings.
    """
    cfg, n = session.cfg.evaluation, session.cfg.evaluation.num_generations
    if n is not None:
        settings = {"num_generations": n, "temperature": cfg.temperature, "seed": session.cfg.seed}
        with shared(Measure.SAMPLES.file(condition), measure=Measure.SAMPLES, **settings):
            store.generate_samples(condition, n, generate)
    if cfg.circular:
        with shared(Measure.ROTATIONS.file(condition), measure=Measure.ROTATIONS):
            store.generate_rotations(condition, generate)


def run_controls(
    session: Session, store: PredictionStore, generate: Callable[[Condition, ImageAblation], None]
) -> None:
    """The controls that the config asks for: blank image, shuffled image, option prior, surface cues."""
    if session.cfg.evaluation.blank_image:
        generate(Condition.BLANK_IMAGE, ImageAblation.BLANK)
    if session.cfg.evaluation.shuffled_image:
        generate(Condition.SHUFFLED_IMAGE, ImageAblation.SHUFFLED)
    store.run_blind_baselines(session.data.train)


def send_pending(run: RunDirectory, uri: str | None = None) -> bool:
    """Sends what a finished run has queued for MLflow. Returns whether the run is finished and had something to send.

    ``uri``: where its server is now, or None if it has not moved.

    Raises:
        TrackingError: the server still does not answer, or does not have the run.
    """
    stored = stored_run(run.path)
    if stored is None or not run.finished.is_file() or not has_pending_calls(run.path, stored):
        return False
    with run.lock():
        sent = replay_pending_calls(uri or str(OmegaConf.load(run.config).tracking.uri), stored, run.path)
    log.info("%s: %d queued calls were sent to MLflow", run.path, sent)
    return True


def resume_command(cfg: CommonConfig, run: RunDirectory) -> str:
    script = "train" if isinstance(cfg, TrainConfig) else "evaluate"
    return f"python {script}.py {shell_word('resume', run.path)}"


def _log_start(tracker: AnyTracker, cfg: CommonConfig, run: RunDirectory, data: Dataset) -> None:
    """Logs the parameters by which runs are compared in MLflow, and the files that hold all of them."""
    settings = asdict(cfg)
    model = {key: settings["model"][key] for key in ("name", "path", "url", "tuning") if key in settings["model"]}
    values: dict[str, Any] = {
        "model": model,
        "data": settings["data"],
        **{f"{group}.name": settings[group]["name"] for group in ("modality", "question_type")},
        "reasoning.mode": cfg.reasoning.mode,
        "evaluation": settings["evaluation"],
        "seed": cfg.seed,
        "data_fingerprint": data.fingerprint,
    }
    if isinstance(cfg, TrainConfig):
        trainer = {key: settings["trainer"][key] for key in ("max_steps", "train_batch_size", "devices")}
        values |= {"reward": settings["reward"], "algorithm": settings["algorithm"], "trainer": trainer}
    elif isinstance(cfg, EvaluateConfig) and cfg.run is not None:
        values |= {"run": Path(cfg.run).name, "checkpoint": cfg.checkpoint}
    tracker.log_params(values)
    context = "training and test" if _trains(cfg) else "test"
    counts = {"training records": len(data.train), "test records": len(data.test)}
    if "pass_rates" in data.facts:
        counts["training records before data.filter"] = data.facts["pass_rates"]["records"]
    source = next((settings["data"][key] for key in ("root", "path") if settings["data"].get(key)), "")
    tracker.log_dataset(cfg.data.name, data.fingerprint, source, counts, context)
    for file in (run.config, run.path / "overrides.yaml", run.environment, run.pass_rates):
        if file.is_file():
            tracker.log_artifact(file)


def _start_tracker(cfg: CommonConfig, run: RunDirectory, is_resumed: bool) -> AnyTracker:
    if not cfg.tracking.enabled:
        return NullTracker()
    before = stored_run(run.path) if is_resumed else None
    sweep = sweep_of(run)
    parent = stored_run(sweep.path) if sweep else None
    return Tracker.start(
        cfg.tracking.uri,
        cfg.tracking.experiment,
        run.path.name if sweep else _title(cfg),
        run.path,
        tags=_source_tags(run) | ({PARENT_TAG: parent.run_id} if parent else {}),
        run_id=before.run_id if before else None,
        resend_command=resume_command(cfg, run),
        require_server=before is None,
        last_steps=partial(_last_steps, cfg, run),
    )


def _last_steps(cfg: CommonConfig, run: RunDirectory) -> dict[str, int]:
    """Up to which step curves have been sent: to the latest checkpoint. What follows is computed again."""
    return MetricsFile(run.metrics).last_steps(steps_done(cfg, run)) if isinstance(cfg, TrainConfig) else {}


def _title(cfg: CommonConfig) -> str:
    """The name of a run in MLflow: what distinguishes runs most comes first, because MLflow cuts long names."""
    command = cfg.algorithm.name if isinstance(cfg, TrainConfig) else "evaluate"
    words = [command, cfg.modality.name, cfg.reasoning.mode]
    words += [cfg.question_type.name] if cfg.question_type.name != ALL else []
    return "_".join([*words, cfg.model.name, cfg.data.name, f"seed{cfg.seed}"])


def _source_tags(run: RunDirectory) -> dict[str, str]:
    """The tags from which MLflow shows who started a run, with which command and commit."""
    tags = {
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": str(read_json(run.environment)["git_commit"]),
    }
    with suppress(OSError, KeyError):  # a container may run as a user without a name
        tags["mlflow.user"] = getpass.getuser()
    return {name: value for name, value in tags.items() if value}
