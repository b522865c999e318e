"""A function of tensors, recorded as a CUDA graph: later calls launch all of its kernels at once.

Decoding runs some hundred small kernels for each token, and Python takes longer to launch them than a GPU to run them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

_WARM_UP = 2  # calls before the recording, in which libraries allocate what they must not allocate during it


class CudaGraph:
    """Calls ``function``, from the third time on by replaying what it did in the third call.

    It must do the same in every call, except for the values of its inputs: the same shapes, no decision of Python that
    depends on a value, and no tensor of the CPU. The outputs are overwritten by the next call.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self._function, self._calls = function, 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        self._calls += 1
        if self._calls <= _WARM_UP:
            return self._function(*inputs)
        if self._graph is None:
            self._record(inputs)
        assert self._graph is not None
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        """Runs no kernel. ``torch.cuda.graph`` would empty the allocator's cache, which training then fills again."""
        self._inputs = [value.clone() for value in inputs]
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Other threads, such as those that pin the memory of batches, may call CUDA meanwhile.
            graph.capture_begin(_pool(torch.cuda.current_device()), capture_error_mode="thread_local")
            try:
                self._outputs = self._function(*self._inputs)
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = graph


def _pool(device: int) -> Any:
    """The memory of all graphs of a device. With a pool each, that of earlier ones would be kept until none is left."""
    return _mem_pool(device).id


@cache
def _mem_pool(device: int) -> torch.cuda.MemPool:
    return torch.cuda.MemPool()
