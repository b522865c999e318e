"""``evaluate.py``: a finished run again, or a model as it is."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from medr1.config.settings import EvaluateConfig
from medr1.errors import ConfigError
from medr1.evaluation.predictions import Condition
from medr1.runs.run_directory import RunDirectory, starting_weights
from medr1.workflows.model_kinds import MODEL_KINDS
from medr1.workflows.results import report
from medr1.workflows.session import open_session

log = logging.getLogger(__name__)

_NO_SETTINGS = ("run", "checkpoint", "resume", "output_dir")  # overrides that leave the settings of a run as they are


def evaluate(cfg: EvaluateConfig, run_dir: Path, overrides: list[str]) -> None:
    """Evaluates into ``run_dir``, or continues the evaluation that was stopped there (``cfg.resume``).

    Raises:
        ConfigError, DataError, CheckpointError, ServerError: names what is wrong and the remedy.
    """
    condition = Condition.BASE
    if cfg.run is None:
        weights = starting_weights(cfg.model.path)
    else:
        trained = RunDirectory(Path(cfg.run).absolute())
        cfg = replace(cfg, run=str(trained.path))
        condition, weights = Condition.TRAINED, trained.weights(cfg.model.path, cfg.checkpoint)
        if weights[1] is None and any(text.startswith("model.path=") for text in overrides):
            raise ConfigError(
                f"model.path= is the base of a LoRA adapter, but {trained.path} was trained in full; leave it out"
            )
        own = [text for text in overrides if text.partition("=")[0] not in _NO_SETTINGS]
        if own:
            log.info("%s is evaluated with other settings than it was trained with: %s", trained.path, " ".join(own))
    kind = MODEL_KINDS[cfg.model.kind]
    with open_session(
        cfg, RunDirectory(run_dir), overrides, is_resumed=cfg.resume is not None, facts=kind.facts(cfg)
    ) as session:
        report(session, kind.evaluate(session, condition, weights))
