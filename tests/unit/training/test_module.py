"""The base of the training modules: checkpoints, and metrics of all processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from medr1.config.settings import AlgorithmConfig
from medr1.errors import CheckpointError
from medr1.training.module import PolicyModule, check_state


def test_a_checkpoint_must_hold_exactly_what_is_trained() -> None:
    module = torch.nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    check_state(module, {"state_dict": {"weight": module.weight}})
    for state in ({}, {"weight": 0, "bias": 0}, {"other": 0}):
        with pytest.raises(CheckpointError, match="trainable tensors"):
            check_state(module, {"state_dict": state})


def of_two_processes(other: Tensor, *, is_sharded: bool = False) -> PolicyModule:
    """A module in the first of two processes; the other one always contributes the same tensor."""
    module = PolicyModule(torch.nn.Linear(1, 1), AlgorithmConfig(), total_steps=1)  # type: ignore[arg-type]
    module.runtime = SimpleNamespace(  # type: ignore[assignment]
        world_size=2, is_sharded=is_sharded, all_gather=lambda value: torch.stack([value, other])
    )
    return module


def test_rows_of_all_processes_stand_side_by_side() -> None:
    rows, other = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])
    assert of_two_processes(other).gather(rows).tolist() == [[1, 2, 5, 6], [3, 4, 7, 8]]
    assert of_two_processes(other[0]).gather(rows[0]).tolist() == [1, 2, 5, 6]
    assert of_two_processes(other).all_reduce_sum(rows).tolist() == [[6, 8], [10, 12]]


def test_micro_batches_are_split_only_if_the_weights_are_sharded() -> None:
    assert of_two_processes(torch.tensor(3), is_sharded=True).equal_split([4]) == [[[0], [1], [2, 3]]]
    assert of_two_processes(torch.tensor(3)).equal_split([4]) == [[[0, 1, 2, 3]]]
