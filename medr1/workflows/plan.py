"""``plan=true``: predicts the memory and time of a run, and whether it fits."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from medr1.config.enums import Quantization
from medr1.config.settings import TrainConfig
from medr1.data.dataset import Dataset, limit_cells
from medr1.data.image_loader import cached_image_loader
from medr1.data.image_size import ImageSize
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.errors import ConfigError, ServerError
from medr1.evaluation.local_predictions import predict
from medr1.generation.engines import ENGINES
from medr1.models.adapters import set_trainable
from medr1.models.device import device_type
from medr1.models.loading import has_local_weights, load_policy
from medr1.planning.device import GIB, Device
from medr1.planning.limits import Run, host_bytes, largest_group, largest_token_limit
from medr1.planning.tables import duration, memory_table, verdict
from medr1.tracking.tracker import NullTracker
from medr1.training.algorithms import ALGORITHMS
from medr1.training.steps import Steps
from medr1.workflows.difficulty import num_completions
from medr1.workflows.forecast import check_fits, forecast_memory, num_parameters, planned_device
from medr1.workflows.library_logs import silence_library_logs
from medr1.workflows.local_model import model_spec
from medr1.workflows.session import load_data, set_max_steps

_PROBE_STEPS, _PROBE_SECONDS = 10, 60.0
_MAX_CPU_PARAMETERS = 100e6  # larger models are not probed on a CPU


def plan(cfg: TrainConfig) -> None:
    """Prints the plan of a run.

    Raises:
        ConfigError: the run does not fit; names overrides with which it does.
    """
    silence_library_logs()
    data = load_data(cfg)
    set_max_steps(cfg, len(data.train))
    device = planned_device(cfg)
    forecast = forecast_memory(cfg, data, device)
    run = forecast.run
    print(f"plan: {_title(cfg, run)}\n{forecast.lengths}\n\n{memory_table(forecast.peaks)}\n")
    print(verdict(forecast.peaks, device))
    if run.work.optimizer_offload:
        print(f"host memory of the optimizer state: {host_bytes(run) / GIB:.2f} GiB")
    check_fits(forecast, device)
    if run.work.num_generations > 1:
        print(f"largest algorithm.num_generations that fits: {largest_group(run, device.usable_bytes)}")
    if run.work.algorithm.trains:
        limit = largest_token_limit(run, device.usable_bytes)
        print(f"largest trainer.max_tokens_per_device that fits: {limit or '0 (the step fits as a whole)'}")
    print(_amounts(cfg, data))
    print(_time(cfg, data, run, device), flush=True)


def _title(cfg: TrainConfig, run: Run) -> str:
    group = f" x {run.work.num_generations} completions" if run.work.num_generations > 1 else ""
    quantized = "" if cfg.model.quantization == Quantization.none else f" on {cfg.model.quantization} weights"
    devices = f", {run.strategy} on {run.processes} devices" if run.processes > 1 else ""
    return (
        f"{cfg.algorithm.name} of {cfg.model.name}, {num_parameters(run.model) / 1e6:,.1f} M parameters in "
        f"{run.model.dtype}{quantized}, tuning={cfg.model.tuning}; a step of {run.work.train_batch_size} prompts{group}"
        f"{devices}"
    )


def _num_evaluations(cfg: TrainConfig) -> int:
    trains = ALGORITHMS[cfg.algorithm.kind].trains
    return 1 + trains + cfg.evaluation.blank_image + cfg.evaluation.shuffled_image


def _num_measured(cfg: TrainConfig, records: Sequence[Record]) -> int:
    """Completions of samples and rotations; the probabilities of a record's options count as one."""
    e, models = cfg.evaluation, 1 + ALGORITHMS[cfg.algorithm.kind].trains
    rotations = e.circular * sum(len(record.options) - 1 for record in records)
    return models * (len(records) * ((e.num_generations or 0) + e.option_probabilities) + rotations)


def _amounts(cfg: TrainConfig, data: Dataset) -> str:
    questions = limit_cells(data.test, cfg.evaluation.limit)
    evaluation = f"{len(questions)} test questions, evaluated {_num_evaluations(cfg)} times"
    if measured := _num_measured(cfg, questions):
        evaluation += f", and {measured} further answers"
    if not ALGORITHMS[cfg.algorithm.kind].trains:
        return evaluation
    assert cfg.trainer.max_steps is not None
    epochs = cfg.trainer.max_steps * cfg.trainer.train_batch_size / len(data.train)
    training = f"{cfg.trainer.max_steps} steps, {epochs:.2g} epochs of {len(data.train)} training questions"
    if completions := num_completions(cfg, data):
        training += f"; before them {completions} completions for pass rates, unless an earlier run has stored them"
        training += ", after which data.filter leaves fewer questions" if cfg.data.filter.pass_rate else ""
    if validations := _num_validations(cfg):
        validation = len(limit_cells(data.validation, cfg.evaluation.validation_limit))
        training += f"; {validation} validation questions, evaluated {validations} times"
    return f"{training}; {evaluation}"


def _num_validations(cfg: TrainConfig) -> int:
    """How often each validation record is evaluated, the blank image included."""
    if not cfg.trainer.eval_steps or not ALGORITHMS[cfg.algorithm.kind].trains:
        return 0
    assert cfg.trainer.max_steps is not None
    return (1 + ceil(cfg.trainer.max_steps / cfg.trainer.eval_steps)) * (1 + cfg.evaluation.blank_image)


@dataclass(frozen=True, slots=True)
class Probe:
    """Measured times: seconds of a step and of a prediction, and the share of a step that is rollout.

    ``steps``: how many were run. ``allocated_bytes``: peak on a GPU, 0 on a CPU.
    """

    step: float
    prediction: float
    rollout_share: float
    steps: int
    allocated_bytes: int


