"""How several processes share a training: each the whole model (DDP), or each a shard of it (FSDP2)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import Optimizer

from medr1.config.enums import Distribution
from medr1.models.sharding import full_state_dict, full_tensor, shard, shard_like
from medr1.training.grpo import GRPOModule
from medr1.training.mixed_adamw import by_index
from medr1.training.sft import SFTModule

# Where another launcher has started all processes, the others wait while the first one asks the base model.
_PATIENCE = timedelta(days=1)


def build_strategy(distribution: Distribution) -> Strategy | str:
    """Lightning's strategy for a setting of ``trainer.strategy``."""
    if distribution == Distribution.auto:
        return "auto"
    if distribution == Distribution.fsdp:
        return ShardedStrategy(timeout=_PATIENCE)
    # With the search for unused parameters, DDP keeps the buckets of its first step. Otherwise it cuts them anew after
    # that step, sums in another order, and a resumed run of more than two processes differs from one left in peace.
    return DDPStrategy(find_unused_parameters=True, gradient_as_bucket_view=True, timeout=_PATIENCE)


class ShardedStrategy(DDPStrategy):
    """Lightning's processes with FSDP2 instead of DDP's wrapper: weights, gradients, optimizer state and the reference
    policy in shards. Checkpoints are those of one process, whole: a run may go on with another number of devices.
    """

    full_state_dict: Mapping[str, Tensor] | None = None  # of the policy's model once training has ended, on rank zero

    def model_to_device(self) -> None:
        """Group by group, as each is cut: no device ever holds the whole model for it."""

    def configure_ddp(self) -> None:
        module = self.lightning_module
        assert isinstance(module, GRPOModule | SFTModule)
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for policy in module.policies:
            shard(policy, mesh)
        module.to(self.root_device)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        for part in ("state_dict", "optimizer_states"):
            checkpoint[part] = self._gathered(checkpoint[part])
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def _gathered(self, tree: Any) -> Any:
        """The same tree on every process, its tensors whole on rank zero, one after the other."""
        if isinstance(tree, Tensor):
            found = full_tensor(tree)
            return found.cpu() if self.is_global_zero else found.new_empty(0)
        if isinstance(tree, dict):
            return {key: self._gathered(value) for key, value in tree.items()}
        return [self._gathered(value) for value in tree] if isinstance(tree, list) else tree

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(_sharded(optimizer, stored))

    def on_train_end(self) -> None:
        super().on_train_end()
        module = self.lightning_module
        assert isinstance(module, GRPOModule | SFTModule)
        state = full_state_dict(module.policy, keep=self.is_global_zero)
        self.full_state_dict = state if self.is_global_zero else None


def _sharded(optimizer: Optimizer, stored: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state with each of its tensors cut as the parameter that it belongs to."""
    parameters = by_index(optimizer, stored)
    state = {
        index: {name: shard_like(value, parameters[index]) for name, value in values.items()}
        for index, values in stored["state"].items()
    }
    return {**stored, "state": state}
