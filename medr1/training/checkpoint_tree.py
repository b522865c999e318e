"""Encodes nested Python values as JSON values and named tensors, and decodes them with their exact types and bits."""

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

# The dtypes of safetensors.
_DTYPES = {
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32),
    *(torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
}


class TreeEncoder:
    """Encodes nested Python values as JSON values and two stores of tensors.

    A value of a type that JSON lacks is encoded as a mapping whose only key begins with ``$``.
    """

    def __init__(self) -> None:
        self.model: dict[str, Tensor] = {}
        self.other: dict[str, Tensor] = {}
        self._views: dict[tuple[Any, ...], tuple[str, str]] = {}
        self._storages: set[tuple[str, int]] = set()
        self._ancestors: set[int] = set()

    def encode(self, value: Any, path: tuple[Any, ...]) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if kind is bytes:
            return {"$bytes": base64.b64encode(value).decode("ascii")}
        if kind is Tensor:
            return {"$tensor": self._tensor(value, path)}
        if kind is np.ndarray:
            return {"$array": self._array(value, path)}
        if kind not in (list, tuple, set, frozenset, dict, OrderedDict):
            raise _unstorable(path, kind, "convert it to plain Python values, a tensor or an array")
        if id(value) in self._ancestors:
            raise _unstorable(path, kind, "it contains itself")
        self._ancestors.add(id(value))
        encoded = self._mapping(value, path) if isinstance(value, dict) else self._sequence(value, path)
        self._ancestors.remove(id(value))
        return encoded

    def _sequence(self, value: Any, path: tuple[Any, ...]) -> Any:
        items = [self.encode(item, (*path, i)) for i, item in enumerate(value)]
        return items if type(value) is list else {f"${type(value).__name__}": items}

    def _mapping(self, value: dict[Any, Any], path: tuple[Any, ...]) -> Any:
        items = [(self.encode(key, (*path, key)), self.encode(item, (*path, key))) for key, item in value.items()]
        if type(value) is OrderedDict:
            # A module's state_dict has an attribute ``_metadata`` with the versions of its submodules.
            extra = self.encode(vars(value), (*path, "__dict__")) if vars(value) else None
            return {"$ordered": [[list(item) for item in items], extra]}
        if all(type(key) is str and not key.startswith("$") for key in value):
            return dict(items)
        return {"$dict": [list(item) for item in items]}

    def _tensor(self, value: Tensor, path: tuple[Any, ...]) -> list[str]:
        if value.layout is not torch.strided or value.is_quantized or value.device.type == "meta":
            raise _unstorable(path, Tensor, f"layout {value.layout}, dtype {value.dtype}, device {value.device}")
        storage = (str(value.device), value.untyped_storage().data_ptr())
        view = (*storage, value.dtype, value.shape, value.stride(), value.storage_offset(), value.is_conj())
        # Tied weights are one tensor with two names and are stored once. Empty tensors have no address.
        if value.numel() and view in self._views:
            return list(self._views[view])
        plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        # safetensors does not store two tensors that share memory, so a second view of a storage is copied.
        if storage in self._storages and plain.untyped_storage().data_ptr() == storage[1]:
            plain = plain.clone()
        self._storages.add(storage)
        name = self._store(plain, path)
        if value.numel():
            self._views[view] = name
        return list(name)

    def _array(self, value: np.ndarray[Any, Any], path: tuple[Any, ...]) -> list[str]:
        try:
            # Copied: the array may be read-only, have negative strides, or be a view of a stored tensor.
            return list(self._store(torch.from_numpy(value.copy(order="C")), path))
        except (TypeError, ValueError) as error:
            raise _unstorable(path, np.ndarray, f"dtype {value.dtype}") from error

    def _store(self, plain: Tensor, path: tuple[Any, ...]) -> tuple[str, str]:
        if plain.dtype not in _DTYPES:
            raise _unstorable(path, Tensor, f"safetensors has no dtype {plain.dtype}")
        if len(path) == 2 and path[0] == "state_dict" and isinstance(path[1], str):
            file, store, name = MODEL_FILE, self.model, path[1]
        else:
            file, store, name = OPTIMIZER_FILE, self.other, "/".join(str(key) for key in path)
        # The keys 0 and "0" would have the same name, and safetensors reserves ``__metadata__``.
        while name in store or name == "__metadata__":
            name += "'"
        store[name] = plain
        return file, name


def decode(value: Any, stores: dict[str, dict[str, Tensor]]) -> Any:
    """The value that was encoded. ``stores``: the tensors of each file.

    Raises:
        CheckpointError: a value that only a newer version decodes.
    """
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
    raise CheckpointError(f"the checkpoint has a value of the unknown kind {tag!r}; it was written by a newer version")


def _unstorable(path: tuple[Any, ...], kind: type, why: str) -> CheckpointError:
    name = "".join(f"[{key!r}]" for key in path) or "the checkpoint"
    return CheckpointError(f"{name} cannot be stored exactly: {kind.__module__}.{kind.__qualname__}: {why}")
