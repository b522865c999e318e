"""Training in half precision collects updates that are smaller than a weight's own steps."""

from __future__ import annotations

import copy

import pytest
import torch

from medr1.config.settings import AlgorithmConfig
from medr1.training.mixed_adamw import MixedPrecisionAdamW
from medr1.training.offloaded_adamw import OffloadedAdamW
from medr1.training.optimizer import build_optimizer

SETTINGS = {"lr": 1e-6, "weight_decay": 0.1, "betas": (0.9, 0.99)}


def weights(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.nn.Parameter((0.02 * torch.randn(shape, generator=generator)).bfloat16().to(dtype))
        for shape in ((7, 5), (3,))
    ]


def train(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        for index, parameter in enumerate(parameters):
            generator = torch.Generator().manual_seed(100 * step + index)
            gradient = 0.5 + torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient.bfloat16().to(parameter.dtype)
        optimizer.step()


def test_bfloat16_weights_are_rounded_float32_weights() -> None:
    low, exact = weights(torch.bfloat16), weights(torch.float32)
    rounded = weights(torch.bfloat16)
    optimizers = (
        MixedPrecisionAdamW(low, **SETTINGS),
        torch.optim.AdamW(exact, **SETTINGS),
        torch.optim.AdamW(rounded, **SETTINGS),
    )
    for parameters, optimizer in zip((low, exact, rounded), optimizers, strict=True):
        train(parameters, optimizer, range(300))
    start = weights(torch.bfloat16)
    for a, b, c, before in zip(low, exact, rounded, start, strict=True):
        assert torch.equal(a, b.bfloat16())
        assert torch.equal(optimizers[0].state[a]["master"], b)
        assert not torch.equal(a, before), "300 updates of 1e-6 are more than half a step of bfloat16"
        assert not torch.equal(a, c), "without the copy they are lost"


@pytest.mark.parametrize("kind", [MixedPrecisionAdamW, OffloadedAdamW])
def test_resumed_equals_uninterrupted_bit_for_bit(kind: type[MixedPrecisionAdamW]) -> None:
    uninterrupted, first = weights(torch.bfloat16), weights(torch.bfloat16)
    optimizer = kind(uninterrupted, **SETTINGS)
    train(uninterrupted, optimizer, range(20))
    interrupted = kind(first, **SETTINGS)
    train(first, interrupted, range(10))
    stored = copy.deepcopy(interrupted.state_dict())
    assert set(stored["state"][0]) == {"step", "master", "exp_avg", "exp_avg_sq"}
    again = [torch.nn.Parameter(p.detach().clone()) for p in first]
    resumed = kind(again, **SETTINGS)
    resumed.load_state_dict(stored)
    train(again, resumed, range(10, 20))
    for a, b in zip(uninterrupted, again, strict=True):
        assert torch.equal(a, b)
        expected, found = optimizer.state_of(a)[0], resumed.state_of(b)[0]
        for name in ("master", "exp_avg", "exp_avg_sq"):
            assert found[name].dtype == torch.float32
            assert torch.equal(expected[name], found[name])


@pytest.mark.parametrize(
    ("dtypes", "kind"),
    [
        ((torch.float32,), torch.optim.AdamW),
        ((torch.bfloat16,), MixedPrecisionAdamW),
        ((torch.bfloat16, torch.float32), MixedPrecisionAdamW),
    ],
)
def test_the_optimizer_has_float32_copies_if_weights_are_in_half_precision(
    dtypes: tuple[torch.dtype, ...], kind: type
) -> None:
    parameters = [weights(dtype)[0] for dtype in dtypes]
    optimizer, _ = build_optimizer(parameters, AlgorithmConfig(learning_rate=1e-6), total_steps=1)
    assert type(optimizer) is kind
