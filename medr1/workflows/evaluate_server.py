"""Evaluation of a model behind a chat server: as ``pipeline.evaluate``, without torch or a model on this machine."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from medr1.config.validate import api_key
from medr1.data.dataset import Dataset
from medr1.errors import ServerError
from medr1.evaluation.chat_client import ChatServer
from medr1.evaluation.predictions import Condition, Prediction
from medr1.evaluation.server_predictions import ServerPredictionStore
from medr1.runs.run_directory import RunDirectory
from medr1.workflows.session import evaluation, prediction_store_settings, report, run_controls


def evaluate_server(cfg: DictConfig, run_dir: Path, overrides: list[str], resumed: bool) -> None:
    """Asks the server what ``run_dir`` does not hold yet, then makes the table.

    Raises:
        ServerError: it does not answer; what it has answered is kept.
    """
    run = RunDirectory(run_dir)
    with evaluation(cfg, run, overrides, resumed) as (data, tracker):
        try:
            answers = generate_on_server(cfg, run, data)
        except ServerError as error:
            raise ServerError(
                f"{error}\nits answers so far are kept; go on with evaluate.py resume={run.path}"
            ) from error
        report(cfg, run, data, answers, tracker, 0)


def generate_on_server(cfg: DictConfig, run: RunDirectory, data: Dataset) -> dict[str, list[Prediction]]:
    """The answers under each condition: the base's, and those of the controls."""
    model = cfg.model
    server = ChatServer(
        model.url,
        model.path,
        key=api_key(model),
        timeout=model.timeout,
        max_retries=model.max_retries,
        backoff=model.backoff,
        repetition_penalty=model.repetition_penalty,
    )
    answers = ServerPredictionStore(**prediction_store_settings(cfg, run, data), concurrency=model.concurrency)
    answers.generate(server, Condition.BASE)
    run_controls(cfg, answers, partial(answers.generate, server), data)
    return answers.conditions
