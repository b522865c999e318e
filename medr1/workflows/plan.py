"""``plan=true``: what a run needs, before anything of it is loaded, and whether it fits."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback

from medr1.data.image_loader import cached_image_loader
from medr1.data.sources.registry import Dataset, limit_cells, load_dataset
from medr1.domain.reasoning import ReasoningMode
from medr1.errors import ConfigError
from medr1.evaluation.generate import predict
from medr1.models.adapters import set_trainable
from medr1.models.loading import has_local_weights, load_policy
from medr1.planning.device import GIB, Device
from medr1.planning.limits import Run, largest_budget, largest_group
from medr1.planning.tables import duration, memory_table, verdict
from medr1.training.algorithms import build_algorithm, count_steps
from medr1.training.order import Steps
from medr1.workflows.forecast import device_of, forecast_memory, parameters, refusal
from medr1.workflows.train import model_spec, silence_library_logs

_PROBE_STEPS, _PROBE_SECONDS = 10, 60.0
_SMALL = 100e6  # parameters of a model whose probe a CPU can afford


def plan(cfg: DictConfig) -> None:
    """Prints the plan of a run.

    Raises:
        ConfigError: the run cannot fit; says what to change.
    """
    silence_library_logs()
    data = load_dataset(cfg.data, cfg.modality.name, cfg.question_type.name)
    count_steps(cfg, len(data.train))
    device = device_of(cfg)
    forecast = forecast_memory(cfg, data, device)
    run, job = forecast.run, forecast.run.job
    print(f"plan: {_title(cfg, run)}\n{forecast.lengths}\n\n{memory_table(forecast.peaks)}\n")
    print(verdict(forecast.peaks, device))
    if forecast.peak > device.usable_bytes:
        raise ConfigError(refusal(forecast, device))
    if job.num_generations:
        print(f"largest algorithm.num_generations that fits: {largest_group(run, device.usable_bytes)}")
    if job.updates:
        budget = largest_budget(run, device.usable_bytes)
        says = f"{budget}" if budget else "none is needed, a step goes through whole (trainer.max_tokens_per_device=0)"
        print(f"largest trainer.max_tokens_per_device that fits: {says}")
    print(_amount(cfg, data))
    print(_time(cfg, data, run, device), flush=True)


def _title(cfg: DictConfig, run: Run) -> str:
    size = parameters(run.spec)
    group = f" x {run.job.num_generations} completions" if run.job.num_generations else ""
    devices = f", {run.strategy} on {run.processes} devices" if run.processes > 1 else ""
    return (
        f"{cfg.algorithm.name} of {cfg.model.name}, {size / 1e6:,.1f} M parameters in {run.spec.dtype}, "
        f"tuning={cfg.model.tuning}; a step of {run.job.prompts} prompts{group}{devices}"
    )


def _conditions(cfg: DictConfig) -> int:
    trained = 0 if cfg.algorithm.name == "zero_shot" else 1
    return 1 + trained + int(cfg.evaluation.blank_image) + int(cfg.evaluation.shuffled_image)


def _amount(cfg: DictConfig, data: Dataset) -> str:
    questions = len(limit_cells(data.test, cfg.evaluation.limit))
    asked = f"{questions} test questions, asked {_conditions(cfg)} times"
    if cfg.algorithm.name == "zero_shot":
        return asked
    epochs = cfg.trainer.max_steps * cfg.trainer.train_batch_size / len(data.train)
    steps = f"{cfg.trainer.max_steps} steps, {epochs:.2g} epochs of {len(data.train)} training questions"
    return f"{steps}; {asked}"


@dataclass(frozen=True, slots=True)
class Probe:
    """Seconds of a step and of an answer, and the share of a step that is rollout; ``steps`` were taken, and ``peak``
    bytes of a GPU."""

    step: float
    answer: float
    rollout: float
    steps: int
    peak: int


def _time(cfg: DictConfig, data: Dataset, run: Run, device: Device) -> str:
    size = parameters(run.spec)
    why = None
    if not device.is_here:
        why = "the device is not here"
    elif not has_local_weights(run.spec.path):
        why = "the weights are not on this machine"
    elif not device.on_gpu and size > _SMALL:
        why = f"{size / 1e6:,.0f} M parameters take too long on a CPU"
    if why:
        return f"time: not probed, because {why}"
    done = probe(cfg, data, run)
    questions = len(limit_cells(data.test, cfg.evaluation.limit)) * _conditions(cfg)
    training = int(cfg.trainer.max_steps) * done.step if run.job.updates else 0.0
    answering = questions * done.answer
    parts = [f"{cfg.trainer.max_steps} steps of {done.step:.2g} s"] if run.job.updates else []
    parts.append(f"{questions} answers of {1000 * done.answer:.2g} ms")
    share = f", {done.rollout:.0%} of a step is rollout" if done.rollout else ""
    memory = f"; {done.peak / GIB:.2f} GiB were allocated then" if done.peak else ""
    alone = ", one device's share, without what devices tell each other" if run.processes > 1 else ""
    return (
        f"time: about {duration(training + answering)}: {' and '.join(parts)}{share} "
        f"(from {done.steps} steps and a batch of answers on this {'GPU' if device.on_gpu else 'CPU'}{alone}{memory})"
    )


class _Stopwatch(Callback):
    """Seconds of each step, its batch included. Ends the training when it has taken long enough."""

    def __init__(self) -> None:
        self.create = self.last = time.perf_counter()
        self.steps: list[float] = []
        self.shares: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.create = self.last = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        now = time.perf_counter()
        self.steps.append(now - self.last)
        seconds = trainer.callback_metrics
        if "time/rollout" in seconds:
            self.shares.append(float(seconds["time/rollout"]) / self.steps[-1])
        self.last = now
        trainer.should_stop = trainer.should_stop or now - self.create > _PROBE_SECONDS


def probe(cfg: DictConfig, data: Dataset, run: Run) -> Probe:
    """Ten real steps, or as many as a minute has, and one batch of answers. Nothing is written."""
    pl.seed_everything(cfg.seed, verbose=False)
    load = cached_image_loader(int(cfg.data.image_size))
    policy, processor = load_policy(model_spec(cfg, is_trained=bool(run.job.updates)))
    policy.to("cuda" if run.job.on_gpu else "cpu")
    questions = limit_cells(data.test, cfg.evaluation.limit)[: run.job.eval_batch_size]
    start = time.perf_counter()
    predict(
        policy,
        processor,
        questions,
        ReasoningMode(cfg.reasoning.mode),
        "probe",
        load=load,
        batch_size=run.job.eval_batch_size,
        max_completion_length=run.job.eval_lengths.completion,
    )
    answer = (time.perf_counter() - start) / len(questions)
    if not run.job.updates:
        return Probe(0.0, answer, 0.0, 0, _allocated(run))
    set_trainable(policy, freeze_vision_tower=run.spec.freeze_vision_tower, lora=run.spec.lora)
    share: Any = OmegaConf.merge(cfg, {"trainer": {"train_batch_size": run.share.prompts}})
    module, make = build_algorithm(share, data, policy, processor, load)
    steps, watch = min(_PROBE_STEPS, int(cfg.trainer.max_steps)), _Stopwatch()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = pl.Trainer(
            accelerator=cfg.trainer.accelerator,
            devices=1,
            max_steps=steps * run.job.updates,
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
        trainer.fit(module, Steps(make, trainer, steps, run.job.updates))
    counted = watch.steps[1:] or watch.steps  # the first one warms up
    rollout = median(watch.shares) if watch.shares else 0.0
    return Probe(median(counted), answer, rollout, len(watch.steps), _allocated(run))


def _allocated(run: Run) -> int:
    return torch.cuda.max_memory_allocated() if run.job.on_gpu else 0
