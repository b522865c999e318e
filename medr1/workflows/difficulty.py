"""Chooses and orders the training records of a run by the pass rates of the model that its training starts from."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medr1 import __version__
from medr1.config.checkpoints import fingerprint
from medr1.config.enums import Curriculum, Resize
from medr1.config.schema import marked_keys
from medr1.config.settings import SamplingConfig, TrainConfig
from medr1.data.dataset import Dataset
from medr1.data.image_loader import cached_image_loader
from medr1.data.image_size import ImageSize
from medr1.domain.reasoning import ReasoningMode
from medr1.evaluation.local_predictions import LocalPredictionStore
from medr1.evaluation.pass_rates import (
    PassRate,
    SampleCache,
    read_pass_rates,
    with_pass_rates,
    write_pass_rates,
)
from medr1.evaluation.prediction_store import Request
from medr1.generation.engines import ENGINES
from medr1.models.loading import load_policy
from medr1.runs.run_directory import RunDirectory, starting_weights
from medr1.training.algorithms import ALGORITHMS
from medr1.workflows.local_model import load_trained, model_spec
from medr1.workflows.session import is_first_process

log = logging.getLogger(__name__)

_WAIT_SECONDS = 1.0  # between two looks of a process at whether the first one has generated all completions


def choose_records(cfg: TrainConfig, run: RunDirectory, data: Dataset) -> Dataset:
    """The data with the training records that ``data.filter`` lets through, and their pass rates if
    ``data.curriculum`` orders them.

    The first process generates what no earlier run has; the others wait for it. A resumed run takes the pass rates that
    it has stored.

    Raises:
        DataError: no record is left, or the data of a resumed run has changed.
    """
    if not num_completions(cfg, data):
        return data
    is_stored = cfg.resume is not None and run.pass_rates.is_file()
    rates = read_pass_rates(run.pass_rates) if is_stored else _measured(cfg, data)
    chosen = with_pass_rates(
        data, rates, cfg.data.filter.pass_rate, curriculum=cfg.data.curriculum is Curriculum.pass_rate
    )
    if is_first_process() and not is_stored:
        write_pass_rates(run.pass_rates, rates)
    return chosen


def num_completions(cfg: TrainConfig, data: Dataset) -> int:
    """How many completions the pass rates of the training records take; 0 if nothing is chosen or ordered by them."""
    if not cfg.data.needs_pass_rates or not ALGORITHMS[cfg.algorithm.kind].trains_base:
        return 0
    return len(data.train) * cfg.data.filter.num_generations


def sampling(cfg: TrainConfig) -> SamplingConfig:
    """How completions are sampled for pass rates: as in training, but from all tokens.

    ``top_k`` and ``top_p`` of an algorithm are left out, so that all algorithms have the same pass rates.
    """
    training = ALGORITHMS[cfg.algorithm.kind].sampling(cfg.algorithm)
    training = training or SamplingConfig(max_completion_length=cfg.model.recipe.max_completion_length)
    given = cfg.data.filter.temperature
    return SamplingConfig(
        training.temperature if given is None else given, max_completion_length=training.max_completion_length
    )


def _measured(cfg: TrainConfig, data: Dataset) -> list[PassRate]:
    """The pass rates of all training records, from the cache as far as it has them."""
    n, cache = cfg.data.filter.num_generations, _cache(cfg)
    while True:
        with cache.lock():
            requests = cache.missing(data.train, n)
            if requests and is_first_process():
                _generate(cfg, cache, requests, num_completions(cfg, data))
                requests = []
            elif is_first_process():
                log.info("the pass rates of %d training records are in %s", len(data.train), cache.file)
            if not requests:
                return cache.pass_rates(data.train, n)
        time.sleep(_WAIT_SECONDS)


def _generate(cfg: TrainConfig, cache: SampleCache, requests: list[Request], total: int) -> None:
    log.info("%d of %d completions for pass rates are generated into %s", len(requests), total, cache.file)
    sampled = sampling(cfg)
    store = LocalPredictionStore(
        records=[],
        mode=cache.mode,
        load=cached_image_loader(ImageSize.from_config(cfg.data, cfg.model)),
        file=Path,
        max_completion_length=sampled.max_completion_length,
        temperature=sampled.temperature,
        seed=cfg.data.filter.seed,
        batch_size=cfg.evaluation.batch_size,
        engine=ENGINES[cfg.rollout.kind](cfg.rollout),
        num_workers=cfg.data.dataloader_num_workers,
    )
    policy, processor = load_trained(cfg, starting_weights(cfg.model.path))
    policy.eval()
    cache.add(requests, lambda wanted: store.answer(policy, processor, wanted))
    store.engine.end_evaluation()


def _cache(cfg: TrainConfig) -> SampleCache:
    sampled, square = sampling(cfg), cfg.data.resize == Resize.square
    unhashed = set(marked_keys(cfg.rollout, "is_hashed", False))
    settings: dict[str, Any] = {
        "medr1": __version__,
        "model": _model_fingerprint(cfg),
        "dtype": str(cfg.model.dtype),
        "attn_implementation": model_spec(cfg).attn_implementation,
        "quantization": str(cfg.model.quantization),
        "rollout": {key: value for key, value in asdict(cfg.rollout).items() if key not in unhashed},
        "image_size": cfg.data.image_size if square else [cfg.data.min_pixels, cfg.data.max_pixels],
        "temperature": sampled.temperature,
        "max_completion_length": sampled.max_completion_length,
        "seed": cfg.data.filter.seed,
    }
    return SampleCache(Path(cfg.output_dir).absolute() / "cache", settings, ReasoningMode(cfg.reasoning.mode))


def _model_fingerprint(cfg: TrainConfig) -> str:
    """Identifies the weights that training starts from. Those of a hub id are downloaded first."""
    weights = starting_weights(cfg.model.path)
    found = fingerprint(*weights)
    if found is None:
        load_policy(model_spec(cfg))
        found = fingerprint(*weights)
    assert found is not None
    return found
