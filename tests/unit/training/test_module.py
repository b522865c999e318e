"""The base of the training modules: checkpoints, metrics of all processes, and the optimizer step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

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


class NoRecords:
    """The batch of the first step, without content."""

    step = 0

    def to(self, device: torch.device) -> NoRecords:
        return self


class TwoMicroBatches(PolicyModule):
    """Takes a step of gradient descent. The gradients of its micro-batches, (10, 2) and (-4, 6), have a sum of norm 10.

    Each element belongs to another parameter.
    """

    norm = 0.0

    def step(self, batch: Any) -> dict[str, Tensor]:
        x, y = self.policy.parameters()
        losses = (a * x.sum() + b * y.sum() for a, b in ((10, 2), (-4, 6)))
        self.norm = float(self.update(losses, 2))
        return {}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.policy.parameters(), lr=0.5)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)}

    def train_dataloader(self) -> Any:
        return DataLoader([NoRecords()], collate_fn=lambda batches: batches[0])  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("limit", "step"), [(2.5, (0.75, 1.0)), (10.5, (3.0, 4.0))])
def test_the_step_is_no_longer_than_the_maximum_norm_and_the_norm_is_the_one_before(
    limit: float, step: tuple[float, float]
) -> None:
    module = TwoMicroBatches(torch.nn.Linear(1, 1), AlgorithmConfig(max_grad_norm=limit), total_steps=1)  # type: ignore[arg-type]
    before = [p.item() for p in module.policy.parameters()]
    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    pl.Trainer(max_steps=1, accelerator="cpu", enable_checkpointing=False, **quiet).fit(module)
    after = [p.item() for p in module.policy.parameters()]
    assert module.norm == pytest.approx(10)
    assert [a - b for a, b in zip(before, after, strict=True)] == pytest.approx(step, rel=1e-5)
