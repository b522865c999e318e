"""What a run will need of its device, from the config, the records and the model's config.json alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import ceil

import torch
from omegaconf import DictConfig

from medr1.config.enums import Attention
from medr1.config.schema import typed
from medr1.data.dataset import Dataset, limit_cells, load_dataset
from medr1.domain.reasoning import ReasoningMode, question_text, target_text
from medr1.domain.records import Record
from medr1.errors import ConfigError
from medr1.generation.sampling import Sampling
from medr1.models.loading import ModelSpec, load_on_meta, local_tokenizer
from medr1.models.processor import Processor
from medr1.planning.device import Device, find_device
from medr1.planning.limits import Run, peak_bytes, remedies
from medr1.planning.rehearsal import Job, Lengths, Peaks
from medr1.planning.tables import verdict

_LONGEST = 32  # texts that are counted in tokens: the longest in characters
_CHARACTERS = 3  # to a token, where there is no tokenizer: fewer than English has, so that lengths are rather too large
_TURN = 30  # tokens of a chat template around a question


@dataclass(frozen=True, slots=True)
class Forecast:
    """A run, its memory on each device, and where the lengths of its texts are from."""

    run: Run
    peaks: Peaks
    lengths: str

    @property
    def peak(self) -> int:
        return peak_bytes(self.peaks)

    @property
    def highest(self) -> str:
        return max(self.peaks, key=lambda name: sum(self.peaks[name].values()))


def forecast_memory(cfg: DictConfig, data: Dataset | None = None, device: Device | None = None) -> Forecast:
    """The memory of the run that the config asks for, from the model's configuration and the records alone.

    Raises:
        CheckpointError: no configuration of the model. DataError: no data.
    """
    data = data or load_dataset(typed(cfg.data), cfg.modality.name, cfg.question_type.name)
    device = device or device_of(cfg)
    run, lengths = _run(cfg, data, device)
    return Forecast(run, run.answers() | run.step(), lengths)


def refuse_what_cannot_fit(cfg: DictConfig, data: Dataset) -> None:
    """Before weights are loaded onto a GPU. Where there is none, memory can be swapped, and nothing is refused.

    Raises:
        ConfigError: the run cannot fit; says what to change.
    """
    device = device_of(cfg)
    if device.on_gpu:
        forecast = forecast_memory(cfg, data, device)
        if forecast.peak > device.usable_bytes:
            raise ConfigError(refusal(forecast, device))


def refusal(forecast: Forecast, device: Device) -> str:
    """Why the run cannot be, and what to change: nothing that was not rehearsed and found to fit."""
    found = remedies(forecast.run, device.usable_bytes)
    what = (
        "; any of these makes it fit:\n  " + "\n  ".join(found) if found else "; take a smaller model or more devices"
    )
    return f"this run {verdict(forecast.peaks, device).replace('does not fit', 'cannot fit')}{what}"


def device_of(cfg: DictConfig) -> Device:
    """Where the run is to take place."""
    return find_device(str(cfg.trainer.accelerator), int(cfg.trainer.devices), cfg.plan_memory)


def _run(cfg: DictConfig, data: Dataset, device: Device) -> tuple[Run, str]:
    a = cfg.algorithm
    spec = ModelSpec.from_config(cfg.model, torch.device("cpu"), int(cfg.data.image_size))
    if spec.attn_implementation != Attention.eager:  # FlashAttention may not be installed; it keeps what sdpa keeps
        spec = replace(spec, attn_implementation=str(Attention.sdpa))
    count, origin = _counter(spec.path)
    grid, image = _grid(spec, int(cfg.data.image_size))
    mode, test = ReasoningMode(cfg.reasoning.mode), limit_cells(data.test, cfg.evaluation.limit)
    prompts = image + count(_questions(data.train, mode)) if data.train else 0
    sampling = None
    if "sampling" in a:
        s = a.sampling
        completion = int(s.max_completion_length)
        sampling = Sampling(completion, 0, (1,), temperature=s.temperature, top_p=s.top_p, top_k=s.top_k)
    else:
        rationale = bool(a.get("rationale", False))
        completion = 1 + count(target_text(mode, r.answer, r.rationale if rationale else "") for r in data.train)
    eval_batch_size = image + count(_questions(test, mode))
    job = Job(
        prompts=int(cfg.trainer.train_batch_size),
        num_generations=int(a.get("num_generations", 0)),
        lengths=Lengths(prompts, completion, grid),
        max_tokens_per_device=int(cfg.trainer.max_tokens_per_device),
        updates=0 if a.name == "zero_shot" else int(a.get("num_iterations", 1)),
        with_reference=sampling is not None and a.objective.beta > 0,
        sampling=sampling,
        eval_batch_size=min(int(cfg.evaluation.batch_size), len(test)),
        eval_lengths=Lengths(eval_batch_size, int(cfg.evaluation.max_completion_length), grid),
        on_gpu=device.on_gpu,
    )
    texts = (
        f"prompts of at most {max(prompts, eval_batch_size)} tokens, {image} of them the picture; "
        f"completions of at most {completion}; {origin}"
    )
    return Run(spec, job, int(cfg.trainer.devices) * int(cfg.trainer.num_nodes), str(cfg.trainer.strategy)), texts


def _grid(spec: ModelSpec, size: int) -> tuple[tuple[int, int], int]:
    """The sides of a picture in patches, and its tokens."""
    vision = load_on_meta(spec).core.config.vision_config
    merge = int(vision.spatial_merge_size)
    side = max(1, round(size / (vision.patch_size * merge)))
    return (side * merge, side * merge), side * side


def parameters(spec: ModelSpec) -> int:
    """Of the model, without adapters."""
    return sum(p.numel() for p in load_on_meta(spec).parameters())


def _questions(records: Iterable[Record], mode: ReasoningMode) -> list[str]:
    return [question_text(r.question, r.options, mode) for r in records]


def _counter(path: str) -> tuple[Callable[[Iterable[str]], int], str]:
    """The length in tokens of the longest of some texts, and how it is known."""
    tokenizer = local_tokenizer(path)
    if tokenizer is None or tokenizer.chat_template is None:
        return lambda texts: _TURN + ceil(max(map(len, texts)) / _CHARACTERS), "lengths estimated, no tokenizer is here"
    processor = Processor(tokenizer, None, lambda *_: None)  # type: ignore[arg-type]

    def count(texts: Iterable[str]) -> int:
        longest = sorted(set(texts), key=len)[-_LONGEST:]
        rows = tokenizer([processor.chat(text) for text in longest], add_special_tokens=False)["input_ids"]
        return max(map(len, rows))

    return count, "lengths by the model's tokenizer"
