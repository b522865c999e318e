"""Counts the bytes of all living tensors, operation by operation, by what the tensors are for.

Works for tensors with values (a measurement) and for tensors on the meta device (a dry run).
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

WEIGHTS, REFERENCE, GRADIENTS, OPTIMIZER = "weights", "reference", "gradients", "optimizer"
ACTIVATIONS, CACHES, LOGITS = "activations", "caches", "logits"
Peaks = dict[str, Counter[str]]  # phase -> part -> bytes
PARTS = (WEIGHTS, REFERENCE, GRADIENTS, OPTIMIZER, ACTIVATIONS, CACHES, LOGITS)


def peak_bytes(peaks: Peaks) -> int:
    """Bytes at the highest of the phases."""
    return max((sum(parts.values()) for parts in peaks.values()), default=0)


class MemoryLedger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, enters the storage of every tensor that an operation creates, and removes it when it is freed.

    ``peaks``: for each phase, the bytes of each part at the moment at which their sum was largest. A tensor without a
    name belongs to the part of the phase, or to the logits if its last dimension is the vocabulary. Scratch memory
    within one operation is not counted.
    """

    def __init__(self, vocab_size: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peaks: Peaks = {}
        self._vocab_size = vocab_size
        self._living: Counter[str] = Counter()
        self._entries: dict[int, tuple[str, int]] = {}
        self._total = 0
        self._phase, self._part, self._highest = "start", ACTIVATIONS, 0

    @contextmanager
    def phase(self, name: str, part: str = ACTIVATIONS) -> Iterator[None]:
        """Attributes what happens inside to a phase, beginning with the tensors that exist already."""
        outer = self._phase, self._part
        self._enter_phase(name, part)
        try:
            yield
        finally:
            self._enter_phase(*outer)

    def name(self, part: str, tensors: Iterable[Tensor]) -> None:
        """Enters the tensors' storages under ``part``, or moves them there."""
        for tensor in tensors:
            self.enter(tensor, part)

    def enter(self, tensor: Tensor, part: str | None = None) -> None:
        """Enters a new storage. A storage that is entered already moves to ``part``, if that is given."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        entry = self._entries.get(key)
        if entry is None:
            weakref.finalize(storage, self._remove, key).atexit = False
            size = storage.nbytes()
            self._total += size
        elif part is None or part == entry[0]:
            return
        else:
            size = entry[1]
            self._living[entry[0]] -= size
        if part is None:
            is_logits = tensor.ndim > 1 and tensor.shape[-1] == self._vocab_size and tensor.is_floating_point()
            part = LOGITS if is_logits else self._part
        self._entries[key] = (part, size)
        self._living[part] += size
        if self._total > self._highest:
            self._record_peak()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = self.run(func, args, dict(kwargs or {}))
        for tensor in (out,) if isinstance(out, Tensor) else tree_iter(out):
            if isinstance(tensor, Tensor):
                self.enter(tensor)
        return out

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs one operation."""
        return func(*args, **kwargs)

    def _enter_phase(self, phase: str, part: str) -> None:
        self._phase, self._part = phase, part
        self._highest = sum(self.peaks.get(phase, Counter()).values())
        if self._total > self._highest:
            self._record_peak()

    def _remove(self, key: int) -> None:
        part, size = self._entries.pop(key)
        self._living[part] -= size
        self._total -= size

    def _record_peak(self) -> None:
        self._highest = self._total
        self.peaks[self._phase] = Counter(self._living)
