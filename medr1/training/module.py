"""The base of the training modules: optimizer, optimizer step, checkpoints and logging."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, Protocol, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ParallelStrategy
from torch import Tensor

from medr1.config.settings import AlgorithmConfig
from medr1.errors import CheckpointError
from medr1.models.policy import Policy
from medr1.models.sharding import full_tensor, is_sharded, local_tensor
from medr1.training.micro_batches import split_to_count
from medr1.training.optimizer import build_optimizer
from medr1.training.stability import SkippedSteps, check_weights

log = logging.getLogger(__name__)


class Batch(Protocol):
    """The prompts of one step in one process."""

    step: int

    def to(self, device: torch.device) -> Self: ...


class Runtime:
    """The parts of Lightning's Trainer that a step uses; memory planning substitutes its own."""

    def __init__(self, module: PolicyModule) -> None:
        self._module = module

    @property
    def world_size(self) -> int:
        return self._module.trainer.world_size

    @property
    def is_sharded(self) -> bool:
        """Whether every process holds a shard of the weights (FSDP)."""
        return is_sharded(self._module.policy)

    @property
    def optimizer(self) -> Any:
        return self._module.optimizers()

    @property
    def scheduler(self) -> Any:
        return self._module.lr_schedulers()

    def all_gather(self, value: Tensor) -> Tensor:
        """The tensors [...] of all processes, stacked: [W, ...]."""
        return torch.as_tensor(self._module.all_gather(value)) if self.world_size > 1 else value.unsqueeze(0)

    def all_finite(self, values: Sequence[Tensor]) -> bool:
        """Whether all values are finite in all processes, which get the same answer."""
        local = [value for value in map(local_tensor, values) if value.numel()]
        # The maximum norm, because the sum of the squares of finite values may overflow.
        largest = torch.nn.utils.get_total_norm(local, float("inf")).to(self._module.device, torch.float32)
        return bool(torch.isfinite(self.all_gather(largest)).all())

    def backward(self, loss: Tensor, *, synchronize: bool) -> None:
        """Adds to the gradients. DDP averages them over all processes if ``synchronize``."""
        strategy = self._module.trainer.strategy
        context: AbstractContextManager[Any] = nullcontext()
        if isinstance(strategy, ParallelStrategy) and not synchronize:
            context = strategy.block_backward_sync()
        with context:
            self._module.manual_backward(loss)

    def phase(self, name: str) -> AbstractContextManager[Any]:
        """Hook around a phase (step, rollout, reference, update, optimizer). Only memory planning overrides it."""
        return nullcontext()


