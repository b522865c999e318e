"""Shards a policy over several processes (FSDP2), and gathers its weights where they are needed.

Each decoder layer and each vision block is a group of its own; the rest (embeddings, norms, head) is the root group.
``Policy.embed`` unshards the root group, because every forward pass begins there; the backward pass reshards it.
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
    """Shards all weights in place, onto the mesh's device. They must be equal in all processes."""
    core = policy.core.model
    for block in (*core.language_model.layers, *core.visual.blocks):
        fully_shard(block, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    register_fsdp_forward_method(policy, "embed")


def is_sharded(policy: Policy) -> bool:
    return isinstance(policy, FSDPModule)


@contextmanager
def unsharded_params(policy: Policy) -> Iterator[None]:
    """Gathers all weights of a sharded policy at once, without gradients. Does nothing if the policy is not sharded.

    Decoding then needs no communication, so that processes can decode different numbers of tokens.
    """
    groups = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    if not groups:
        yield
        return
    for group in groups:
        group.unshard()
    # FSDP's hooks would reshard a layer after each token.
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
    """Frees the gathered weights of a sharded policy."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full_tensor(value: Tensor) -> Tensor:
    """Gathers a sharded tensor; all processes must call it. Returns other tensors as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local_tensor(value: Tensor) -> Tensor:
    """The shard of a sharded tensor that this process holds. Returns other tensors as they are."""
    return value.to_local() if isinstance(value, DTensor) else value


def shard_like(value: Any, parameter: Tensor) -> Any:
    """Shards a full tensor like its parameter. Returns any other value as it is."""
    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        mesh = parameter.device_mesh
        return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)
    return value


def full_state_dict(policy: Policy, *, keep: bool) -> Mapping[str, Tensor]:
    """The weights of the transformers model of a sharded policy, gathered on the CPU, as ``save_policy`` takes them.

    All processes must call it. Those with ``keep=False`` get an empty dict. Tied weights stay tied.
    """
    gathered: dict[int, Tensor] = {}
    state = {}
    for name, value in policy.model.state_dict(keep_vars=True).items():
        if id(value) not in gathered:
            full = full_tensor(value.detach())
            gathered[id(value)] = full.cpu() if keep else full[:0]
        state[name] = gathered[id(value)]
    return state if keep else {}
