"""What a report says about its runs: model, data, reasoning, budget and date."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, datetime
from pathlib import Path

from medr1.atomic_write import read_json
from medr1.config.settings import CommonConfig, EvaluateConfig, TrainConfig
from medr1.evaluation.sweep_tables import ALL
from medr1.reporting.formatting import label
from medr1.runs.run_directory import RunDirectory
from medr1.training.algorithms import ALGORITHMS


def _day(run: RunDirectory) -> date:
    """When the run began. Runs of earlier versions have not stored it."""
    started = read_json(run.environment).get("started") if run.environment.is_file() else None
    if started is None:
        return datetime.fromtimestamp(run.config.stat().st_mtime).astimezone().date()
    return datetime.fromisoformat(str(started)).date()


def conditions(runs: Iterable[tuple[RunDirectory, CommonConfig]]) -> dict[str, str]:
    """The settings of the runs by name. Where runs differ, their values one after another, without repetition."""
    found: dict[str, dict[str, None]] = {}
    days, steps = set(), []
    for run, cfg in runs:
        for name, value in _settings(cfg):
            found.setdefault(name, {})[value] = None
        steps += [] if (step := run.best_step()) is None else [step]
        days.add(_day(run))
    shown = {name: "; ".join(values) for name, values in found.items()}
    if "tested" in shown and steps:
        shown["tested"] += f" (step {min(steps)}{f' to {max(steps)}' if len(set(steps)) > 1 else ''})"
    dates = dict.fromkeys(day.isoformat() for day in (min(days), max(days))) if days else {}
    return shown | ({"date": " to ".join(dates)} if dates else {})


def _settings(cfg: CommonConfig) -> Iterator[tuple[str, str]]:
    yield "model", cfg.model.name
    yield "data", cfg.data.name
    yield "reasoning", label(str(cfg.reasoning.mode))
    if isinstance(cfg, EvaluateConfig) and cfg.run is not None:
        checkpoint = "" if cfg.checkpoint is None else f" ({cfg.checkpoint} checkpoint)"
        yield "trained model", f"{Path(cfg.run).name}{checkpoint}"
    if not isinstance(cfg, TrainConfig):
        return
    algorithm, trainer = ALGORITHMS[cfg.algorithm.kind], cfg.trainer
    if not algorithm.trains:
        yield "training", f"{label(cfg.algorithm.name)}: none"
        return
    parts = [label(name) for name in (cfg.modality.name, cfg.question_type.name) if name != ALL]
    yield "trained on", ", ".join(parts) or "all records"
    generations = getattr(cfg.algorithm, "num_generations", None)
    completions = f" x {generations} completions" if generations else ""
    budget = f"{trainer.max_steps} steps of {trainer.train_batch_size} prompts{completions}"
    yield "training", f"{label(cfg.algorithm.name)}: {budget}, learning rate {cfg.algorithm.learning_rate:g}"
    if trainer.load_best_model_at_end:
        yield "tested", f"the checkpoint with the best {trainer.metric_for_best_model}"
