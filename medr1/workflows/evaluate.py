"""``evaluate.py``: a finished run again, or a model as it is."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from medr1.config.settings import CommonConfig, EvaluateConfig, TrainConfig
from medr1.evaluation.predictions import Condition
from medr1.runs.run_directory import RunDirectory
from medr1.workflows.model_kinds import MODEL_KINDS
from medr1.workflows.session import open_session, report


def evaluate(cfg: EvaluateConfig, run_dir: Path, overrides: list[str]) -> None:
    """Evaluates into ``run_dir``, or continues the evaluation that was stopped there (``cfg.resume``).

    Raises:
        ConfigError, DataError, CheckpointError, ServerError: names what is wrong and the remedy.
    """
    condition = Condition.BASE
    weights: tuple[str, Path | None] = (cfg.model.path, None)
    if cfg.run is not None:
        trained = RunDirectory(Path(cfg.run).absolute())
        cfg = _of_run(cfg, trained)
        condition, weights = Condition.TRAINED, trained.weights(cfg.model.path)
    kind = MODEL_KINDS[cfg.model.kind]
    with open_session(
        cfg, RunDirectory(run_dir), overrides, is_resumed=cfg.resume is not None, facts=kind.facts(cfg)
    ) as session:
        report(session, kind.evaluate(session, condition, weights), step=0)


def _of_run(cfg: EvaluateConfig, trained: RunDirectory) -> EvaluateConfig:
    """The settings of a finished run, with those of the evaluation that may differ from them."""
    stored = trained.stored_config(TrainConfig)
    shared = {item.name: getattr(stored, item.name) for item in fields(CommonConfig)}
    found = EvaluateConfig(**shared, run=str(trained.path), resume=cfg.resume)
    found.output_dir, found.tracking = cfg.output_dir, cfg.tracking
    if cfg.evaluation.limit is not None:
        found.evaluation.limit = cfg.evaluation.limit
    return found
