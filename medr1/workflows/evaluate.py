"""``evaluate.py``: a finished run again, or a model as it is."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

from medr1.config.enums import Curriculum
from medr1.config.settings import EvaluateConfig
from medr1.data.dataset import Dataset
from medr1.errors import ConfigError
from medr1.evaluation.pass_rates import read_pass_rates, with_pass_rates
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
        cfg,
        RunDirectory(run_dir),
        overrides,
        is_resumed=cfg.resume is not None,
        facts=kind.facts(cfg),
        choose=partial(_trained_records, cfg),
    ) as session:
        report(session, kind.evaluate(session, condition, weights))


def _trained_records(cfg: EvaluateConfig, data: Dataset) -> Dataset:
    """The data with the training records that the evaluated run has chosen by their pass rates, for the option prior.

    Other data than those of the run stay as they are.
    """
    file = RunDirectory(Path(cfg.run)).pass_rates if cfg.run is not None else None
    if file is None or not file.is_file():
        return data
    rates = read_pass_rates(file)
    if {rate.record for rate in rates} != {record.id for record in data.train}:
        return data
    return with_pass_rates(
        data, rates, cfg.data.filter.pass_rate, curriculum=cfg.data.curriculum is Curriculum.pass_rate
    )
