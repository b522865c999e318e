"""Runs code without computing anything: on the meta device, beside small tensors that have values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map_only

from medr1.planning.memory_ledger import MemoryLedger

_Layout = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]

# Operations that choose an index by values. Without values they choose 0, so that decoding goes on.
_CHOICES = (torch.ops.aten.argmax.default, torch.ops.aten.searchsorted.Tensor)


_LARGE = 2**26  # elements: an attention mask [B, 1, Q, K] of long prompts would not fit this machine's memory


class MetaTracer(MemoryLedger):  # type: ignore[no-untyped-call]
    """A ledger for tensors on the meta device among small real ones (ids, masks, positions, image grids).

    Real tensors keep their values, which decide shapes and branches. The result of an operation on both has no values,
    nor has a large result of small ones, such as an attention mask.
    """

    _layouts: ClassVar[dict[Any, list[_Layout]]] = {}  # shared, because the dry runs of a plan repeat operations

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        is_meta = [t.is_meta for t in tensors]
        if _on_meta(kwargs) and not any(is_meta) and _is_integer(args, kwargs):
            kwargs = kwargs | {"device": torch.device("cpu")}
        if any(is_meta) and not all(is_meta):
            if func is torch.ops.aten.index.Tensor:  # the size of the result depends on the values of masks
                args = (args[0], _without_masks(args[1]))
            args, kwargs = tree_map_only(Tensor, _without_values, (args, kwargs))
        if not any(is_meta):
            if not _is_large(func, tensors):
                return func(*args, **kwargs)
            args, kwargs = tree_map_only(Tensor, _without_values, (args, kwargs))
        if kwargs.get("device") is not None:  # of a tensor with values that it is brought to
            kwargs = kwargs | {"device": torch.device("meta")}
        out = self._run_once(func, args, kwargs)
        return torch.zeros(out.shape, dtype=out.dtype) if func in _CHOICES else out

    def _run_once(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation whose results are new tensors. Their layouts are remembered, which makes it 10 times faster
        where all layers are alike."""
        schema = func._schema
        if schema.is_mutable or any(r.alias_info is not None or str(r.type) != "Tensor" for r in schema.returns):
            return func(*args, **kwargs)
        key = (func, _key(args), _key(kwargs.items()))
        layouts = self._layouts.get(key)
        if layouts is None:
            out = func(*args, **kwargs)
            tensors = out if isinstance(out, tuple) else (out,)
            inputs = {_storage(t) for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
            if all(isinstance(t, Tensor) and _storage(t) not in inputs and not t.storage_offset() for t in tensors):
                self._layouts[key] = [(t.shape, t.stride(), t.dtype, t.device) for t in tensors]
            return out
        made = [torch.empty_strided(size, stride, dtype=dtype, device=at) for size, stride, dtype, at in layouts]
        return tuple(made) if len(schema.returns) > 1 else made[0]


def _is_large(func: Any, tensors: list[Tensor]) -> bool:
    """Whether the result of an elementwise operation is large, as that of positions [Q, 1] and [K]."""
    if torch.Tag.pointwise not in func.tags or math.prod(tensor.numel() for tensor in tensors) <= _LARGE:
        return False
    shape: torch.Size = torch.broadcast_shapes(*(t.shape for t in tensors))  # type: ignore[no-untyped-call]
    return shape.numel() > _LARGE


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _key(values: Iterable[Any]) -> tuple[Any, ...]:
    """What the layout of a result depends on. The types distinguish 1, 1.0 and True."""
    return tuple(
        (v.shape, v.stride(), v.dtype)
        if isinstance(v, Tensor)
        else _key(v)
        if isinstance(v, list | tuple)
        else (type(v), v)
        for v in values
    )


def _on_meta(kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation creates its result on the meta device."""
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == "meta"


def _is_integer(args: Iterable[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation that creates or moves a tensor creates one of integers or booleans."""
    dtype = kwargs.get("dtype")
    if dtype is None:
        dtypes = [arg.dtype for arg in args if isinstance(arg, Tensor)]
        dtype = dtypes[0] if dtypes else (torch.long if all(type(arg) is int for arg in args) else torch.float32)
    return not (dtype.is_floating_point or dtype.is_complex)


def _without_masks(indices: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Indices with each mask replaced by the indices of its True elements."""
    replaced: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype is torch.bool and not index.is_meta:
            replaced += list(index.nonzero().unbind(1))
        else:
            replaced.append(index)
    return replaced


def _without_values(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else torch.empty_like(tensor, device="meta")


@contextmanager
def fused_attention() -> Iterator[None]:
    """Replaces PyTorch's attention, which on the meta device creates its weights [B, H, Q, K], by the fused kernel,
    which keeps its inputs, its output and one number per row, as on a CPU and on a GPU.

    The function itself is replaced, because a mode for functions is not active where checkpoints are recomputed.
    """
    original = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = _fused_attention
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = original


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = torch.where(_without_values(attn_mask), query.new_zeros(()), query.new_full((), float("-inf")))
    out, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )
    return out  # type: ignore[no-any-return]
