"""Checkpoints on disk, and ways to damage them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medr1.models.loading import ModelSpec, load_policy
from medr1.models.policy import Policy
from medr1.models.processor import Processor

SIZES = [(2, 2), None, (3, 2)]
WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"
Damage = Callable[[Path], object]


def load(path: Path, adapter: Path | None = None, checkpointing: bool = False) -> tuple[Policy, Processor]:
    return load_policy(ModelSpec(str(path), gradient_checkpointing=checkpointing, adapter=adapter))


def logits(policy: Policy, processor: Processor, make_prompts) -> Tensor:
    return policy.logits(policy.prefill(processor.encode(make_prompts(processor, SIZES))).hidden)


def edit_json(name: str, **changes: object) -> Damage:
    def apply(path: Path) -> None:
        content = json.loads((path / name).read_text()) | changes
        (path / name).write_text(json.dumps(content))

    return apply


def edit_config(**changes: object) -> Damage:
    return edit_json("config.json", **changes)


def edit_weights(name: str, change: Callable[[dict[str, Tensor]], object]) -> Damage:
    def apply(path: Path) -> None:
        weights = load_file(path / name)
        change(weights)
        save_file(weights, path / name, metadata={"format": "pt"})

    return apply


def as_pickle(name: str, pickle: str) -> Damage:
    def apply(path: Path) -> None:
        torch.save(load_file(path / name), path / pickle)
        (path / name).unlink()

    return apply


def cut(name: str, end: int) -> Damage:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:end])


def write(name: str, text: str) -> Damage:
    return lambda path: (path / name).write_text(text)


def remove(pattern: str) -> Damage:
    return lambda path: [file.unlink() for file in path.glob(pattern)]
