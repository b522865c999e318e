"""Writes the results of a run: tables, summary.json, results.md, the page of examples, and MLflow."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from medr1.atomic_write import read_json, write_json, write_text
from medr1.config.settings import EvaluateConfig, TrainConfig
from medr1.data.dataset import limit_cells
from medr1.data.image_loader import cached_image_loader
from medr1.data.image_size import ImageSize
from medr1.domain.reasoning import ReasoningMode, question_text
from medr1.evaluation.calibration import Calibration
from medr1.evaluation.measures import (
    Measures,
    compare_measures,
    measure_items,
    read_measured,
    summarise_measures,
)
from medr1.evaluation.metrics import compare, metric_items, summarise
from medr1.evaluation.pass_rates import describe
from medr1.evaluation.predictions import Condition, Measure, Prediction
from medr1.evaluation.statistics import Estimate
from medr1.reporting.benchmark_table import render_benchmarks
from medr1.reporting.findings import run_verdict
from medr1.reporting.formatting import markdown
from medr1.reporting.measure_table import render_measures
from medr1.reporting.result_table import render_results
from medr1.reporting.run_report import write_run_report
from medr1.rewards import max_reward
from medr1.runs.run_directory import RunDirectory, run_at
from medr1.tracking.gallery import Answer, Card, gallery
from medr1.tracking.metrics_file import MetricsFile
from medr1.workflows.conditions import conditions as settings_of
from medr1.workflows.session import Session

log = logging.getLogger(__name__)

_GALLERY_QUESTIONS = 24


def _trained_on(session: Session) -> set[tuple[str, str]]:
    """Modality and question type of the records that the model was trained on."""
    cfg = session.cfg
    if isinstance(cfg, EvaluateConfig) and cfg.run is not None:
        stored = read_json(RunDirectory(Path(cfg.run)).environment).get("trained_on")
        if stored is not None:  # absent in runs of earlier versions
            return {(modality, question_type) for modality, question_type in stored}
    return {(record.modality, record.question_type) for record in session.data.train}


def _memory(session: Session) -> str:
    """Says how many of the test records the evaluated model was trained on, if there are any."""
    cfg = session.cfg
    if not isinstance(cfg, EvaluateConfig) or cfg.run is None:
        return ""
    trained: set[str] = set()
    run = run_at(cfg.run)
    while run is not None:  # with the runs that it continues
        before = run.stored_config(TrainConfig)
        # Other data may have other images of the same names. The file is absent in runs of earlier versions.
        if before.data.name == cfg.data.name and run.train_records.is_file():
            trained.update(run.train_records.read_text(encoding="utf-8").split())
        run = run_at(before.model.path)
    count = sum(record.content_key in trained for record in session.tested) if trained else 0
    if not count:
        return ""
    return (
        f"The model was trained on {count} of these {len(session.tested)} test records, so that their accuracy shows "
        "memory, too: the data or its division are others than in training."
    )


def report(session: Session, conditions: Mapping[str, list[Prediction]]) -> None:
    """Computes the metrics of all conditions and writes them to the terminal, summary.json, results.md and MLflow."""
    run, data, tracker = session.run, session.data, session.tracker
    summaries = {name: summarise(lines) for name, lines in conditions.items()}
    comparison = None
    if Condition.BASE in conditions and Condition.TRAINED in conditions:
        comparison = compare(conditions[Condition.BASE], conditions[Condition.TRAINED])
    tracker.log_metrics(dict(metric_items(summaries, comparison)), 0)
    measures, differences = _measures(session, conditions)
    if measures:
        tracker.log_metrics(dict(measure_items(measures)), 0)
    seen = _trained_on(session) if Condition.TRAINED in conditions else set()
    tables = [
        render_results(
            summaries,
            comparison,
            trained_modalities={modality for modality, _ in seen},
            trained_question_types={question_type for _, question_type in seen},
            # The benchmarks of an evaluation need not be those that its model was trained on.
            trained_benchmarks={r.benchmark for r in data.train}
            if seen and isinstance(session.cfg, TrainConfig)
            else (),
        )
    ]
    if any(summary.by_benchmark for summary in summaries.values()):
        tables.append(render_benchmarks(summaries))
    if measures:
        tables.append(render_measures(measures, differences))
    rates = data.facts.get("pass_rates")
    write_json(
        run.summary,
        {
            "conditions": {name: summary.to_dict() for name, summary in summaries.items()},
            "comparison": comparison.to_dict() if comparison else None,
            **_measures_to_dict(measures, differences),
            "data_fingerprint": data.fingerprint,
            **({"pass_rates": rates} if rates else {}),
            "seed": session.cfg.seed,
            "mlflow_run_id": tracker.run_id,
        },
    )
    results = "\n".join(table.to_markdown() for table in tables)
    if rates:
        results += "".join(f"\n{line[0].upper()}{line[1:]}.\n" for line in describe(rates))
    # Modalities and question types, because another data set of the same kind is not new to the model.
    verdict = run_verdict(summaries, comparison, conditions, lambda line: (line.modality, line.question_type) in seen)
    if memory := _memory(session):
        log.warning("%s", memory)
        verdict = (memory, *verdict)
    results = "".join(f"{markdown(sentence)}\n\n" for sentence in verdict) + results
    tracker.describe(results)
    if calibrations := {name: found.calibration for name, found in measures.items() if found.calibration}:
        results += f"\n{_draw_reliability(run, calibrations)}"
        tracker.log_artifact(run.figures, run.figures.name)
    write_text(run.results, results)
    write_text(run.gallery, _gallery(session, conditions))
    write_run_report(
        run.report,
        title=run.path.name,
        verdict=verdict,
        conditions=settings_of([(run, session.cfg)]),
        tables=tables,
        curves=MetricsFile(run.metrics).read(),
        max_reward=max_reward(session.cfg.reward) if isinstance(session.cfg, TrainConfig) else None,
        curves_file=run.curves,
    )
    for path in (run.summary, run.results, run.gallery, run.report, run.curves):
        if path.is_file():
            tracker.log_artifact(path)
    for name in (*conditions, *(measure.file(name) for name in measures for measure in Measure)):
        if run.predictions(name).is_file():
            tracker.log_artifact(run.predictions(name), "predictions")
    console = Console(width=100, markup=False)
    for table in tables:
        console.print(table)
    console.print(f"run directory: {run.path}", soft_wrap=True, highlight=False)
    if tracker.ui_command():
        console.print(f"MLflow: {tracker.ui_command()}", soft_wrap=True, highlight=False)


def _gallery(session: Session, conditions: Mapping[str, list[Prediction]]) -> str:
    """A page with a sample of the test questions, spread over modalities and question types."""
    cfg = session.cfg
    cells = len({(record.benchmark, record.modality, record.question_type) for record in session.tested})
    records = limit_cells(session.tested, math.ceil(_GALLERY_QUESTIONS / cells))
    count = min(_GALLERY_QUESTIONS, len(records))
    records = [records[i * len(records) // count] for i in range(count)]
    shown = [name for name in (Condition.BASE, Condition.TRAINED, Condition.BLANK_IMAGE) if name in conditions]
    predictions = {name: {line.record: line for line in conditions[name]} for name in shown}
    mode, load = ReasoningMode(cfg.reasoning.mode), cached_image_loader(ImageSize.from_config(cfg.data, cfg.model))
    cards = []
    for record in records:
        completions = []
        for name in shown:
            line = predictions[name][record.id]
            facts = {"answer": line.parsed or "not read", "tokens": str(line.length)}
            completions.append(Answer(name.replace("_", " "), line.text, facts, line.correct))
        question = question_text(record.question, record.options, mode)
        answer = f"{record.answer}) {record.answer_text}"
        cards.append(Card(record.id, question, answer, load(record), completions))
    note = f"{count} of {len(session.tested)} test questions, spread over modalities and question types."
    return gallery(session.run.path.name, note, cards)


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
