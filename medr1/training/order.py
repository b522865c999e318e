"""Which records a step trains on: a function of the seed and the step alone, so that nothing has to be remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader, IterableDataset

Batch = TypeVar("Batch")


def step_indices(records: int, train_batch_size: int, seed: int, step: int) -> list[int]:
    """Indices of the global batch of one step: every record once in each epoch, each epoch in its own order."""
    wanted = range(step * train_batch_size, (step + 1) * train_batch_size)
    orders = {
        epoch: np.random.default_rng((seed, epoch)).permutation(records) for epoch in {p // records for p in wanted}
    }
    return [int(orders[p // records][p % records]) for p in wanted]


def share(indices: Sequence[int], rank: int, world_size: int) -> tuple[list[int], int]:
    """The part of the global batch that one process trains on, and its place in it."""
    size = len(indices) // world_size
    return list(indices[rank * size : (rank + 1) * size]), rank * size


class StepStream(IterableDataset[Batch]):
    """Batches of the steps from ``first`` up to ``steps``, made by a function of the step."""

    def __init__(self, make: Callable[[int], Batch], first: int, steps: int) -> None:
        super().__init__()
        self.make, self.first, self.steps = make, first, steps

    def __iter__(self) -> Iterator[Batch]:
        return (self.make(step) for step in range(self.first, self.steps))


class Steps(pl.LightningDataModule):
    """The steps that are left to do, each process's share of them.

    ``make`` gives the batch of a step, a rank and a world size. Lightning restores the step count before it asks for
    the loader, and restarts a loader of its own from the first batch; this one begins where the run stopped.
    """

    def __init__(self, make: Callable[[int, int, int], Any], trainer: pl.Trainer, steps: int, updates: int) -> None:
        super().__init__()
        self._make, self._trainer, self._steps, self._updates = make, trainer, steps, updates

    def train_dataloader(self) -> DataLoader[Any]:
        first = self._trainer.global_step // self._updates
        rank, world_size = self._trainer.global_rank, self._trainer.world_size
        stream = StepStream(lambda step: self._make(step, rank, world_size), first, self._steps)
        return DataLoader(stream, batch_size=None)