class PolicyModule(pl.LightningModule):
    """Trains a policy. A subclass defines ``step``: the forward passes and losses of one training step.

    ``reference``: the frozen reference policy; not saved in checkpoints.
    ``total_steps``: optimizer steps of the whole training, for the schedule of the learning rate.
    ``optimizer_offload``: ``trainer.optimizer_offload``, which the workflow sets for modules of all algorithms.
    """

    optimizer_offload = False

    on_progress_bar: ClassVar[tuple[str, ...]] = ("train/loss",)

    def __init__(
        self,
        policy: Policy,
        optimizer: AlgorithmConfig,
        *,
        total_steps: int,
        max_tokens_per_device: int = 0,
        reference: Policy | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold the trained weights; check_state requires all of them
        self.policy, self.optimizer_settings, self.total_steps = policy, optimizer, total_steps
        self.max_tokens_per_device = max_tokens_per_device
        # In a tuple, so that Lightning neither trains, saves nor synchronizes it.
        self._references = () if reference is None else (reference,)
        self.runtime = Runtime(self)
        self._seconds: dict[str, Tensor] = {}
        self._skipped, self._step = SkippedSteps(), 0

    def step(self, batch: Any) -> dict[str, Tensor]:
        """Takes the optimizer steps of one training step. Returns its metrics, which are equal in all processes."""
        raise NotImplementedError

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policy, and the reference if it is a policy of its own."""
        return (self.policy, *self._references)

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = build_optimizer(
            self.policy.parameters(), self.optimizer_settings, self.total_steps, offload=self.optimizer_offload
        )
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def on_fit_start(self) -> None:
        for reference in self._references:
            if not is_sharded(reference):
                reference.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.policy.trained_state("policy.")
        checkpoint["skipped_steps"] = self._skipped.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_state(self, checkpoint)
        if "skipped_steps" in checkpoint:
            self._skipped.load(checkpoint["skipped_steps"])

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self._seconds.clear()
        self._step = batch.step
        with self.phase("step"):
            metrics = self.step(batch)
        metrics["skipped_steps"] = torch.tensor(self._skipped.total)
        metrics["learning_rate"] = torch.tensor(self.runtime.scheduler.get_last_lr()[0])
        for name, value in (metrics | self._seconds).items():
            value = value.to(self.device, torch.float32)
            self.log(name, value, prog_bar=name in self.on_progress_bar, batch_size=1)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a phase of the step as the metric ``<name>_time``, and marks it for the runtime."""
        start = time.perf_counter()
        with self.runtime.phase(name):
            yield
        self._seconds[f"{name}_time"] = torch.tensor(time.perf_counter() - start)

    def update(self, losses: Iterable[Tensor], count: int) -> Tensor:
        """Runs the backward passes of ``count`` losses, clips the gradients, and steps optimizer and schedule.

        ``losses`` are this process's parts of the loss, one for each micro-batch. They are computed lazily: one graph
        is freed before the next is built. DDP averages gradients over processes, so each part is multiplied by the
        number of processes. Only the last backward pass synchronizes, so processes may have different numbers of
        micro-batches. If the loss or the gradient is not finite, weights and optimizer state stay as they are.
        Returns the gradient norm before clipping.

        Raises:
            TrainingError: too many such steps in a row, or weights that are not finite.
        """
        optimizer, scheduler = self.runtime.optimizer, self.runtime.scheduler
        values: list[Tensor] = []
        for index, loss in enumerate(losses):
            self.runtime.backward(loss * self.runtime.world_size, synchronize=index == count - 1)
            values.append(loss.detach())
        with self.runtime.phase("optimizer"):
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            norm = full_tensor(torch.nn.utils.clip_grad_norm_(trained, self.optimizer_settings.max_grad_norm))
            is_skipped = not self.runtime.all_finite([*values, norm])
            if is_skipped:
                optimizer.zero_grad()
            # Without gradients it changes nothing, but Lightning counts the step: a resumed run begins at this count.
            optimizer.step()
            scheduler.step()
            self._check(trained, values, norm, is_skipped)
        optimizer.zero_grad()  # gives their memory to the next rollout, and to vLLM on the same device
        return norm

    def _check(self, trained: list[Tensor], losses: list[Tensor], grad_norm: Tensor, is_skipped: bool) -> None:
        """Counts skipped steps. Raises TrainingError for training that has diverged, before a checkpoint is saved."""
        settings = self.optimizer_settings
        self._skipped.count(is_skipped)
        if not self.runtime.all_finite(trained):
            named = {name: local_tensor(p.detach()) for name, p in self.policy.named_parameters() if p.requires_grad}
            check_weights(named, self._step, is_skipped, settings)
        if is_skipped:
            loss = float(sum(losses))
            if self.trainer.is_global_zero:
                values = (self._step, loss, float(grad_norm))
                log.warning("step %d is skipped: the loss (%s) or the norm of its gradient (%s) is not finite", *values)
            self._skipped.check(self._step, loss, float(grad_norm), settings, self.total_steps)

    def gather(self, values: Tensor) -> Tensor:
        """All-gathers tensors [K, R] or [R] into [K, W*R] or [W*R]. R must be equal in all processes."""
        return self.runtime.all_gather(values.detach()).transpose(0, -2).flatten(-2)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sums a tensor over all processes."""
        return self.runtime.all_gather(values.detach()).sum(0)

    def equal_split(self, sizes: list[int]) -> list[list[list[int]]]:
        """Splits micro-batches so that all processes have the same number; sizes and result as in ``split_to_count``.

        With FSDP all processes gather and reduce their shards together, so all must run the same number of forward
        and backward passes: the maximum number of micro-batches over all processes. Without FSDP nothing is split.
        """
        count = len(sizes)
        if self.runtime.is_sharded:
            count = int(self.runtime.all_gather(torch.tensor(count, device=self.device)).max())
        return split_to_count(sizes, count)


def check_state(module: torch.nn.Module, checkpoint: dict[str, Any]) -> None:
    """Checks that a checkpoint holds exactly the weights that a module trains.

    Raises:
        CheckpointError: it is of another model, or of other trainable parameters.
    """
    expected = {name for name, p in module.named_parameters() if p.requires_grad}
    found = set(checkpoint["state_dict"])
    if expected != found:
        raise CheckpointError(
            f"the checkpoint holds {len(found)} trainable tensors, the model has {len(expected)}; the first difference "
            f"is {min(expected ^ found)}. Resume with the model and tuning that the run was started with"
        )
