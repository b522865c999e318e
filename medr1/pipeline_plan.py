"""``plan=true``: what a run needs, before anything of it is loaded, and whether it fits."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback

from medr1.algorithms import build_algorithm
from medr1.config_choices import Tuning
from medr1.data.pictures import picture_loader
from medr1.data.source import Dataset, limit_cells, load_dataset
from medr1.errors import ConfigError
from medr1.evaluation.predict import predict
from medr1.planning.device import GIB, Device, find_device
from medr1.planning.limits import Run, largest_budget, largest_group, need, remedies
from medr1.planning.page import duration, memory_table, verdict
from medr1.planning.rehearsal import Job, Lengths, ModelSpec, Peaks
from medr1.policy.encoding import Encoder
from medr1.policy.loading import choose_trained, has_weights, load_policy, local_tokenizer, outline
from medr1.reasoning import ReasoningMode, question_text, target_text
from medr1.records import Record
from medr1.rl.rollout import Sampling
from medr1.training.order import Steps

_LONGEST = 32  # texts that are counted in tokens: the longest in characters
_CHARACTERS = 3  # to a token, where there is no tokenizer: fewer than English has, so that lengths are rather too large
_TURN = 30  # tokens of a chat template around a question
_PROBE_STEPS, _PROBE_SECONDS = 10, 60.0
_SMALL = 100e6  # parameters of a model whose probe a CPU can afford


@dataclass(frozen=True, slots=True)
class Forecast:
    """A run, its memory on each device, and where the lengths of its texts are from."""

    run: Run
    peaks: Peaks
    lengths: str

    @property
    def peak(self) -> int:
        return need(self.peaks)

    @property
    def highest(self) -> str:
        return max(self.peaks, key=lambda name: sum(self.peaks[name].values()))


def foresee(cfg: DictConfig, data: Dataset | None = None, device: Device | None = None) -> Forecast:
    """The memory of the run that the config asks for, from the model's configuration and the records alone.

    Raises:
        CheckpointError: no configuration of the model. DataError: no data.
    """
    data = data or load_dataset(cfg.data, cfg.modality.name, cfg.question_type.name)
    device = device or _device(cfg)
    run, lengths = _run(cfg, data, device)
    return Forecast(run, run.answers() | run.step(), lengths)


def refuse_what_cannot_fit(cfg: DictConfig, data: Dataset) -> None:
    """Before weights are loaded onto a GPU. Where there is none, memory can be swapped, and nothing is refused.

    Raises:
        ConfigError: the run cannot fit; says what to change.
    """
    device = _device(cfg)
    if device.on_gpu:
        forecast = foresee(cfg, data, device)
        if forecast.peak > device.room:
            raise ConfigError(_refusal(forecast, device))


def plan(cfg: DictConfig) -> None:
    """Prints the plan of a run.

    Raises:
        ConfigError: the run cannot fit; says what to change.
    """
    data = load_dataset(cfg.data, cfg.modality.name, cfg.question_type.name)
    device = _device(cfg)
    forecast = foresee(cfg, data, device)
    run, job = forecast.run, forecast.run.job
    print(f"plan: {_title(cfg, run)}\n{forecast.lengths}\n\n{memory_table(forecast.peaks)}\n")
    print(verdict(forecast.peaks, device))
    if forecast.peak > device.room:
        raise ConfigError(_refusal(forecast, device))
    if job.group_size:
        print(f"largest algorithm.group_size that fits: {largest_group(run, device.room)}")
    if job.updates:
        budget = largest_budget(run, device.room)
        says = f"{budget}" if budget else "none is needed, a step goes through whole (trainer.token_budget=0)"
        print(f"largest trainer.token_budget that fits: {says}")
    print(_amount(cfg, data))
    print(_time(cfg, data, run, device), flush=True)


def _refusal(forecast: Forecast, device: Device) -> str:
    found = remedies(forecast.run, device.room)
    what = "; any of these makes it fit:\n  " + "\n  ".join(found) if found else "; take a smaller model or more devices"
    return f"this run {verdict(forecast.peaks, device).replace('does not fit', 'cannot fit')}{what}"


def _device(cfg: DictConfig) -> Device:
    return find_device(str(cfg.trainer.accelerator), int(cfg.trainer.devices), cfg.plan_memory)


def _run(cfg: DictConfig, data: Dataset, device: Device) -> tuple[Run, str]:
    a, lora = cfg.algorithm, cfg.model.lora
    spec = ModelSpec(
        path=str(cfg.model.path),
        precision=str(cfg.model.precision),
        # Without its library the class cannot be made, and it keeps what torch's own attention keeps.
        attention="eager" if cfg.model.attention == "eager" else "sdpa",
        gradient_checkpointing=bool(cfg.model.gradient_checkpointing),
        freeze_vision=bool(cfg.model.freeze_vision),
        lora=(lora.rank, lora.alpha, str(lora.targets)) if cfg.model.tuning == Tuning.lora else None,
    )
    count, origin = _counter(spec.path)
    grid, image = _grid(spec, int(cfg.data.image_size))
    mode, test = ReasoningMode(cfg.reasoning.mode), limit_cells(data.test, cfg.evaluation.limit)
    prompts = image + count(_questions(data.train, mode)) if data.train else 0
    sampling = None
    if "sampling" in a:
        s = a.sampling
        completion = int(s.max_new_tokens)
        sampling = Sampling(completion, 0, (1,), temperature=s.temperature, top_p=s.top_p, top_k=s.top_k)
    else:
        rationale = bool(a.get("rationale", False))
        completion = 1 + count(target_text(mode, r.answer, r.rationale if rationale else "") for r in data.train)
    asked = image + count(_questions(test, mode))
    job = Job(
        prompts=int(cfg.trainer.prompts_per_step),
        group_size=int(a.get("group_size", 0)),
        lengths=Lengths(prompts, completion, grid),
        token_budget=int(cfg.trainer.token_budget),
        updates=0 if a.name == "zero_shot" else int(a.get("updates_per_rollout", 1)),
        with_reference=sampling is not None and a.objective.beta > 0,
        sampling=sampling,
        asked=min(int(cfg.evaluation.batch_size), len(test)),
        asked_lengths=Lengths(asked, int(cfg.evaluation.max_new_tokens), grid),
        on_gpu=device.on_gpu,
    )
    longest = max(prompts, asked)
    texts = f"prompts of at most {longest} tokens, {image} of them the picture; completions of at most {completion}; {origin}"
    return Run(spec, job, int(cfg.trainer.devices) * int(cfg.trainer.num_nodes), str(cfg.trainer.strategy)), texts


def _grid(spec: ModelSpec, size: int) -> tuple[tuple[int, int], int]:
    """The sides of a picture in patches, and its tokens."""
    policy = outline(spec.path, precision=spec.precision, attention=spec.attention, gradient_checkpointing=False)
    vision = policy.core.config.vision_config
    merge = int(vision.spatial_merge_size)
    side = max(1, round(size / (vision.patch_size * merge)))
    return (side * merge, side * merge), side * side


def _questions(records: Iterable[Record], mode: ReasoningMode) -> list[str]:
    return [question_text(r.question, r.options, mode) for r in records]


def _counter(path: str) -> tuple[Callable[[Iterable[str]], int], str]:
    """The length in tokens of the longest of some texts, and how it is known."""
    tokenizer = local_tokenizer(path)
    if tokenizer is None or tokenizer.chat_template is None:
        return lambda texts: _TURN + ceil(max(map(len, texts)) / _CHARACTERS), "lengths estimated, no tokenizer is here"
    encoder = Encoder(tokenizer, None, lambda *_: None)  # type: ignore[arg-type, return-value]

    def count(texts: Iterable[str]) -> int:
        longest = sorted(set(texts), key=len)[-_LONGEST:]
        rows = tokenizer([encoder.chat(text) for text in longest], add_special_tokens=False)["input_ids"]
        return max(map(len, rows))

    return count, "lengths by the model's tokenizer"


def _title(cfg: DictConfig, run: Run) -> str:
    size = sum(p.numel() for p in run.spec.build(training=False).parameters())
    group = f" x {run.job.group_size} completions" if run.job.group_size else ""
    devices = f", {run.strategy} on {run.processes} devices" if run.processes > 1 else ""
    return (
        f"{cfg.algorithm.name} of {cfg.model.name}, {size / 1e6:,.1f} M parameters in {run.spec.precision}, "
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
    epochs = cfg.trainer.steps * cfg.trainer.prompts_per_step / len(data.train)
    return f"{cfg.trainer.steps} steps, {epochs:.2g} times through {len(data.train)} training questions; {asked}"


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
    size = sum(p.numel() for p in run.spec.build(training=False).parameters())
    why = None
    if not device.is_here:
        why = "the device is not here"
    elif not has_weights(run.spec.path):
        why = "the weights are not on this machine"
    elif not device.on_gpu and size > _SMALL:
        why = f"{size / 1e6:,.0f} M parameters take too long on a CPU"
    if why:
        return f"time: not probed, because {why}"
    done = probe(cfg, data, run)
    questions = len(limit_cells(data.test, cfg.evaluation.limit)) * _conditions(cfg)
    training = int(cfg.trainer.steps) * done.step if run.job.updates else 0.0
    answering = questions * done.answer
    parts = [f"{cfg.trainer.steps} steps of {done.step:.2g} s"] if run.job.updates else []
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
        self.begin = self.last = time.perf_counter()
        self.steps: list[float] = []
        self.shares: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begin = self.last = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        now = time.perf_counter()
        self.steps.append(now - self.last)
        seconds = trainer.callback_metrics
        if "time/rollout" in seconds:
            self.shares.append(float(seconds["time/rollout"]) / self.steps[-1])
        self.last = now
        trainer.should_stop = trainer.should_stop or now - self.begin > _PROBE_SECONDS


def probe(cfg: DictConfig, data: Dataset, run: Run) -> Probe:
    """Ten real steps, or as many as a minute has, and one batch of answers. Nothing is written."""
    pl.seed_everything(cfg.seed, verbose=False)
    load = picture_loader(int(cfg.data.image_size))
    policy, encoder = load_policy(
        run.spec.path,
        precision=run.spec.precision,
        attention=str(cfg.model.attention),
        gradient_checkpointing=run.spec.gradient_checkpointing and bool(run.job.updates),
    )
    policy.to("cuda" if run.job.on_gpu else "cpu")
    questions = limit_cells(data.test, cfg.evaluation.limit)[: run.job.asked]
    start = time.perf_counter()
    predict(
        policy,
        encoder,
        questions,
        ReasoningMode(cfg.reasoning.mode),
        "probe",
        load=load,
        batch_size=run.job.asked,
        max_new_tokens=run.job.asked_lengths.completion,
    )
    answer = (time.perf_counter() - start) / len(questions)
    if not run.job.updates:
        return Probe(0.0, answer, 0.0, 0, _allocated(run))
    choose_trained(policy, freeze_vision=run.spec.freeze_vision, lora=run.spec.lora)
    share = OmegaConf.merge(cfg, {"trainer": {"prompts_per_step": run.share.prompts}})
    module, make = build_algorithm(share, data, policy, encoder, load)
    steps, watch = min(_PROBE_STEPS, int(cfg.trainer.steps)), _Stopwatch()
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
