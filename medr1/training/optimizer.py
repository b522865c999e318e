"""AdamW and the schedule of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from medr1.config.enums import LRSchedulerType
from medr1.config.settings import AlgorithmConfig
from medr1.training.mixed_adamw import MixedPrecisionAdamW
from medr1.training.offloaded_adamw import OffloadedAdamW


def learning_rate_factor(step: int, total_steps: int, warmup_ratio: float, lr_scheduler_type: str) -> float:
    """Factor of the learning rate in a step: linear warm-up, then constant, linear or cosine decay to zero."""
    warmup = round(total_steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    if lr_scheduler_type == LRSchedulerType.constant:
        return 1.0
    progress = (step - warmup) / max(1, total_steps - warmup)
    if lr_scheduler_type == LRSchedulerType.linear:
        return max(0.0, 1 - progress)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter], settings: AlgorithmConfig, total_steps: int, *, offload: bool = False
) -> tuple[AdamW, LambdaLR]:
    """AdamW over the trainable parameters, and a schedule over ``total_steps`` optimizer steps.

    With parameters in half precision it is ``MixedPrecisionAdamW``, with ``offload`` ``OffloadedAdamW``.
    """
    trained = [p for p in parameters if p.requires_grad]
    is_full_precision = all(p.dtype == torch.float32 for p in trained)
    cls: type[AdamW] = OffloadedAdamW if offload else AdamW if is_full_precision else MixedPrecisionAdamW
    betas = (0.9, settings.adam_beta2)
    optimizer = cls(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=betas)

    def factor(step: int) -> float:
        return learning_rate_factor(step, total_steps, settings.warmup_ratio, settings.lr_scheduler_type)

    return optimizer, LambdaLR(optimizer, factor)
