"""Predicts the memory of a run from its config, its records and the model's config.json, without loading weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import ceil

import torch

from medr1.config.enums import Attention
from medr1.config.settings import ExternalRolloutConfig, TrainConfig
from medr1.data.dataset import Dataset, limit_cells
from medr1.data.image_size import ImageSize
from medr1.domain.reasoning import ReasoningMode, question_text
from medr1.domain.records import Record
from medr1.errors import ConfigError
from medr1.generation.engines import ENGINES
from medr1.models.loading import ModelSpec, load_on_meta, local_tokenizer
from medr1.models.processor import Processor
from medr1.planning.device import GIB, Device, find_device
from medr1.planning.dry_run import Lengths, Workload
from medr1.planning.limits import Run, host_bytes, remedies
from medr1.planning.memory_ledger import Peaks, peak_bytes
from medr1.planning.tables import verdict
from medr1.runs.run_directory import starting_weights
from medr1.training.algorithms import ALGORITHMS
from medr1.workflows.difficulty import num_completions, sampling
from medr1.workflows.session import load_data

_TOKENIZED_TEXTS = 32  # only the longest texts in characters are tokenized
_CHARACTERS_PER_TOKEN = 3  # without a tokenizer; English has more, so that lengths are overestimated
_CHAT_TEMPLATE_TOKENS = 30
_TOKENS_AROUND_IMAGE = 3  # where it begins and ends, and its token in the chat template


@dataclass(frozen=True, slots=True)
class Forecast:
    """A run and its memory on each device. ``lengths`` describes the assumed lengths."""

    run: Run
    peaks: Peaks
    lengths: str

    @property
    def peak(self) -> int:
        return peak_bytes(self.peaks)

    @property
    def highest_phase(self) -> str:
        return max(self.peaks, key=lambda name: sum(self.peaks[name].values()))


def forecast_memory(cfg: TrainConfig, data: Dataset | None = None, device: Device | None = None) -> Forecast:
    """Predicts the memory of a run.

    Raises:
        CheckpointError: the model has no configuration. DataError: the data cannot be used.
    """
    data = data or load_data(cfg)
    run, lengths = _run(cfg, data, device or planned_device(cfg))
    return Forecast(run, run.evaluation() | run.step(), lengths)


def refuse_what_cannot_fit(cfg: TrainConfig, data: Dataset) -> None:
    """Checks before weights are loaded onto a GPU that the run fits. Does nothing on a CPU, which can swap memory.

    Raises:
        ConfigError: the run does not fit; names overrides with which it does.
    """
    device = planned_device(cfg)
    if device.on_gpu:
        check_fits(forecast_memory(cfg, data, device), device)


def check_fits(forecast: Forecast, device: Device) -> None:
    """Checks that a run fits the memory of the device, and what it keeps in main memory that of the machine.

    Raises:
        ConfigError: it does not; names overrides with which it does.
    """
    if forecast.run.work.optimizer_offload and (host := host_bytes(forecast.run)) > device.host_bytes:
        raise ConfigError(
            f"trainer.optimizer_offload=true keeps {host / GIB:.1f} GiB in main memory, of which "
            f"{device.host_bytes / GIB:.1f} GiB are usable; use model.tuning=lora or trainer.optimizer_offload=false"
        )
    if forecast.peak > device.usable_bytes:
        raise ConfigError(_refusal(forecast, device))


def _refusal(forecast: Forecast, device: Device) -> str:
    """The message that a run does not fit, with overrides with which it does."""
    overrides = remedies(forecast.run, device.usable_bytes, device.host_bytes)
    remedy = "; use a smaller model or more devices"
    if overrides:
        remedy = "; any of these makes it fit:\n  " + "\n  ".join(overrides)
    if engine := forecast.run.engine_bytes:
        remedy = f"; vLLM takes {engine / GIB:.1f} GiB, less with a lower rollout.gpu_memory_utilization{remedy}"
    return f"this run {verdict(forecast.peaks, device).replace('does not fit', 'cannot fit')}{remedy}"


def planned_device(cfg: TrainConfig) -> Device:
    """The device that the run is planned for: this machine's, or a GPU of ``plan_memory`` GiB."""
    return find_device(cfg.trainer.accelerator, cfg.trainer.devices, cfg.plan_memory)


def num_parameters(model: ModelSpec) -> int:
    """Parameters of the model without adapters."""
    return sum(p.numel() for p in load_on_meta(replace(model, quantization="none")).parameters())