def _time(cfg: TrainConfig, data: Dataset, run: Run, device: Device) -> str:
    size = num_parameters(run.model)
    reason = None
    if not device.is_here:
        reason = "the device is not here"
    elif not has_local_weights(run.model.path):
        reason = "the weights are not on this machine"
    elif not device.on_gpu and size > _MAX_CPU_PARAMETERS:
        reason = f"{size / 1e6:,.0f} M parameters take too long on a CPU"
    if not reason:
        try:
            ENGINES[cfg.rollout.kind].check_available(cfg.rollout, replace(cfg.model, path=run.model.path))
        except (ConfigError, ServerError) as error:
            reason = str(error)
    if reason:
        return f"time: not measured, because {reason}"
    with tempfile.TemporaryDirectory() as scratch, ENGINES[cfg.rollout.kind].opened(cfg.rollout, Path(scratch)):
        measured = probe(cfg, data, run)
    questions = limit_cells(data.test, cfg.evaluation.limit)
    predictions = len(questions) * _num_evaluations(cfg) + _num_measured(cfg, questions)
    predictions += len(limit_cells(data.validation, cfg.evaluation.validation_limit)) * _num_validations(cfg)
    predictions += num_completions(cfg, data)
    seconds = predictions * measured.prediction
    parts = [f"{predictions} predictions of {1000 * measured.prediction:.2g} ms"]
    if run.work.algorithm.trains:
        assert cfg.trainer.max_steps is not None
        seconds += cfg.trainer.max_steps * measured.step
        parts.insert(0, f"{cfg.trainer.max_steps} steps of {measured.step:.2g} s")
    rollout = f", {measured.rollout_share:.0%} of a step is rollout" if measured.rollout_share else ""
    memory = f"; {measured.allocated_bytes / GIB:.2f} GiB were allocated" if measured.allocated_bytes else ""
    local = ", one device's part, without communication" if run.processes > 1 else ""
    return (
        f"time: about {duration(seconds)}: {' and '.join(parts)}{rollout} (measured in {measured.steps} steps and a "
        f"batch of predictions on this {'GPU' if device.on_gpu else 'CPU'}{local}{memory})"
    )


class _Stopwatch(Callback):
    """Measures the seconds of each step with its batch. Stops the training after ``_PROBE_SECONDS``."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self.steps: list[float] = []
        self.rollout_shares: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = self._last = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        now = time.perf_counter()
        self.steps.append(now - self._last)
        if "rollout_time" in trainer.callback_metrics:
            self.rollout_shares.append(float(trainer.callback_metrics["rollout_time"]) / self.steps[-1])
        self._last = now
        trainer.should_stop = trainer.should_stop or now - self._start > _PROBE_SECONDS


def probe(cfg: TrainConfig, data: Dataset, run: Run) -> Probe:
    """Measures one batch of predictions and up to ten training steps. Writes nothing."""
    pl.seed_everything(cfg.seed, verbose=False)
    algorithm = ALGORITHMS[cfg.algorithm.kind]
    policy, processor = load_policy(model_spec(cfg, is_trained=algorithm.trains))
    policy.to("cuda" if run.work.on_gpu else "cpu")
    questions = limit_cells(data.test, cfg.evaluation.limit)[: run.work.eval_batch_size]
    engine = ENGINES[cfg.rollout.kind](cfg.rollout)
    predicted = partial(
        predict,
        policy,
        processor,
        mode=ReasoningMode(cfg.reasoning.mode),
        condition="probe",
        load=cached_image_loader(ImageSize.from_config(cfg.data, cfg.model)),
        batch_size=run.work.eval_batch_size,
        max_completion_length=cfg.evaluation.max_completion_length,
        engine=engine,
    )
    list(predicted(questions[:1]))  # a GPU warms up, and an engine of its own starts and gets the weights
    start = time.perf_counter()
    list(predicted(questions))
    prediction = (time.perf_counter() - start) / len(questions)
    engine.end_evaluation()
    if not algorithm.trains:
        return Probe(0.0, prediction, 0.0, 0, _allocated_bytes(run))
    set_trainable(policy, freeze_vision_tower=run.model.freeze_vision_tower, lora=run.model.lora)
    local_trainer = replace(cfg.trainer, train_batch_size=run.local_work.train_batch_size)
    training = algorithm.build(replace(cfg, trainer=local_trainer), data, policy, processor, NullTracker())
    assert cfg.trainer.max_steps is not None
    steps, iterations = min(_PROBE_STEPS, cfg.trainer.max_steps), algorithm.num_iterations(cfg.algorithm)
    watch = _Stopwatch()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = pl.Trainer(
            accelerator=device_type(cfg.trainer.accelerator),
            devices=1,
            max_steps=steps * iterations,
            limit_train_batches=steps,
            max_epochs=1,
            logger=False,
            callbacks=[watch],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=scratch,
        )
        workers = cfg.data.dataloader_num_workers
        training.module.optimizer_offload = cfg.trainer.optimizer_offload
        trainer.fit(training.module, Steps(training.make_batch, trainer, steps, iterations, workers))
    measured = watch.steps[1:] or watch.steps  # the first step is slower
    rollout_share = median(watch.rollout_shares) if watch.rollout_shares else 0.0
    return Probe(median(measured), prediction, rollout_share, len(watch.steps), _allocated_bytes(run))


def _allocated_bytes(run: Run) -> int:
    return torch.cuda.max_memory_allocated() if run.work.on_gpu else 0
