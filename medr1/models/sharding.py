"""Shards a policy over several processes (FSDP2), and gathers its weights where they are needed.

Each decoder layer and each vision block is a group of its own; the rest (embeddings, norms, head) is the root group.
In training ``Policy.embed`` unshards the root group, because every forward pass begins there; the backward pass
reshards it. ``generation`` is the context of all forward passes without gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed import ReduceOp, all_reduce
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.hooks import RemovableHandle

from medr1.models.adapters import is_of_adapter
from medr1.models.policy import Policy


def shard(policy: Policy, mesh: DeviceMesh) -> None:
    """Shards all weights in place, onto the mesh's device. They must be equal in all processes.

    Reads one group after the other from the checkpoint if ``load_policy`` has left the weights there.
    """
    core = policy.core.model
    for group in (*core.language_model.layers, *core.visual.blocks, policy):
        if policy.dtype is not None:
            for name, parameter in group.named_parameters():
                if not isinstance(parameter, DTensor) and not is_of_adapter(name):
                    parameter.data = parameter.data.to(policy.dtype)
        fully_shard(group, mesh=mesh)
    register_fsdp_forward_method(policy, "embed")


def is_sharded(policy: Policy) -> bool:
    return isinstance(policy, FSDPModule)


class JointPasses:
    """Forward passes without gradients that never hold more than one gathered group of a sharded policy.

    Every pass of the language model or of the vision tower gathers the groups one after the other, which all processes
    must do together. Before a pass they therefore agree on its kind. A process that needs another kind, or none, takes
    part without computing: it gathers the groups in the same order and frees them. So processes may run different
    numbers of passes, as with ``torch.distributed.algorithms.Join``.

    The root group is gathered between passes, because the embeddings and the head are used there.
    """

    _NONE, _LANGUAGE, _VISION = range(3)  # prefill comes first, so that rows are then decoded together

    def __init__(self, policy: Policy) -> None:
        core = policy.core.model
        self._root: Any = policy
        self._towers = {self._LANGUAGE: core.language_model, self._VISION: core.visual}
        self._orders = {self._LANGUAGE: [*core.language_model.layers, policy], self._VISION: _vision_order(policy)}
        self._seen: list[nn.Module] = []  # the groups of this pass so far

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles = [handle for kind in self._towers for handle in self._hooks_of(kind)]
        self._root.unshard()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            reshard(self._root)

    def _hooks_of(self, kind: int) -> Iterator[RemovableHandle]:
        tower, order = self._towers[kind], self._orders[kind]
        yield tower.register_forward_pre_hook(lambda *_: self._begin(kind))
        yield tower.register_forward_hook(lambda *_: self._end(kind))
        blocks: list[Any] = [group for group in order if group is not self._root]
        for block in blocks:
            yield block.register_forward_pre_hook(lambda block, *_: self._gather(block))
            yield block.register_forward_hook(lambda block, *_: block.reshard())
        inside = {module for block in blocks for module in block.modules()}
        for module in tower.modules():
            if module not in inside and any(True for _ in module.parameters(recurse=False)):
                yield module.register_forward_pre_hook(lambda *_: self._gather(self._root))

    def finish(self) -> None:
        """Takes part until no process needs a pass any more."""
        while chosen := self._agree(self._NONE):
            self._follow(chosen)

    def _begin(self, kind: int) -> None:
        while (chosen := self._agree(kind)) != kind:
            self._follow(chosen)
        self._seen = []

    def _end(self, kind: int) -> None:
        if self._seen != self._orders[kind]:  # the others wait for other groups
            raise RuntimeError(f"{type(self._towers[kind]).__name__} has used its weights in an unexpected order")

    def _gather(self, group: Any) -> None:
        """Gathers a group in place of the one before, unless it is gathered already."""
        if group is (self._seen[-1] if self._seen else self._root):
            return
        self._seen.append(group)
        if group is not self._root:
            self._root.reshard()
        group.unshard()

    def _follow(self, kind: int) -> None:
        self._seen = []
        for group in self._orders[kind]:
            self._gather(group)
            if group is not self._root:
                group.reshard()

    def _agree(self, kind: int) -> int:
        """The highest of the kinds of pass that the processes need."""
        wanted = torch.tensor(kind, device=self._root.device)
        all_reduce(wanted, ReduceOp.MAX)
        return int(wanted)


def _vision_order(policy: Policy) -> list[nn.Module]:
    """The groups that the vision tower uses one after the other, after the patch embedding of the root group.

    Mergers belong to the root group. DeepStack (Qwen3-VL) has some between the blocks.
    """
    visual, order = policy.core.model.visual, list[nn.Module]()
    for index, block in enumerate(visual.blocks):
        order += [block, *([policy] if index in getattr(visual, "deepstack_visual_indexes", ()) else [])]
    return order if order[-1] is policy else [*order, policy]


@contextmanager
def generation(policy: Policy, *, gather: bool = False) -> Iterator[None]:
    """Generation by a sharded policy, without gradients. Does nothing if the policy is not sharded.

    All processes must enter, and may then run any forward passes, also none. ``gather``: gathers all weights at once,
    in place of one group at a time; see ``trainer.gather_for_generation``.
    """
    groups: list[Any] = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    if not groups:
        yield
        return
    with torch.no_grad(), _without_fsdp_hooks(groups):
        if gather:
            for group in groups:
                group.unshard()
            try:
                yield
            finally:
                reshard(policy)
        else:
            passes = JointPasses(policy)
            with passes.hooks():
                yield
                passes.finish()  # not after an error, of which the other processes do not know


@contextmanager
def _without_fsdp_hooks(groups: list[Any]) -> Iterator[None]:
    """Without the hooks by which FSDP itself gathers and frees each group in a forward pass."""
    hooks = [(g, g._forward_pre_hooks.copy(), g._forward_hooks.copy()) for g in groups]
    wrapped = [(g, vars(g).pop("embed")) for g in groups if "embed" in vars(g)]
    for group in groups:
        group._forward_pre_hooks.clear()
        group._forward_hooks.clear()
    try:
        yield
    finally:
        for group, before, after in hooks:
            group._forward_pre_hooks.update(before)
            group._forward_hooks.update(after)
        for group, embed in wrapped:
            group.embed = embed


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
    """The shard of a full tensor that is sharded like its parameter. Returns any other value as it is."""
    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        mesh = parameter.device_mesh
        shards = distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)
        return shards.clone()  # not a view of the full tensor
    return value


def full_state_dict(policy: Policy, directory: Path | None) -> Mapping[str, Tensor]:
    """The weights of a sharded policy that ``save_policy`` writes, gathered one after the other into ``directory``.

    All processes must call it. Those without a directory get an empty dict. Tied weights stay tied.
    """
    gathered: dict[int, Tensor] = {}
    state = {}
    for name, value in policy.model.state_dict(keep_vars=True).items():
        if isinstance(policy.model, PeftModel) and not is_of_adapter(name):
            continue
        if id(value) not in gathered:
            full = full_tensor(value.detach())
            gathered[id(value)] = full.new_empty(0) if directory is None else on_disk(full, directory)  # no view of it
        state[name] = gathered[id(value)]
    return {} if directory is None else state


def on_disk(tensor: Tensor, directory: Path) -> Tensor:
    """A copy on the CPU, in a file in ``directory`` that has no name any more, so that it takes no memory."""
    if not tensor.numel():
        return tensor.cpu()
    with NamedTemporaryFile(dir=directory) as file:
        copy = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    return copy.view(tensor.shape).copy_(tensor)
