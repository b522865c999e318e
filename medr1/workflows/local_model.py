"""Loads and evaluates a checkpoint in this process."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from medr1.config.settings import CommonConfig, TrainConfig
from medr1.evaluation.image_ablation import ImageAblation
from medr1.evaluation.local_predictions import LocalPredictionStore
from medr1.evaluation.predictions import Condition, Prediction
from medr1.models.loading import load_policy, resolve_attn_implementation
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.runs.sweep import sweep_of
from medr1.workflows.library_logs import silence_library_logs
from medr1.workflows.session import Session, prediction_settings, run_controls


def load_model(
    cfg: CommonConfig, path: str, adapter: Path | None = None, *, is_trained: bool = False
) -> tuple[Policy, Processor]:
    """The checkpoint at ``path``, with an adapter on it if one is given, as the config asks for it.

    ``is_trained``: it will be trained, so gradient checkpointing applies.
    """
    silence_library_logs()
    return load_policy(
        path,
        adapter=adapter,
        dtype=str(cfg.model.dtype),
        attn_implementation=attn_implementation(cfg),
        gradient_checkpointing=is_trained and cfg.model.gradient_checkpointing,
        image_size=cfg.data.image_size,
    )


def attn_implementation(cfg: CommonConfig) -> str:
    """The attention implementation that ``model.attn_implementation`` stands for on this machine."""
    return resolve_attn_implementation(str(cfg.model.attn_implementation), str(cfg.model.dtype), device_of(cfg))


def device_of(cfg: CommonConfig) -> torch.device:
    """The device on which a single process runs."""
    accelerator = cfg.trainer.accelerator if isinstance(cfg, TrainConfig) else "auto"
    is_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if is_gpu else "cpu")


def prediction_store(session: Session) -> LocalPredictionStore:
    """The stored and coming predictions of a run."""
    return LocalPredictionStore(**prediction_settings(session), batch_size=session.cfg.evaluation.batch_size)


def evaluate(session: Session, condition: Condition, weights: tuple[str, Path | None]) -> dict[str, list[Prediction]]:
    """Predictions of the model under ``condition``, and of its controls."""
    store = prediction_store(session)
    store.load_if_exists(Condition.BASE)
    policy, processor = load_model(session.cfg, *weights)
    policy.to(device_of(session.cfg))
    if condition is Condition.BASE:
        generate_base(session, store, policy, processor)
    generate = partial(store.generate, policy, processor)
    generate(condition, ImageAblation.NONE)
    run_controls(session, store, generate)
    return store.conditions


def generate_base(session: Session, store: LocalPredictionStore, policy: Policy, processor: Processor) -> None:
    """Predictions of the untrained model. The runs of a sweep that would compute the same share one file."""
    cfg, sweep = session.cfg, sweep_of(session.run)
    if sweep is None:
        store.generate(policy, processor, Condition.BASE)
        return
    inputs = {
        "path": cfg.model.path,
        "dtype": str(cfg.model.dtype),
        "attn_implementation": attn_implementation(cfg),
        "evaluation": cfg.evaluation,
        "mode": cfg.reasoning.mode,
        "image_size": cfg.data.image_size,
        "data": session.data.fingerprint,
    }
    with sweep.shared_answers(inputs) as shared:
        store.generate_or_reuse(shared, policy, processor, Condition.BASE)
