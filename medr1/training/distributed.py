"""Strategies for several processes: the whole model in each (DDP), or a shard of it in each (FSDP2)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy as ProcessGroup
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from medr1.config.enums import Distribution
from medr1.config.settings import TrainerConfig
from medr1.models.device import device_type
from medr1.models.sharding import full_state_dict, on_disk, shard, shard_like
from medr1.training.mixed_adamw import parameters_by_index
from medr1.training.module import PolicyModule

# With torchrun or SLURM the other ranks wait while rank zero evaluates the base model.
_TIMEOUT = timedelta(days=1)


def build_strategy(distribution: Distribution) -> Strategy | str:
    """Lightning's strategy for ``trainer.strategy``."""
    if distribution == Distribution.auto:
        return "auto"
    if distribution == Distribution.fsdp:
        return ShardedStrategy(timeout=_TIMEOUT)
    # With find_unused_parameters=True, DDP keeps the gradient buckets of its first step. With False it rebuilds them
    # after that step and sums in another order, so that a resumed run of more than two processes would differ.
    return DDPStrategy(find_unused_parameters=True, gradient_as_bucket_view=True, timeout=_TIMEOUT)


@contextmanager
def joined_processes(trainer: TrainerConfig) -> Iterator[None]:
    """The processes of a run whose weights are sharded. Starts those that no launcher has started.

    Processes started here are ended after an error, because they would wait for this one.
    """
    _return_freed_memory()
    group = ProcessGroup(timeout=_TIMEOUT)
    accelerator, devices, nodes = device_type(trainer.accelerator), trainer.devices, trainer.num_nodes
    Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=group).launch()
    try:
        yield
    except BaseException:
        for process in getattr(group.launcher, "procs", ()):
            process.kill()
        raise


def of_first_process(path: Path) -> Path:
    """The path that the first process of several has here. Where torchrun or SLURM starts them, only that one knows the
    directory of a new run."""
    if not dist.is_initialized():
        return path
    paths = [str(path)]
    dist.broadcast_object_list(paths)
    return Path(paths[0])


def _return_freed_memory() -> None:
    """Makes glibc return the memory of weights that are freed. Without this it keeps them, and in fragments, so that a
    process on a CPU comes to hold more than all weights after gathering them one group at a time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 1 << 17)  # M_MMAP_THRESHOLD at its default, which otherwise grows with what is freed


class ShardedStrategy(DDPStrategy):
    """Lightning's processes with FSDP2: weights, reference, gradients and optimizer state are sharded.

    Checkpoints are not sharded: they equal those of one process, and a run may be resumed with another number of
    devices.
    """

    _trained: Mapping[str, Tensor] | None = None  # the full state dict after training, on rank zero
    _is_gathered = False

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Checkpoints are loaded into shards."""
        return True

    def model_to_device(self) -> None:
        """Does nothing: ``configure_ddp`` moves the shards, so that no device holds the whole model."""

    def configure_ddp(self) -> None:
        module = self._policy_module()
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for policy in module.policies:
            shard(policy, mesh)
        module.to(self.root_device)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        directory = Path(filepath).parent
        if self.is_global_zero:
            directory.mkdir(parents=True, exist_ok=True)
        for key in ("state_dict", "optimizer_states"):  # no set, whose order differs between processes
            if key in checkpoint:  # the best checkpoint has weights only
                checkpoint[key] = self._full_tensors(checkpoint[key], directory)
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        parameters = dict(self._policy_module().named_parameters())
        state = {name: shard_like(value, parameters[name]) for name, value in checkpoint["state_dict"].items()}
        super().load_model_state_dict({**checkpoint, "state_dict": state}, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(_sharded(optimizer, stored))

    def on_train_end(self) -> None:
        super().on_train_end()
        self._gather()

    def trained_state_dict(self) -> Mapping[str, Tensor] | None:
        """The full state dict after training, on rank zero; None elsewhere. All processes must call it."""
        if not self._is_gathered:  # a run that is resumed after its last step: Lightning has called no hook of training
            self._policy_module().to(self.root_device)
            self._gather()
        return self._trained

    def _gather(self) -> None:
        module = self._policy_module()
        directory = Path(module.trainer.default_root_dir) if self.is_global_zero else None
        state = full_state_dict(module.policy, directory)
        self._trained, self._is_gathered = state if self.is_global_zero else None, True

    def _policy_module(self) -> PolicyModule:
        assert isinstance(self.lightning_module, PolicyModule)
        return self.lightning_module

    def _full_tensors(self, tree: Any, directory: Path) -> Any:
        """The tree with full tensors on rank zero and empty ones elsewhere, gathered one after the other.

        Tensors that are sharded are gathered into files in ``directory``.
        """
        if isinstance(tree, DTensor):
            tensor = tree.full_tensor()
            return on_disk(tensor, directory) if self.is_global_zero else tensor.new_empty(0)
        if isinstance(tree, Tensor):
            return tree.cpu() if self.is_global_zero else tree.new_empty(0)
        if isinstance(tree, dict):
            return {key: self._full_tensors(value, directory) for key, value in tree.items()}
        return [self._full_tensors(value, directory) for value in tree] if isinstance(tree, list) else tree


def _sharded(optimizer: Optimizer, stored: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimizer with each tensor sharded like its parameter."""
    parameters = parameters_by_index(optimizer, stored)
    state = {
        index: {name: shard_like(value, parameters[index]) for name, value in values.items()}
        for index, values in stored["state"].items()
    }
    return {**stored, "state": state}
