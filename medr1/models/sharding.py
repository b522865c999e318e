"""A policy in shards over several processes (FSDP2), gathered where its weights are needed.

Each decoder layer and each vision block is a group of its own; what is left (embeddings, norms, head) is the root
group. ``Policy.embed`` opens the root group, because every encoding begins there; the backward pass closes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from medr1.models.policy import Policy


def shard(policy: Policy, mesh: DeviceMesh) -> None:
    """Leaves each process its part of every weight, on the mesh's device. The weights must be the same everywhere."""
    core = policy.core.model
    for block in (*core.language_model.layers, *core.visual.blocks):
        fully_shard(block, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    register_fsdp_forward_method(policy, "embed")


def is_sharded(policy: Policy) -> bool:
    return isinstance(policy, FSDPModule)


@contextmanager
def unsharded_params(policy: Policy) -> Iterator[None]:
    """All weights of a sharded policy at once, so that decoding needs no communication: processes that decode for
    different lengths, or another time, do not wait for each other. Without gradients. A whole policy stays as it is."""
    groups = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    if not groups:
        yield
        return
    for group in groups:
        group.unshard()
    # FSDP's hooks would give a layer back after each token.
    hooks = [(g, g._forward_pre_hooks.copy(), g._forward_hooks.copy()) for g in groups]
    for group in groups:
        group._forward_pre_hooks.clear()
        group._forward_hooks.clear()
    try:
        with torch.no_grad():
            yield
    finally:
        for group, before, after in hooks:
            group._forward_pre_hooks.update(before)
            group._forward_hooks.update(after)
        reshard(policy)


def reshard(policy: Policy) -> None:
    """Gives back what was gathered of a sharded policy."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full_tensor(value: Tensor) -> Tensor:
    """A whole tensor from its shards; all processes must ask for it. Other tensors as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def shard_like(value: Any, parameter: Tensor) -> Any:
    """A whole tensor in shards as those of the parameter it belongs to. Anything else as it is."""
    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        mesh = parameter.device_mesh
        return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)
    return value


def full_state_dict(policy: Policy, *, keep: bool) -> Mapping[str, Tensor]:
    """The state of the model inside a sharded policy, as ``save_policy`` takes it, on the CPU.

    All processes gather it; those that do not ``keep`` it get nothing. Tied weights stay tied.
    """
    known: dict[int, Tensor] = {}
    state = {}
    for name, value in policy.model.state_dict(keep_vars=True).items():
        if id(value) not in known:
            known[id(value)] = full_tensor(value.detach()).cpu() if keep else full_tensor(value.detach())[:0]
        state[name] = known[id(value)]
    return state if keep else {}
