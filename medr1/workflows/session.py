"""What surrounds any evaluation: the run in MLflow, and from its answers the numbers. Loads no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from medr1.data.image_loader import cached_image_loader
from medr1.data.sources.registry import Dataset, limit_cells, load_dataset
from medr1.domain.reasoning import ReasoningMode
from medr1.errors import ConfigError
from medr1.evaluation.image_ablation import ImageAblation
from medr1.evaluation.metrics import Summary, compare, metric_items, summarise
from medr1.evaluation.prediction_store import PredictionStore
from medr1.evaluation.predictions import Condition, Prediction
from medr1.reporting.result_table import render_results
from medr1.runs.run_directory import RunDirectory, read_json, write_json, write_text
from medr1.runs.sweep import sweep_of
from medr1.tracking.address import stored_run
from medr1.tracking.offline_queue import send_unsent, unsent
from medr1.tracking.tracker import PARENT_TAG, AnyTracker, NullTracker, Tracker

log = logging.getLogger(__name__)


@contextmanager
def evaluation(
    cfg: DictConfig, run: RunDirectory, overrides: list[str], resumed: bool, facts: Mapping[str, Any] | None = None
) -> Iterator[tuple[Dataset, AnyTracker]]:
    """The data, and a run that is begun or continued, held and tracked until the block ends. ``facts``: what else its
    environment.json shall say.

    Raises:
        ConfigError: the place holds another run, is being worked on, or was begun with data that has changed since.
    """
    with run.lock():
        data = load_dataset(cfg.data, cfg.modality.name, cfg.question_type.name)
        for message in data.messages:
            log.info(message)
        if not resumed:
            run.create(cfg, overrides, {"data_fingerprint": data.fingerprint, "data": data.facts, **(facts or {})})
        elif read_json(run.environment)["data_fingerprint"] != data.fingerprint:
            raise ConfigError(f"{run.path}: the data has changed since this evaluation began; start a new one")
        with start_tracker(cfg, run, resumed) as tracker:
            log_start(tracker, cfg, run, data)
            yield data, tracker
        write_json(run.finished, {"summary": run.summary.name})


def report(
    cfg: DictConfig,
    run: RunDirectory,
    data: Dataset,
    conditions: Mapping[str, list[Prediction]],
    tracker: AnyTracker,
    step: int,
) -> None:
    """From predictions to numbers, and the same numbers everywhere: table, summary.json, MLflow."""
    summaries: dict[str, Summary] = {name: summarise(lines) for name, lines in conditions.items()}
    comparison = None
    if Condition.BASE in conditions and Condition.TRAINED in conditions:
        comparison = compare(conditions[Condition.BASE], conditions[Condition.TRAINED])
    for name, summary in summaries.items():
        tracker.metrics(dict(metric_items(name, summary)), step)
    if comparison is not None:
        tracker.metrics({"trained/difference": comparison.overall.difference.value}, step)
    trained = {r.modality for r in data.train}, {r.question_type for r in data.train}
    table = render_results(summaries, comparison, trained_modalities=trained[0], trained_question_types=trained[1])
    write_json(
        run.summary,
        {
            "conditions": {name: summary.to_dict() for name, summary in summaries.items()},
            "comparison": comparison.to_dict() if comparison else None,
            "data_fingerprint": data.fingerprint,
            "seed": cfg.seed,
            "mlflow_run_id": tracker.run_id,
        },
    )
    write_text(run.results, table.to_markdown())
    for path in (run.summary, run.results):
        tracker.artifact(path)
    for name in conditions:
        tracker.artifact(run.predictions(name), "predictions")
    console = Console(width=100)
    console.print(table)
    console.print(f"run directory: {run.path}", soft_wrap=True, highlight=False)
    if tracker.ui_command():
        console.print(f"MLflow: {tracker.ui_command()}", soft_wrap=True, highlight=False)


def log_start(tracker: AnyTracker, cfg: DictConfig, run: RunDirectory, data: Dataset) -> None:
    """The curated parameters, made for comparing runs in the UI, and the files that say everything."""
    chosen = ("model.name", "model.path", "model.url", "model.tuning", "data", "modality.name", "question_type.name")
    training = ("reward", "algorithm", "trainer.max_steps", "trainer.train_batch_size", "trainer.devices")
    values = {key: OmegaConf.select(cfg, key) for key in (*chosen, "reasoning.mode", "seed", *training)}
    plain = {k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in values.items()}
    tracker.params({k: v for k, v in plain.items() if v is not None})
    tracker.params({"data_fingerprint": data.fingerprint})
    for file in ("config.yaml", "overrides.yaml", "environment.json"):
        tracker.artifact(run.path / file)


def start_tracker(cfg: DictConfig, run: RunDirectory, resumed: bool) -> AnyTracker:
    if not cfg.tracking.enabled:
        return NullTracker()
    before = stored_run(run.path) if resumed else None
    sweep = sweep_of(run)
    parent = stored_run(sweep.path) if sweep else None
    return Tracker.start(
        cfg.tracking.uri,
        cfg.tracking.experiment,
        run.path.name,
        run.path,
        tags={PARENT_TAG: parent.run_id} if parent else None,
        run_id=before.run_id if before else None,
        remedy=f"python {'train' if 'trainer' in cfg else 'evaluate'}.py resume={run.path}",
    )


def prediction_store_settings(cfg: DictConfig, run: RunDirectory, data: Dataset) -> dict[str, Any]:
    """What a run asks, whoever answers: see ``KeptAnswers``."""
    return {
        "records": limit_cells(data.test, cfg.evaluation.limit),
        "mode": ReasoningMode(cfg.reasoning.mode),
        "load": cached_image_loader(int(cfg.data.image_size)),
        "file": run.predictions,
        "max_completion_length": int(cfg.evaluation.max_completion_length),
    }


def run_controls(
    cfg: DictConfig, answers: PredictionStore, generate: Callable[[Condition, ImageAblation], None], data: Dataset
) -> None:
    """The model with an empty picture and with another record's, the option prior of the training records, and the
    cues of typography."""
    if cfg.evaluation.blank_image:
        generate(Condition.BLANK_IMAGE, ImageAblation.BLANK)
    if cfg.evaluation.shuffled_image:
        generate(Condition.SHUFFLED_IMAGE, ImageAblation.SHUFFLED)
    answers.run_blind_baselines(data.train)


def send_rest(run: RunDirectory) -> bool:
    """Sends what a finished run has kept, because its MLflow server was away; whether that was all there was to do.

    Raises:
        TrackingError: the server is still away.
    """
    stored = stored_run(run.path)
    if stored is None or not run.finished.is_file() or not unsent(run.path, stored):
        return False
    with run.lock():
        sent = send_unsent(str(OmegaConf.load(run.config).tracking.uri), stored, run.path)
    log.info("%s: %d calls that MLflow had missed are sent", run.path, sent)
    return True