def _run(cfg: TrainConfig, data: Dataset, device: Device) -> tuple[Run, str]:
    """The run that is planned, and a description of its lengths."""
    model = replace(
        ModelSpec.from_config(cfg.model, cfg.data, torch.device("cpu")), path=starting_weights(cfg.model.path)[0]
    )
    if model.attn_implementation != Attention.eager:  # FlashAttention may not be installed; it keeps what sdpa keeps
        model = replace(model, attn_implementation=str(Attention.sdpa))
    count, origin = _token_counter(model.path)
    grid, image_tokens = _image_grid(model, ImageSize.from_config(cfg.data, cfg.model))
    mode, test = ReasoningMode(cfg.reasoning.mode), limit_cells(data.test, cfg.evaluation.limit)
    validation = limit_cells(data.validation, cfg.evaluation.validation_limit) if cfg.trainer.eval_steps else []
    evaluated = [*test, *validation]  # in batches of the same size
    images, eval_images = (max((len(r.images) for r in records), default=1) for records in (data.train, evaluated))

    def longest(records: list[Record], images: int) -> int:
        others = (images - 1) * _TOKENS_AROUND_IMAGE  # ``count`` includes those of one image
        return images * image_tokens + others + count(_questions(records, mode))

    prompt = longest(data.train, images) if data.train else 0
    eval_prompt = longest(evaluated, eval_images)
    algorithm, completion = ALGORITHMS[cfg.algorithm.kind], 0
    if algorithm.trains:
        completion = algorithm.completion_length(cfg, data.train, count)
    eval_count = max(len(test) * (cfg.evaluation.num_generations or 1), len(validation))
    eval_completion = cfg.evaluation.max_completion_length
    if sampled := num_completions(cfg, data):  # of training records, in the same batches
        eval_prompt, eval_images = max(prompt, eval_prompt), max(images, eval_images)
        eval_count = max(eval_count, sampled)
        eval_completion = max(eval_completion, sampling(cfg).max_completion_length)
    work = Workload(
        settings=cfg.algorithm,
        train_batch_size=cfg.trainer.train_batch_size,
        lengths=Lengths(prompt, completion, grid, images),
        max_tokens_per_device=cfg.trainer.max_tokens_per_device,
        eval_batch_size=min(cfg.evaluation.batch_size, eval_count),
        eval_lengths=Lengths(eval_prompt, eval_completion, grid, eval_images),
        on_gpu=device.on_gpu,
        optimizer_offload=cfg.trainer.optimizer_offload,
        waiting_batches=0 if device.on_gpu else cfg.data.dataloader_num_workers,
    )
    per_prompt = max(images, eval_images)
    shown = (
        f"{image_tokens} of them the image"
        if per_prompt == 1
        else f"{per_prompt * image_tokens} of them {per_prompt} images"
    )
    lengths = (
        f"prompts of at most {max(prompt, eval_prompt)} tokens, {shown}; completions of "
        f"at most {completion or cfg.evaluation.max_completion_length}; {origin}"
    )
    processes, validates = cfg.trainer.processes, cfg.trainer.eval_steps > 0
    gathers = cfg.trainer.gather_for_generation
    here = not isinstance(cfg.rollout, ExternalRolloutConfig)
    run = Run(
        model,
        work,
        processes,
        cfg.trainer.strategy,
        validates=validates,
        gathers=gathers,
        may_quantize=here and not cfg.trainer.is_sharded,
        generates_here=here,
        engine_bytes=int(ENGINES[cfg.rollout.kind].memory_share(cfg.rollout) * device.total),
        scores_options=cfg.evaluation.option_probabilities,
    )
    return run, lengths


def _image_grid(model: ModelSpec, size: ImageSize) -> tuple[tuple[int, int], int]:
    """The sides of the largest image in patches, and its tokens."""
    vision = load_on_meta(model).core.config.vision_config
    merge_size = int(vision.spatial_merge_size)
    columns, rows = (max(1, round(side / (vision.patch_size * merge_size))) for side in size.largest)
    return (rows * merge_size, columns * merge_size), rows * columns


def _questions(records: Iterable[Record], mode: ReasoningMode) -> list[str]:
    return [question_text(r.question, r.options, mode) for r in records]


def _token_counter(path: str) -> tuple[Callable[[list[str]], int], str]:
    """A function that returns the tokens of the longest of some texts as a prompt, and how it counts."""
    tokenizer = local_tokenizer(path)
    if tokenizer is None or tokenizer.chat_template is None:

        def estimate(texts: list[str]) -> int:
            return _CHAT_TEMPLATE_TOKENS + ceil(max(map(len, texts)) / _CHARACTERS_PER_TOKEN)

        return estimate, "lengths estimated, no tokenizer is here"
    processor = Processor(tokenizer, None, lambda *_: None)  # type: ignore[arg-type]

    def count(texts: list[str]) -> int:
        longest = sorted(set(texts), key=len)[-_TOKENIZED_TEXTS:]
        rows = tokenizer([processor.chat(text) for text in longest], add_special_tokens=False)["input_ids"]
        return max(map(len, rows))

    return count, "lengths by the model's tokenizer"
