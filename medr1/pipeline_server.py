"""Evaluation of a model behind a chat server: as ``pipeline.evaluate``, without torch or a model on this machine."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from medr1.chat import ChatServer
from medr1.config_checks import api_key
from medr1.data.pictures import picture_loader
from medr1.data.source import Dataset, limit_cells
from medr1.errors import ServerError
from medr1.evaluation.predictions import Condition, Prediction
from medr1.evaluation.remote import RemoteAnswers
from medr1.evaluation.shown import Picture
from medr1.pipeline_outcome import evaluation, report
from medr1.reasoning import ReasoningMode
from medr1.run_directory import RunDirectory


def evaluate_server(cfg: DictConfig, run_dir: Path, overrides: list[str], resumed: bool) -> None:
    """Asks the server what ``run_dir`` does not hold yet, then makes the table.

    Raises:
        ServerError: it does not answer; what it has answered is kept.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    run = RunDirectory(run_dir)
    with evaluation(cfg, run, overrides, resumed) as (data, tracker):
        try:
            answers = ask_server(cfg, run, data)
        except ServerError as error:
            raise ServerError(
                f"{error}\nits answers so far are kept; go on with evaluate.py resume={run.path}"
            ) from error
        report(cfg, run, data, answers, tracker, 0)


def ask_server(cfg: DictConfig, run: RunDirectory, data: Dataset) -> dict[str, list[Prediction]]:
    """The answers under each condition: the base's, and those of the controls."""
    model = cfg.model
    server = ChatServer(
        model.url,
        model.path,
        key=api_key(model),
        timeout=model.timeout,
        attempts=model.attempts,
        backoff=model.backoff,
        repetition_penalty=model.repetition_penalty,
    )
    answers = RemoteAnswers(
        limit_cells(data.test, cfg.evaluation.limit),
        ReasoningMode(cfg.reasoning.mode),
        load=picture_loader(int(cfg.data.image_size)),
        file=run.predictions,
        concurrency=model.concurrency,
        max_new_tokens=cfg.evaluation.max_new_tokens,
    )
    answers.ask(server, Condition.BASE)
    if cfg.evaluation.blank_image:
        answers.ask(server, Condition.BLANK_IMAGE, Picture.BLANK)
    if cfg.evaluation.shuffled_image:
        answers.ask(server, Condition.SHUFFLED_IMAGE, Picture.OTHER)
    answers.ask_blind(data.train)
    return answers.conditions
