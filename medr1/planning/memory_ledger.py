"""Counts the bytes of all living tensors, operation by operation, and what they are for.

The same ledger is kept of tensors that hold numbers (a measurement) and of tensors on the meta device that hold none
(a rehearsal): the storage of either knows its size.
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
PARTS = (WEIGHTS, REFERENCE, GRADIENTS, OPTIMIZER, ACTIVATIONS, CACHES, LOGITS)


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, every storage that an operation makes is entered, and struck out when its last tensor is gone.

    ``peaks`` has, for each phase, the bytes of each part at the moment when their sum was largest. A tensor that nobody
    has named belongs to the phase's own part, or to the logits where its last dimension is the vocabulary. A library's
    scratch memory within one operation is not seen.
    """

    def __init__(self, vocabulary: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peaks: dict[str, Counter[str]] = {}
        self._vocabulary = vocabulary
        self._living: Counter[str] = Counter()
        self._entries: dict[int, tuple[str, int]] = {}
        self._total = 0
        self._phase, self._part, self._highest = "start", ACTIVATIONS, 0

    @contextmanager
    def phase(self, name: str, part: str = ACTIVATIONS) -> Iterator[None]:
        """What happens inside belongs to the phase; its peak begins with what is there already."""
        before = self._phase, self._part
        self._begin(name, part)
        try:
            yield
        finally:
            self._begin(*before)

    def name(self, part: str, tensors: Iterable[Tensor]) -> None:
        """Enters the tensors' storages under ``part``, or moves them there."""
        for tensor in tensors:
            self.enter(tensor, part)

    def enter(self, tensor: Tensor, part: str | None = None) -> None:
        """Enters a storage that is not known yet; a known one moves to ``part``, if that is given."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._entries.get(key)
        if known is None:
            weakref.finalize(storage, self._strike, key).atexit = False
            size = storage.nbytes()
            self._total += size
        elif part is None or part == known[0]:
            return
        else:
            size = known[1]
            self._living[known[0]] -= size
        if part is None:
            wide = tensor.ndim > 1 and tensor.shape[-1] == self._vocabulary and tensor.is_floating_point()
            part = LOGITS if wide else self._part
        self._entries[key] = (part, size)
        self._living[part] += size
        if self._total > self._highest:
            self._note()

    @property
    def peak(self) -> int:
        """Bytes at the highest moment of all phases."""
        return max((sum(parts.values()) for parts in self.peaks.values()), default=0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = self.run(func, args, dict(kwargs or {}))
        for tensor in (out,) if isinstance(out, Tensor) else tree_iter(out):
            if isinstance(tensor, Tensor):
                self.enter(tensor)
        return out

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Carries out one operation."""
        return func(*args, **kwargs)

    def _begin(self, phase: str, part: str) -> None:
        self._phase, self._part = phase, part
        self._highest = sum(self.peaks.get(phase, Counter()).values())
        if self._total > self._highest:
            self._note()

    def _strike(self, key: int) -> None:
        part, size = self._entries.pop(key)
        self._living[part] -= size
        self._total -= size

    def _note(self) -> None:
        self._highest = self._total
        self.peaks[self._phase] = Counter(self._living)
