"""Wires everything: data, policy, training, evaluation, tracking. Only it and ``algorithms`` read the whole config."""

from __future__ import annotations

import gc
import logging
import math
import os
import shutil
import signal
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import transformers
from omegaconf import DictConfig, OmegaConf, read_write
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from medr1.config.settings import CommonConfig, EvaluateConfig, TrainConfig
from medr1.config.validate import is_server
from medr1.data.image_loader import ImageLoader
from medr1.data.sources.registry import Dataset, load_dataset
from medr1.evaluation.local_predictions import LocalPredictionStore
from medr1.evaluation.predictions import Condition, Prediction
from medr1.models.adapters import set_trainable
from medr1.models.export import save_policy
from medr1.models.loading import ModelSpec, load_policy, resolve_attn_implementation
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.runs.run_directory import RunDirectory, write_json
from medr1.runs.sweep import sweep_of
from medr1.tracking.tracker import AnyTracker, NullTracker
from medr1.training.algorithms import ALGORITHMS
from medr1.training.callbacks import Curves, ProgressBar
from medr1.training.checkpoint_io import SafetensorsCheckpointIO
from medr1.training.distributed import ShardedStrategy, build_strategy
from medr1.training.steps import Steps
from medr1.workflows.evaluate_server import generate_on_server
from medr1.workflows.forecast import refuse_what_cannot_fit
from medr1.workflows.session import (
    evaluation,
    log_start,
    prediction_store_settings,
    report,
    run_controls,
    start_tracker,
)

log = logging.getLogger(__name__)


def train(cfg: DictConfig, run_dir: Path, overrides: list[str]) -> None:
    """Trains, evaluates and logs one run, or continues it from where it was stopped."""
    run, resumed = RunDirectory(run_dir), cfg.resume is not None
    if resumed:
        cfg = run.stored_config(TrainConfig)
    with run.lock() if _is_first_process() else nullcontext():
        _train(cfg, run, overrides, resumed)


def count_steps(cfg: Any, records: int) -> None:
    if cfg.trainer.max_steps is None:
        with read_write(cfg) if isinstance(cfg, DictConfig) else nullcontext():
            cfg.trainer.max_steps = math.ceil(cfg.trainer.num_train_epochs * records / cfg.trainer.train_batch_size)


def _train(cfg: DictConfig, run: RunDirectory, overrides: list[str], resumed: bool) -> None:
    OmegaConf.set_readonly(cfg, True)
    silence_library_logs()
    pl.seed_everything(cfg.seed, verbose=False)
    data = load_dataset(cfg.data, cfg.modality.name, cfg.question_type.name)
    count_steps(cfg, len(data.train))
    first = _is_first_process()
    if first:
        for message in data.messages:
            log.info(message)
        if not resumed and not is_server(cfg) and cfg.algorithm.name != "pretrain":
            refuse_what_cannot_fit(OmegaConf.to_object(cfg), data)
        if not resumed:
            facts = {"data_fingerprint": data.fingerprint, "data": data.facts, "attn_implementation": _attention(cfg)}
            run.create(cfg, overrides, facts)
    with start_tracker(cfg, run, resumed) if first else NullTracker() as tracker:
        if first:
            log_start(tracker, cfg, run, data)
        conditions = _train_and_answer(cfg, run, data, tracker, resumed)
        if first:
            report(cfg, run, data, conditions, tracker, int(cfg.trainer.max_steps))
    if first:  # not before MLflow knows, or it is kept what MLflow is to know: the rest is only to be sent
        write_json(run.finished, {"summary": run.summary.name})


