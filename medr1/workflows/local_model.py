"""Loads and evaluates a checkpoint in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh

from medr1.atomic_write import read_json, write_text
from medr1.config.enums import Accelerator, Resize
from medr1.config.settings import CommonConfig, TrainConfig
from medr1.evaluation.local_predictions import LocalPredictionStore
from medr1.evaluation.predictions import Condition, Measure, Prediction
from medr1.generation.engines import ENGINES
from medr1.models.device import device_type
from medr1.models.loading import ModelSpec, load_policy
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.models.sharding import generation, shard
from medr1.runs.run_directory import starting_weights
from medr1.runs.sweep import sweep_of
from medr1.workflows.library_logs import silence_library_logs
from medr1.workflows.session import Session, is_first_process, prediction_settings, run_controls, run_measures


def model_spec(
    cfg: CommonConfig, *, weights: tuple[str, Path | None] | None = None, is_trained: bool = False
) -> ModelSpec:
    """The model of a config, for this machine. ``is_trained``: gradient checkpointing applies.

    ``weights``: a checkpoint, and an adapter on it or None. By default those of ``model.path``, of a run its trained
    model.
    """
    path, adapter = starting_weights(cfg.model.path) if weights is None else weights
    spec = replace(ModelSpec.from_config(cfg.model, cfg.data, device_of(cfg)), path=path, adapter=adapter)
    spec = replace(spec, is_sharded=isinstance(cfg, TrainConfig) and cfg.trainer.is_sharded)
    return spec if is_trained else replace(spec, gradient_checkpointing=False)


@contextmanager
def placed(cfg: CommonConfig, policy: Policy) -> Iterator[Policy]:
    """A loaded policy on the device of this process, ready to generate.

    If the weights are sharded, all processes must enter. One of them may generate; the others take part.
    """
    if not (isinstance(cfg, TrainConfig) and cfg.trainer.is_sharded):
        yield policy.to(device_of(cfg))
        return
    shard(policy, init_device_mesh(device_of(cfg).type, (torch.distributed.get_world_size(),)))
    policy.to(device_of(cfg))  # the buffers
    with generation(policy, gather=cfg.trainer.gather_for_generation):
        yield policy


def load_trained(
    cfg: CommonConfig, weights: tuple[str, Path | None], *, dequantize: bool = False
) -> tuple[Policy, Processor]:
    """Loads a checkpoint, and an adapter on it or None, in place of the base that the config names.

    ``dequantize``: see ``ModelSpec``.
    """
    policy, processor = load_policy(replace(model_spec(cfg, weights=weights), dequantize=dequantize))
    return policy.to(device_of(cfg)), processor


def device_of(cfg: CommonConfig) -> torch.device:
    """The device on which a single process runs."""
    return torch.device(device_type(cfg.trainer.accelerator if isinstance(cfg, TrainConfig) else Accelerator.auto))


def device_name(cfg: CommonConfig) -> str:
    """The device on which a process runs, for people."""
    if device_of(cfg).type == "cuda":
        return torch.cuda.get_device_name()
    return f"cpu ({torch.get_num_threads()} threads)"


def prediction_store(session: Session) -> LocalPredictionStore:
    """The stored and coming predictions of a run."""
    cfg = session.cfg
    return LocalPredictionStore(
        **prediction_settings(session),
        batch_size=cfg.evaluation.batch_size,
        engine=ENGINES[cfg.rollout.kind](cfg.rollout),
        num_workers=cfg.data.dataloader_num_workers,
    )


def evaluate(session: Session, condition: Condition, weights: tuple[str, Path | None]) -> dict[str, list[Prediction]]:
    """Predictions of the model under ``condition``, and of its controls."""
    silence_library_logs()
    store = prediction_store(session)
    store.load_if_exists(Condition.BASE)
    evaluate_weights(session, store, condition, weights)
    return store.conditions


def evaluate_weights(
    session: Session, store: LocalPredictionStore, condition: Condition, weights: tuple[str, Path | None]
) -> None:
    """Adds the predictions of a checkpoint and of its controls to ``store``, in the first process."""
    policy, processor = load_policy(model_spec(session.cfg, weights=weights))
    with placed(session.cfg, policy):
        if is_first_process():
            generate(session, store, policy, processor, condition)
            run_controls(session, store, partial(store.generate, policy, processor))


def generate(
    session: Session, store: LocalPredictionStore, policy: Policy, processor: Processor, condition: Condition
) -> None:
    """Predictions of the model, and the measures that the config asks for.

    The runs of a sweep that would compute the same of the untrained model share one file of each.
    """
    shared = partial(_shared, session, store, condition)
    with shared(condition):
        store.generate(policy, processor, condition)
    run_measures(session, store, condition, partial(store.answer, policy, processor), shared)
    if session.cfg.evaluation.option_probabilities:
        with shared(Measure.OPTION_PROBABILITIES.file(condition), measure=Measure.OPTION_PROBABILITIES):
            store.score_options(policy, processor, condition)


@contextmanager
def _shared(
    session: Session, store: LocalPredictionStore, condition: Condition, name: str, **settings: Any
) -> Iterator[None]:
    """Shares the file ``name`` of the untrained model with the runs of a sweep that have the same ``settings``."""
    cfg, sweep = session.cfg, sweep_of(session.run)
    if sweep is None or condition is not Condition.BASE:
        yield
        return
    square = cfg.data.resize == Resize.square
    inputs = {
        "path": cfg.model.path,
        "weights": read_json(session.run.environment).get("model_fingerprint"),
        "dtype": str(cfg.model.dtype),
        "attn_implementation": model_spec(cfg).attn_implementation,
        "quantization": str(cfg.model.quantization),
        "rollout": cfg.rollout.kind,
        "max_completion_length": cfg.evaluation.max_completion_length,
        "limit": cfg.evaluation.limit,
        "mode": cfg.reasoning.mode,
        "image_size": cfg.data.image_size if square else [cfg.data.min_pixels, cfg.data.max_pixels],
        "data": session.data.fingerprint,
        "records": [record.id for record in store.records],  # which ones evaluation.limit takes may change
        **settings,
    }
    own = store.file(name)
    with sweep.shared_base_predictions(inputs) as shared:
        if shared.is_file() and not own.is_file():
            write_text(own, shared.read_text(encoding="utf-8"))
        yield
        if not shared.is_file():
            write_text(shared, own.read_text(encoding="utf-8"))
