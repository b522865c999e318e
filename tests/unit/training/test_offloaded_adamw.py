"""The optimizer whose state is in host memory takes the steps of the one whose state is on the device."""

from __future__ import annotations

import pytest
import torch
from lightning_fabric.utilities.optimizer import _optimizer_to_device

from medr1.config.settings import AlgorithmConfig
from medr1.training.mixed_adamw import MixedPrecisionAdamW
from medr1.training.offloaded_adamw import OffloadedAdamW
from medr1.training.optimizer import build_optimizer
from tests.unit.training.test_mixed_adamw import SETTINGS, train, weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_updates_are_those_of_adamw(dtype: torch.dtype) -> None:
    here, host = weights(dtype), weights(dtype)
    train(here, MixedPrecisionAdamW(here, **SETTINGS | {"lr": 1e-3}), range(50))
    train(host, OffloadedAdamW(host, **SETTINGS | {"lr": 1e-3}), range(50))
    # One rounding of a bfloat16 weight, because the fused update adds in another order.
    tolerance = {"rtol": 1e-2, "atol": 0.0} if dtype is torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-7}
    for a, b, before in zip(here, host, weights(dtype), strict=True):
        torch.testing.assert_close(a, b, **tolerance)
        assert not torch.equal(b, before)


def test_small_updates_of_bfloat16_are_collected() -> None:
    parameters = weights(torch.bfloat16)
    train(parameters, OffloadedAdamW(parameters, **SETTINGS), range(300))
    assert not torch.equal(parameters[0], weights(torch.bfloat16)[0])


def test_the_state_stays_in_host_memory() -> None:
    """Lightning moves the state of an optimizer to the device of the weights when it loads a checkpoint."""
    parameters = weights(torch.bfloat16)
    optimizer = OffloadedAdamW(parameters, **SETTINGS)
    train(parameters, optimizer, range(2))
    _optimizer_to_device(optimizer, torch.device("meta"))
    state = optimizer.state_dict()["state"]
    assert {value.device.type for of in state.values() for value in of.values()} == {"cpu"}


def test_weights_without_gradients_are_left_alone() -> None:
    parameters = weights(torch.float32)
    optimizer = OffloadedAdamW(parameters, **SETTINGS)
    parameters[0].grad = torch.ones_like(parameters[0])
    optimizer.step()
    assert torch.equal(parameters[1], weights(torch.float32)[1]) and list(optimizer.state_dict()["state"]) == [0]


def test_the_learning_rate_follows_its_schedule() -> None:
    parameters = weights(torch.float32)
    settings = AlgorithmConfig(learning_rate=1e-3, warmup_ratio=1.0)
    optimizer, scheduler = build_optimizer(parameters, settings, total_steps=4, offload=True)
    assert type(optimizer) is OffloadedAdamW
    moved = []
    for _ in range(2):
        before = parameters[1].detach().clone()
        parameters[1].grad = torch.ones_like(before)
        optimizer.step()
        scheduler.step()
        moved.append(float((before - parameters[1].detach()).mean()))
    assert moved == pytest.approx([0.25e-3, 0.5e-3], rel=0.02)
