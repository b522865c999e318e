"""A checkpoint's tree of Python values as JSON values and named tensors, and back, without losing a bit or a type."""

from __future__ import annotations

import base64
import math
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medr1.errors import CheckpointError

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"

# What safetensors stores.
_DTYPES = {
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32),
    *(torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
}


class TreeEncoder:
    """Turns a tree of Python values into JSON values and two stores of tensors.

    A mapping whose only key begins with ``$`` stands for what JSON has no word for.
    """

    def __init__(self) -> None:
        self.model: dict[str, Tensor] = {}
        self.other: dict[str, Tensor] = {}
        self._views: dict[tuple[Any, ...], tuple[str, str]] = {}
        self._storages: set[tuple[str, int]] = set()
        self._open: set[int] = set()

    def encode(self, value: Any, at: tuple[Any, ...]) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if kind is bytes:
            return {"$bytes": base64.b64encode(value).decode("ascii")}
        if kind is Tensor:
            return {"$tensor": self._tensor(value, at)}
        if kind is np.ndarray:
            return {"$array": self._array(value, at)}
        if kind not in (list, tuple, set, frozenset, dict, OrderedDict):
            raise _unstorable(at, kind, "convert it to plain Python values, a tensor or an array before saving")
        if id(value) in self._open:
            raise _unstorable(at, kind, "it contains itself")
        self._open.add(id(value))
        encoded = self._mapping(value, at) if isinstance(value, dict) else self._sequence(value, at)
        self._open.remove(id(value))
        return encoded

    def _sequence(self, value: Any, at: tuple[Any, ...]) -> Any:
        items = [self.encode(item, (*at, i)) for i, item in enumerate(value)]
        return items if type(value) is list else {f"${type(value).__name__}": items}

    def _mapping(self, value: dict[Any, Any], at: tuple[Any, ...]) -> Any:
        items = [(self.encode(key, (*at, key)), self.encode(item, (*at, key))) for key, item in value.items()]
        if type(value) is OrderedDict:
            # A module's state_dict carries the versions of its submodules in this attribute.
            extra = self.encode(vars(value), (*at, "__dict__")) if vars(value) else None
            return {"$ordered": [[list(item) for item in items], extra]}
        if all(type(key) is str and not key.startswith("$") for key in value):
            return dict(items)
        return {"$dict": [list(item) for item in items]}

    def _tensor(self, value: Tensor, at: tuple[Any, ...]) -> list[str]:
        if value.layout is not torch.strided or value.is_quantized or value.device.type == "meta":
            raise _unstorable(at, Tensor, f"layout {value.layout}, dtype {value.dtype}, device {value.device}")
        storage = (str(value.device), value.untyped_storage().data_ptr())
        view = (*storage, value.dtype, value.shape, value.stride(), value.storage_offset(), value.is_conj())
        # Tied weights are one tensor under two names: stored once. An empty tensor has no address to know it by.
        if value.numel() and view in self._views:
            return list(self._views[view])
        plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        # safetensors refuses two tensors over one memory, so the second view of a storage is copied.
        if storage in self._storages and plain.untyped_storage().data_ptr() == storage[1]:
            plain = plain.clone()
        self._storages.add(storage)
        name = self._store(plain, at)
        if value.numel():
            self._views[view] = name
        return list(name)

    def _array(self, value: np.ndarray[Any, Any], at: tuple[Any, ...]) -> list[str]:
        try:
            # A copy: the array may be read-only, strided backwards, or a view of a tensor that is stored as well.
            return list(self._store(torch.from_numpy(value.copy(order="C")), at))
        except (TypeError, ValueError) as error:
            raise _unstorable(at, np.ndarray, f"dtype {value.dtype}") from error

    def _store(self, plain: Tensor, at: tuple[Any, ...]) -> tuple[str, str]:
        if plain.dtype not in _DTYPES:
            raise _unstorable(at, Tensor, f"safetensors has no dtype {plain.dtype}")
        if len(at) == 2 and at[0] == "state_dict" and isinstance(at[1], str):
            file, store, name = MODEL_FILE, self.model, at[1]
        else:
            file, store, name = OPTIMIZER_FILE, self.other, "/".join(str(key) for key in at)
        # 0 and "0" are two keys, and safetensors keeps one name for itself.
        while name in store or name == "__metadata__":
            name += "'"
        store[name] = plain
        return file, name


def decode(value: Any, stores: dict[str, dict[str, Tensor]]) -> Any:
    if isinstance(value, list):
        return [decode(item, stores) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), "")
    if not tag.startswith("$"):
        return {key: decode(item, stores) for key, item in value.items()}
    content = value[tag]
    match tag:
        case "$float":
            return float(content)
        case "$bytes":
            return base64.b64decode(content)
        case "$tensor":
            return stores[content[0]][content[1]]
        case "$array":
            return stores[content[0]][content[1]].cpu().numpy()
        case "$tuple":
            return tuple(decode(content, stores))
        case "$set":
            return set(decode(content, stores))
        case "$frozenset":
            return frozenset(decode(content, stores))
        case "$dict":
            return {decode(key, stores): decode(item, stores) for key, item in content}
        case "$ordered":
            items, extra = content
            ordered = OrderedDict((decode(key, stores), decode(item, stores)) for key, item in items)
            vars(ordered).update(decode(extra, stores) if extra is not None else {})
            return ordered
    raise CheckpointError(f"the checkpoint holds the unknown placeholder {tag!r}: it was written by a newer version")


def _unstorable(at: tuple[Any, ...], kind: type, why: str) -> CheckpointError:
    place = "".join(f"[{key!r}]" for key in at) or "the checkpoint"
    return CheckpointError(f"{place} cannot be stored exactly: {kind.__module__}.{kind.__qualname__}: {why}")
