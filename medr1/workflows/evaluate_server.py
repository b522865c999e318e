"""Evaluation of a model behind a chat server. Loads neither torch nor a model."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from medr1.config.validate import api_key
from medr1.data.sources.registry import Dataset
from medr1.errors import ServerError
from medr1.evaluation.chat_client import ChatClient
from medr1.evaluation.predictions import Condition, Prediction
from medr1.evaluation.server_predictions import ServerPredictionStore
from medr1.runs.run_directory import RunDirectory
from medr1.workflows.session import evaluation, prediction_store_settings, report, run_controls


def evaluate_server(cfg: DictConfig, run_dir: Path, overrides: list[str], resumed: bool) -> None:
    """Generates the predictions that ``run_dir`` lacks, then writes and logs the results.

    Raises:
        ServerError: a request failed; the predictions that arrived are on disk.
    """
    run = RunDirectory(run_dir)
    with evaluation(cfg, run, overrides, resumed) as (data, tracker):
        try:
            conditions = generate_on_server(cfg, run, data)
        except ServerError as error:
            raise ServerError(
                f"{error}\nthe predictions so far are on disk; continue with evaluate.py resume={run.path}"
            ) from error
        report(cfg, run, data, conditions, tracker, 0)


def generate_on_server(cfg: DictConfig, run: RunDirectory, data: Dataset) -> dict[str, list[Prediction]]:
    """The predictions of the base condition and of the controls, by condition."""
    model = cfg.model
    client = ChatClient(
        model.url,
        model.path,
        api_key=api_key(model),
        timeout=model.timeout,
        max_retries=model.max_retries,
        repetition_penalty=model.repetition_penalty,
    )
    store = ServerPredictionStore(**prediction_store_settings(cfg, run, data), concurrency=model.concurrency)
    with closing(client):
        store.generate(client, Condition.BASE)
        run_controls(cfg, store, partial(store.generate, client), data)
    return store.conditions
