"""Optimizer and schedule of every algorithm, and the one way in which a step is taken."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ParallelStrategy
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from medr1.errors import CheckpointError
from medr1.models.sharding import full_tensor
from medr1.training.mixed_adamw import MixedPrecisionAdamW


def rate_factor(step: int, steps: int, warmup_ratio: float, lr_scheduler_type: str) -> float:
    """Factor of the learning rate at a step: linear warm-up, then constant, linear or cosine down to zero."""
    warmup = round(steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    if lr_scheduler_type == "constant":
        return 1.0
    progress = (step - warmup) / max(1, steps - warmup)
    return (
        max(0.0, 1 - progress) if lr_scheduler_type == "linear" else 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    )


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float,
    lr_scheduler_type: str,
    warmup_ratio: float,
    steps: int,
    adam_beta2: float,
) -> tuple[AdamW, LambdaLR]:
    """AdamW over what is trained, with a schedule that counts optimizer steps."""
    trained = [p for p in parameters if p.requires_grad]
    kind = AdamW if all(p.dtype == torch.float32 for p in trained) else MixedPrecisionAdamW
    optimizer = kind(trained, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, adam_beta2))
    return optimizer, LambdaLR(optimizer, lambda step: rate_factor(step, steps, warmup_ratio, lr_scheduler_type))


def micro_batches(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of consecutive items whose sizes, in tokens, sum to at most ``budget``; 0 is no limit.

    An item that alone is larger than the budget stands alone.
    """
    parts: list[list[int]] = []
    room = 0
    for index, size in enumerate(sizes):
        if not parts or (budget and size > room):
            parts.append([])
            room = budget
        parts[-1].append(index)
        room -= size
    return parts


def split_to_count(sizes: Sequence[int], count: int) -> list[list[list[int]]]:
    """For each of several parts, the rows of the pieces it is cut into, so that there are ``count`` pieces in all.

    A shard is gathered and reduced by all processes at once, so all must run as many forward and backward passes.
    ``count`` lies between the number of parts and the sum of their ``sizes``.
    """
    cut = [[list(range(size))] for size in sizes]
    for _ in range(count - len(sizes)):
        longest = max((piece for part in cut for piece in part), key=len)
        part = next(part for part in cut if longest in part)
        at, half = part.index(longest), len(longest) // 2
        part[at : at + 1] = [longest[:half], longest[half:]]
    return cut


def take_step(module: pl.LightningModule, losses: Iterable[Tensor], parts: int, max_grad_norm: float) -> Tensor:
    """Backward through ``parts`` losses one after the other, clip, step, schedule. Returns the norm before clipping.

    ``losses`` are this process's shares of the step's loss, and are made lazily: the graph of one is gone before the
    next is built. DDP averages gradients, so shares are scaled up to add up; only the last one is synchronized, so
    that processes may have different numbers of parts.
    """
    optimizer, scheduler = module.optimizers(), module.lr_schedulers()
    assert isinstance(optimizer, Optimizer | pl.core.optimizer.LightningOptimizer) and isinstance(scheduler, LambdaLR)
    optimizer.zero_grad()
    for index, loss in enumerate(losses):
        with _unsynchronized(module) if index < parts - 1 else nullcontext():
            module.manual_backward(loss * module.trainer.world_size)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = full_tensor(torch.nn.utils.clip_grad_norm_(trained, max_grad_norm))
    optimizer.step()
    scheduler.step()
    return norm


def _unsynchronized(module: pl.LightningModule) -> AbstractContextManager[Any]:
    strategy = module.trainer.strategy
    return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()


def all_reduce_sum(module: pl.LightningModule, value: Tensor) -> Tensor:
    """The sum of a scalar over all processes."""
    return _of_all(module, value).sum()


def all_reduce_max(module: pl.LightningModule, number: int) -> int:
    """The largest of the processes' numbers."""
    return int(_of_all(module, torch.tensor(number, device=module.device)).max())


def _of_all(module: pl.LightningModule, value: Tensor) -> Tensor:
    return torch.as_tensor(module.all_gather(value.detach()) if module.trainer.world_size > 1 else value.detach())


def check_state(module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Sees that a checkpoint holds exactly the weights that this module trains.

    Raises:
        CheckpointError: it is another model's, or was trained with another choice of weights.
    """
    wanted = {name for name, p in module.named_parameters() if p.requires_grad}
    found = set(checkpoint["state_dict"])
    if wanted != found:
        odd = sorted(wanted ^ found)
        raise CheckpointError(
            f"the checkpoint holds {len(found)} trained weights where this model has {len(wanted)}; first difference: "
            f"{odd[0]}. Resume with the model and tuning that the run was started with"
        )
