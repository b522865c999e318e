"""Where the real code runs without computing anything: on the meta device, beside small tensors that have values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map_only

from medr1.planning.memory_ledger import Ledger

_Form = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]


class MetaTracer(Ledger):  # type: ignore[no-untyped-call]
    """A ledger for tensors on the meta device among small real ones (ids, masks, positions, grids).

    The real ones keep their values, which decide shapes and branches; where they meet a tensor without numbers, they
    lose theirs. Nothing is computed and no memory is taken.
    """

    _made: ClassVar[dict[Any, list[_Form]]] = {}  # of all stages: many rehearsals of one plan have the same operations

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        abstract = [t.is_meta for t in tensors]
        if _asks_for_meta(kwargs) and not any(abstract) and _whole_numbers(args, kwargs):
            kwargs = kwargs | {"device": torch.device("cpu")}
        if any(abstract) and not all(abstract):
            if func is torch.ops.aten.index.Tensor:  # how many are chosen is known while the mask has its values
                args = (args[0], _places(args[1]))
            args, kwargs = tree_map_only(Tensor, _without_numbers, (args, kwargs))
        return self._once(func, args, kwargs) if any(abstract) else func(*args, **kwargs)

    def _once(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation whose results are new tensors: their form is worked out once and then remembered, which is ten
        times faster where all layers are alike."""
        schema = func._schema
        if schema.is_mutable or any(r.alias_info is not None or str(r.type) != "Tensor" for r in schema.returns):
            return func(*args, **kwargs)
        key = (func, _key(args), _key(kwargs.items()))
        forms = self._made.get(key)
        if forms is None:
            out = func(*args, **kwargs)
            tensors = out if isinstance(out, tuple) else (out,)
            given = {_place(t) for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
            if all(isinstance(t, Tensor) and _place(t) not in given and not t.storage_offset() for t in tensors):
                self._made[key] = [(t.shape, t.stride(), t.dtype, t.device) for t in tensors]
            return out
        made = [torch.empty_strided(s, d, dtype=t, device=w) for s, d, t, w in forms]
        return tuple(made) if len(schema.returns) > 1 else made[0]


def _place(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _key(values: Iterable[Any]) -> tuple[Any, ...]:
    """What the form of a result depends on. ``1``, ``1.0`` and ``True`` are different arguments."""
    return tuple(
        (v.shape, v.stride(), v.dtype)
        if isinstance(v, Tensor)
        else _key(v)
        if isinstance(v, list | tuple)
        else (type(v), v)
        for v in values
    )


def _asks_for_meta(kwargs: Mapping[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == "meta"


def _whole_numbers(args: Iterable[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation that makes a tensor, or moves one, makes one of integers or truth values."""
    dtype = kwargs.get("dtype")
    if dtype is None:
        kinds = [arg.dtype for arg in args if isinstance(arg, Tensor)]
        dtype = kinds[0] if kinds else (torch.long if all(type(arg) is int for arg in args) else torch.float32)
    return not (dtype.is_floating_point or dtype.is_complex)


def _places(indices: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Masks as the indices of their True elements."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype is torch.bool and not index.is_meta:
            found += list(index.nonzero().unbind(1))
        else:
            found.append(index)
    return found


def _without_numbers(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else torch.empty_like(tensor, device="meta")


@contextmanager
def fused_attention() -> Iterator[None]:
    """On the meta device torch's attention writes out its weights [B, H, Q, K]; on a CPU and on a GPU it does not. In
    here it is the fused kernel that stands for either: it keeps its inputs, its output and a number for each row.

    Replaced where it is looked up, because a mode for functions is not in force where checkpoints are recomputed.
    """
    usual = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = _fused_attention
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = usual


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
        attn_mask = torch.where(_without_numbers(attn_mask), query.new_zeros(()), query.new_full((), float("-inf")))
    out, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )
    return out  # type: ignore[no-any-return]
