"""Which records a step trains on: a function of the seed and the step alone, so that a run resumes at any step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader, IterableDataset

from medr1.data.prefetch import prefetch

B = TypeVar("B")


def step_indices(
    records: int, train_batch_size: int, seed: int, step: int, pass_rates: Sequence[float] = ()
) -> list[int]:
    """Indices of the records of one step. Each epoch is a new permutation of all records.

    ``pass_rates`` of all records: each epoch then goes from the highest to the lowest, and only records with the same
    one change places.
    """
    positions = range(step * train_batch_size, (step + 1) * train_batch_size)
    epochs = {position // records for position in positions}
    orders = {epoch: np.random.default_rng((seed, epoch)).permutation(records) for epoch in epochs}
    if pass_rates:
        falling = -np.asarray(pass_rates)
        orders = {epoch: order[np.argsort(falling[order], kind="stable")] for epoch, order in orders.items()}
    return [int(orders[position // records][position % records]) for position in positions]


def local_share(indices: Sequence[int], rank: int, world_size: int) -> tuple[list[int], int]:
    """The part of the global batch that one process trains on, and the position at which it begins."""
    size = len(indices) // world_size
    return list(indices[rank * size : (rank + 1) * size]), rank * size


class StepStream(IterableDataset[B]):
    """The batches ``make(step)`` for step = ``first`` ... ``steps`` - 1, made in advance by ``num_workers`` threads.

    ``seconds_waited``: how long the caller has waited for batches so far.
    """

    def __init__(self, make: Callable[[int], B], first: int, steps: int, num_workers: int = 0) -> None:
        super().__init__()
        self.make, self.first, self.steps, self.num_workers = make, first, steps, num_workers
        self.seconds_waited = 0.0

    def __iter__(self) -> Iterator[B]:
        batches = prefetch(self.make, range(self.first, self.steps), self.num_workers)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.seconds_waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch


class Steps(pl.LightningDataModule):
    """The batches of the steps that are left.

    ``make_batch(step, rank, world_size)`` returns a batch; each training step has ``num_iterations`` optimizer steps.
    ``num_workers``: see ``StepStream``.
    After a resume Lightning calls ``train_dataloader`` with the step count restored. The loader therefore begins with
    the step at which the run stopped; an ordinary loader would begin with the first batch again.
    """

    def __init__(
        self,
        make_batch: Callable[[int, int, int], Any],
        trainer: pl.Trainer,
        steps: int,
        num_iterations: int,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self._make_batch, self._trainer, self._steps, self._num_iterations = make_batch, trainer, steps, num_iterations
        self._num_workers = num_workers
        self._stream: StepStream[Any] | None = None

    @property
    def first_step(self) -> int:
        """The step at which training begins: 0, or that of the checkpoint that Lightning has restored."""
        return int(self._trainer.global_step // self._num_iterations)

    @property
    def seconds_waited(self) -> float:
        """How long training has waited for batches so far."""
        return 0.0 if self._stream is None else self._stream.seconds_waited

    def train_dataloader(self) -> DataLoader[Any]:
        first = self.first_step
        rank, world_size = self._trainer.global_rank, self._trainer.world_size
        self._stream = StepStream(
            lambda step: self._make_batch(step, rank, world_size), first, self._steps, self._num_workers
        )
        # Without the loader's own workers, which are processes: each would have an image cache of its own, and turn
        # errors into text.
        return DataLoader(self._stream, batch_size=None)
