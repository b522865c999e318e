"""Opens and closes a run: lock, data, config, MLflow, results. Imports no torch."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from medr1.atomic_write import read_json, write_json, write_text
from medr1.config.settings import CommonConfig, EvaluateConfig, TrainConfig
from medr1.data.dataset import Dataset, limit_cells, load_dataset
from medr1.data.image_loader import cached_image_loader
from medr1.data.image_size import ImageSize
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.errors import ConfigError, Medr1Error, RewardError, StorageError
from medr1.evaluation.calibration import Calibration
from medr1.evaluation.image_ablation import ImageAblation
from medr1.evaluation.measures import (
    Measures,
    compare_measures,
    measure_items,
    read_measured,
    summarise_measures,
)
from medr1.evaluation.metrics import compare, metric_items, summarise
from medr1.evaluation.prediction_store import Generate, PredictionStore
from medr1.evaluation.predictions import Condition, Measure, Prediction
from medr1.evaluation.statistics import Estimate
from medr1.reporting.benchmark_table import render_benchmarks
from medr1.reporting.measure_table import render_measures
from medr1.reporting.result_table import render_results
from medr1.runs.run_directory import RunDirectory
from medr1.runs.storage import storage_problem
from medr1.runs.sweep import sweep_of
from medr1.runs.terminal import log_to
from medr1.tracking.address import stored_run
from medr1.tracking.offline_queue import has_pending_calls, replay_pending_calls
from medr1.tracking.tracker import PARENT_TAG, AnyTracker, NullTracker, Tracker
from medr1.training.algorithms import ALGORITHMS
from medr1.workflows import reward_sources
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
) -> Iterator[Session]:
    """Opens a run; at the end of the block marks it as finished.

    Only rank zero locks, writes files and logs to MLflow. The lock and the MLflow run are also released if the block
    raises. ``facts`` are added to environment.json and must contain ``device``. ``preflight`` is called for a new run
    before its config is stored, and may raise.

    Raises:
        ConfigError: the directory holds another run, is locked by another process, or its data has changed.
        DataError: the data cannot be used. TrackingError: MLflow does not answer.
        StorageError: a disk is full or may not be written; says what is safe and how to continue.
    """
    is_first = is_first_process()
    with _one_storage_message(cfg, run), run.lock() if is_first else nullcontext():
        data = load_data(cfg)
        if isinstance(cfg, TrainConfig):
            set_max_steps(cfg, len(data.train))
        tested = limit_cells(data.test, cfg.evaluation.limit)
        if not is_first:
            yield Session(cfg, run, data, tested, NullTracker(), is_resumed)
            return
        for message in data.messages:
            log.info(message)
        if not is_resumed:
            preflight(data)
            stored = OmegaConf.structured(cfg)
            run.create(stored, overrides, {"data_fingerprint": data.fingerprint, "data": data.facts, **facts})
        elif read_json(run.environment)["data_fingerprint"] != data.fingerprint:
            raise ConfigError(f"{run.path}: the data has changed since this run began; start a new run")
        else:
            _check_model(cfg, run, facts)
            run.store_config(OmegaConf.structured(replace(cfg, resume=None)))

        log_to(run.log)
        sources = reward_sources.store(cfg, run)
        log.info(_description(cfg, run, data, len(tested), str(facts["device"]), is_resumed))
        with _start_tracker(cfg, run, is_resumed) as tracker:
            _log_start(tracker, cfg, run, data)
            for file in sources:
                tracker.log_artifact(file, file.parent.name)
            yield Session(cfg, run, data, tested, tracker, is_resumed)
        # Written last, when MLflow has everything or it is queued in the run directory.
        write_json(run.finished, {"summary": run.summary.name})


def _check_model(cfg: CommonConfig, run: RunDirectory, facts: Mapping[str, Any]) -> None:
    """Checks that a run whose ``model.path`` has changed is resumed with the same weights."""
    before = read_json(run.environment).get("model_fingerprint")
    if before is not None and facts.get("model_fingerprint") != before:
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
        is_trained=isinstance(cfg, TrainConfig) and ALGORITHMS[cfg.algorithm.kind].trains,
        is_other_data=isinstance(cfg, EvaluateConfig) and cfg.run is not None,
    )


@contextmanager
def _one_storage_message(cfg: CommonConfig, run: RunDirectory) -> Iterator[None]:
    """Turns an error of storage, whatever library raises it, into one message."""
    try:
        yield
    except RewardError as error:
        raise RewardError(f"{error}. Then continue with: {resume_command(cfg, run)}{_safe(run)}") from error
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
        count = trainer.devices * trainer.num_nodes
        device = f"{count} x {device}" if count > 1 else device
        steps = f", {cfg.algorithm.name}, {trainer.max_steps} steps of {trainer.train_batch_size} prompts"
    return (
        f"{'resumed: ' if is_resumed else ''}model {cfg.model.name} on {device}{steps}, data {cfg.data.name} with "
        f"{len(data.train)} training and {tested} test records, run directory {run.path}"
    )


def set_max_steps(cfg: TrainConfig, records: int) -> None:
    """Computes ``trainer.max_steps`` from ``trainer.num_train_epochs`` where it is null."""
    trainer = cfg.trainer
    if trainer.max_steps is None:
        assert trainer.num_train_epochs is not None
        trainer.max_steps = math.ceil(trainer.num_train_epochs * records / trainer.train_batch_size)


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


def report(session: Session, conditions: Mapping[str, list[Prediction]], step: int) -> None:
    """Computes the metrics of all conditions and writes them to the terminal, summary.json, results.md and MLflow."""
    run, data, tracker = session.run, session.data, session.tracker
    summaries = {name: summarise(lines) for name, lines in conditions.items()}
    comparison = None
    if Condition.BASE in conditions and Condition.TRAINED in conditions:
        comparison = compare(conditions[Condition.BASE], conditions[Condition.TRAINED])
    for name, summary in summaries.items():
        tracker.log_metrics(dict(metric_items(name, summary)), step)
    if comparison is not None:
        tracker.log_metrics({"trained/difference": comparison.overall.difference.value}, step)
    measures, differences = _measures(session, conditions)
    if measures:
        tracker.log_metrics(dict(measure_items(measures)), step)
    tables = [
        render_results(
            summaries,
            comparison,
            trained_modalities={r.modality for r in data.train},
            trained_question_types={r.question_type for r in data.train},
            # The benchmarks of an evaluation need not be those that its model was trained on.
            trained_benchmarks={r.benchmark for r in data.train} if isinstance(session.cfg, TrainConfig) else (),
        )
    ]
    if any(summary.by_benchmark for summary in summaries.values()):
        tables.append(render_benchmarks(summaries))
    if measures:
        tables.append(render_measures(measures, differences))
    write_json(
        run.summary,
        {
            "conditions": {name: summary.to_dict() for name, summary in summaries.items()},
            "comparison": comparison.to_dict() if comparison else None,
            **_measures_to_dict(measures, differences),
            "data_fingerprint": data.fingerprint,
            "seed": session.cfg.seed,
            "mlflow_run_id": tracker.run_id,
        },
    )
    text = [table.to_markdown() for table in tables]
    if calibrations := {name: found.calibration for name, found in measures.items() if found.calibration}:
        text.append(_draw_reliability(run, calibrations))
        tracker.log_artifact(run.figures, run.figures.name)
    write_text(run.results, "\n".join(text))
    for path in (run.summary, run.results):
        tracker.log_artifact(path)
    for name in (*conditions, *(measure.file(name) for name in measures for measure in Measure)):
        if run.predictions(name).is_file():
            tracker.log_artifact(run.predictions(name), "predictions")
    console = Console(width=100)
    for table in tables:
        console.print(table)
    console.print(f"run directory: {run.path}", soft_wrap=True, highlight=False)
    if tracker.ui_command():
        console.print(f"MLflow: {tracker.ui_command()}", soft_wrap=True, highlight=False)


def _measures(
    session: Session, conditions: Mapping[str, list[Prediction]]
) -> tuple[dict[str, Measures], dict[str, Estimate]]:
    """The further measures of the models, as far as the config asks for them, and trained minus base."""
    ks, models = session.cfg.evaluation.k, [name for name in (Condition.BASE, Condition.TRAINED) if name in conditions]
    found = {str(name): read_measured(session.run.predictions, name, ks) for name in models}
    summaries = {name: summarise_measures(answers) for name, answers in found.items()}
    differences = compare_measures(*found.values()) if len(found) == 2 else {}
    return {name: summary for name, summary in summaries.items() if summary is not None}, differences


def _measures_to_dict(measures: Mapping[str, Measures], differences: Mapping[str, Estimate]) -> dict[str, Any]:
    """The part of summary.json with the further measures; nothing if there are none."""
    if not measures:
        return {}
    of_models = {name: found.to_dict() for name, found in measures.items()}
    compared = {name: asdict(difference) for name, difference in differences.items()}
    return {"measures": of_models, **({"measure_differences": compared} if compared else {})}


def _draw_reliability(run: RunDirectory, calibrations: Mapping[str, Calibration]) -> str:
    """Draws the reliability of the models; returns the Markdown that shows it."""
    from medr1.reporting import figures  # matplotlib takes a second to import

    name = "reliability"
    figures.save(figures.reliability(calibrations), run.figures, name)
    return f"![Reliability]({run.figures.name}/{name}.png)\n\n{figures.RELIABILITY}\n"


def send_pending(run: RunDirectory) -> bool:
    """Sends what a finished run has queued for MLflow. Returns whether the run is finished and had something to send.

    Raises:
        TrackingError: the server still does not answer.
    """
    stored = stored_run(run.path)
    if stored is None or not run.finished.is_file() or not has_pending_calls(run.path, stored):
        return False
    with run.lock():
        sent = replay_pending_calls(str(OmegaConf.load(run.config).tracking.uri), stored, run.path)
    log.info("%s: %d queued calls were sent to MLflow", run.path, sent)
    return True


def resume_command(cfg: CommonConfig, run: RunDirectory) -> str:
    return f"python {'train' if isinstance(cfg, TrainConfig) else 'evaluate'}.py resume={run.path}"


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
    tracker.log_params(values)
    for file in ("config.yaml", "overrides.yaml", "environment.json"):
        tracker.log_artifact(run.path / file)


def _start_tracker(cfg: CommonConfig, run: RunDirectory, is_resumed: bool) -> AnyTracker:
    if not cfg.tracking.enabled:
        return NullTracker()
    before = stored_run(run.path) if is_resumed else None
    sweep = sweep_of(run)
    parent = stored_run(sweep.path) if sweep else None
    return Tracker.start(
        cfg.tracking.uri,
        cfg.tracking.experiment,
        run.path.name,
        run.path,
        tags={PARENT_TAG: parent.run_id} if parent else None,
        run_id=before.run_id if before else None,
        resend_command=resume_command(cfg, run),
    )