def evaluate(cfg: DictConfig, run_dir: Path, overrides: list[str]) -> None:
    """Evaluates a finished run again, or a model as it is; or continues an evaluation from where it was stopped."""
    run, resumed = RunDirectory(run_dir), cfg.resume is not None
    if resumed:
        cfg = run.stored_config(EvaluateConfig)
    adapter: Path | None = None
    if cfg.run is None:
        path, condition = str(cfg.model.path), Condition.BASE
    else:
        finished = RunDirectory(Path(cfg.run).absolute())
        limit, uri, output_dir = cfg.evaluation.limit, cfg.tracking, cfg.output_dir
        stored = finished.stored_config(TrainConfig)
        shared = {item.name: stored[item.name] for item in fields(CommonConfig)}
        cfg = OmegaConf.create({**shared, "run": str(finished.path), "output_dir": output_dir, "tracking": uri})
        cfg.evaluation.limit = limit if limit is not None else cfg.evaluation.limit
        path, adapter = finished.weights(str(cfg.model.path))
        condition = Condition.TRAINED
    silence_library_logs()
    pl.seed_everything(cfg.seed, verbose=False)
    with evaluation(cfg, run, overrides, resumed, {"attn_implementation": _attention(cfg)}) as (data, tracker):
        policy, processor = load_policy(replace(model_spec(cfg), path=path, adapter=adapter))
        policy.to(_device(cfg))
        answers = _answers(cfg, run, data)
        answers.generate(policy, processor, condition)
        run_controls(cfg, answers, partial(answers.generate, policy, processor), data)
        report(cfg, run, data, answers.conditions, tracker, 0)


def _train_and_answer(
    cfg: DictConfig, run: RunDirectory, data: Dataset, tracker: AnyTracker, resumed: bool
) -> dict[str, list[Prediction]]:
    """Base answers, training, and the trained model's answers; whatever is there already is not done again.

    All processes train, and the first one asks.
    """
    first, trained = _is_first_process(), resumed and run.model.is_dir()
    if not first and (trained or is_server(cfg) or cfg.algorithm.name == "zero_shot"):
        return {}
    answers = _answers(cfg, run, data)
    if first:
        answers.load_if_exists(Condition.BASE)
    pretraining = cfg.algorithm.name == "pretrain"
    if is_server(cfg):
        return generate_on_server(cfg, run, data)
    if cfg.algorithm.name == "zero_shot":
        policy, processor = load_policy(model_spec(cfg))
        _ask_base(cfg, run, data, answers, policy.to(_device(cfg)), processor)
        run_controls(cfg, answers, partial(answers.generate, policy, processor), data)
        return answers.conditions
    if trained:
        log.info("training has ended before; its model is read from %s", run.model)
    else:
        if pretraining:
            policy, processor = ALGORITHMS[cfg.algorithm.kind].initial_policy(OmegaConf.to_object(cfg))
        else:
            policy, processor = load_policy(model_spec(cfg, is_trained=True))
        if first and not pretraining:
            _ask_base(cfg, run, data, answers, policy.to(_device(cfg)), processor)
        pl.seed_everything(cfg.seed, verbose=False)  # new adapters are the same in every process, and after a resume
        set_trainable(policy, freeze_vision_tower=cfg.model.freeze_vision_tower, lora=model_spec(cfg).lora)
        checkpoint = run.latest_checkpoint() if resumed else None
        state = _fit(cfg, run, data, policy, processor, tracker, answers.load, checkpoint)
        if not first:
            return {}
        _store_model(policy, processor, run, state)
        del policy, state
        gc.collect()  # module and trainer, with the optimizer's state, refer to each other
    # From the files, not from memory: what is evaluated is what evaluate.py will find.
    path, adapter = run.weights(str(cfg.model.path))
    policy, processor = load_policy(replace(model_spec(cfg), path=path, adapter=adapter))
    policy.to(_device(cfg))
    answers.generate(policy, processor, Condition.TRAINED)
    run_controls(cfg, answers, partial(answers.generate, policy, processor), data)
    return answers.conditions


def _fit(
    cfg: DictConfig,
    run: RunDirectory,
    data: Dataset,
    policy: Policy,
    processor: Processor,
    tracker: AnyTracker,
    load: ImageLoader,
    checkpoint: Path | None,
) -> Mapping[str, Tensor] | None:
    """Trains. Returns the weights of the trained model where the policy itself holds shards of them."""
    steps = int(cfg.trainer.max_steps)
    algorithm, settings = ALGORITHMS[cfg.algorithm.kind], OmegaConf.to_object(cfg)
    training = algorithm.build(settings, data, policy, processor, tracker)
    callbacks: list[Callback] = [ProgressBar(), Curves(tracker, cfg.trainer.logging_steps), *training.callbacks]
    updates = algorithm.num_iterations(settings.algorithm)
    callbacks.append(
        ModelCheckpoint(
            dirpath=run.checkpoints,
            filename="{step}",
            every_n_train_steps=cfg.trainer.save_steps * updates,
            save_top_k=1,
            monitor=None,
            enable_version_counter=False,
        )
    )
    strategy = build_strategy(cfg.trainer.strategy)
    trainer = pl.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=cfg.trainer.devices,
        num_nodes=cfg.trainer.num_nodes,
        strategy=strategy,
        max_steps=steps * updates,
        limit_train_batches=steps,
        max_epochs=1,
        logger=False,
        callbacks=callbacks,
        plugins=[SafetensorsCheckpointIO()],
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=run.path,
    )
    if checkpoint is not None:
        log.info("continuing from %s", checkpoint)
    try:
        trainer.fit(training.module, Steps(training.make_batch, trainer, steps, updates), ckpt_path=checkpoint)
    except BaseException:
        if trainer.strategy.launcher is not None:  # the processes it has started would wait for this one
            trainer.strategy.launcher.kill(signal.SIGKILL)
        raise
    return strategy.full_state_dict if isinstance(strategy, ShardedStrategy) else None


def _answers(cfg: DictConfig, run: RunDirectory, data: Dataset) -> LocalPredictionStore:
    return LocalPredictionStore(**prediction_store_settings(cfg, run, data), batch_size=cfg.evaluation.batch_size)


def _ask_base(
    cfg: DictConfig,
    run: RunDirectory,
    data: Dataset,
    answers: LocalPredictionStore,
    policy: Policy,
    processor: Processor,
) -> None:
    """The untrained model; in a sweep, runs that ask it the same share one file of answers."""
    sweep = sweep_of(run)
    if sweep is None:
        answers.generate(policy, processor, Condition.BASE)
        return
    question = {
        "path": str(cfg.model.path),
        "dtype": str(cfg.model.dtype),
        "attn_implementation": _attention(cfg),
        **cfg.evaluation,
        "mode": cfg.reasoning.mode,
        "size": cfg.data.image_size,
        "data": data.fingerprint,
    }
    with sweep.shared_answers(question) as shared:
        answers.generate_or_reuse(shared, policy, processor, Condition.BASE)


def _store_model(policy: Policy, processor: Processor, run: RunDirectory, state: Mapping[str, Tensor] | None) -> None:
    """Writes the trained weights in one step: model/ is there whole or not at all."""
    partial = run.path / ".model.partial"
    if partial.exists():
        shutil.rmtree(partial)
    save_policy(policy, processor, partial, state)
    partial.rename(run.model)


def model_spec(cfg: DictConfig, *, is_trained: bool = False) -> ModelSpec:
    """The model of a config. ``is_trained``: it will be trained, so gradient checkpointing applies."""
    spec = ModelSpec.from_config(cfg.model, _device(cfg), int(cfg.data.image_size))
    return spec if is_trained else replace(spec, gradient_checkpointing=False)


def _attention(cfg: DictConfig) -> str | None:
    """What ``model.attn_implementation`` means on this machine; None for a model elsewhere."""
    if is_server(cfg):
        return None
    return resolve_attn_implementation(str(cfg.model.attn_implementation), str(cfg.model.dtype), _device(cfg))


def _device(cfg: DictConfig) -> torch.device:
    wanted = cfg.trainer.accelerator if hasattr(cfg, "trainer") else "auto"
    return torch.device("cuda" if wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu")


def _is_first_process() -> bool:
    """Whether this process writes files and tracks. Known before Lightning has started the others, from what it or
    another launcher (torchrun, SLURM) has put into the environment."""
    return not getattr(rank_zero_only, "rank", 0) and int(os.environ.get("NODE_RANK", "0")) == 0


def silence_library_logs() -> None:
    """Leaves to the terminal what the user asked for: what libraries say of settings chosen on purpose is dropped."""
    for name in ("pytorch_lightning", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*in eval mode at the start of training.*",  # no dropout: what is scored must be the policy that sampled
        ".*overridden `transfer_batch_to_device`.*",
        ".*ModelCheckpoint with manual optimization.*",  # checkpoints are of the state after the step, as they should
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*functional.all_gather is deprecated.*",  # which Lightning calls
        ".*Checkpoint directory .* exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
