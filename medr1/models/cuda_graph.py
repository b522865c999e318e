"""A function of tensors, recorded as a CUDA graph: later calls launch all of its kernels at once.

Decoding runs some hundred small kernels for each token, and Python takes longer to launch them than a GPU to run them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

_WARM_UP = 2  # calls before the recording, in which libraries allocate what they must not allocate during it


class CudaGraph:
    """Calls ``function``, from the third time on by replaying what it did in the third call.

    It must do the same in every call, except for the values of its inputs: the same shapes, no decision of Python that
    depends on a value, and no tensor of the CPU. Other tensors that it reads must keep their memory. The outputs are
    overwritten by the next call.
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
        self._inputs = [value.clone() for value in inputs]
        with torch.cuda.device(inputs[0].device):
            stream, keeper = _shared(torch.cuda.current_device())
            capture = partial(_capture, stream, keeper.pool(), self._function, *self._inputs)
            try:
                self._graph, self._outputs = capture()
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()  # which the allocator does not do while it records
                self._graph, self._outputs = capture()


@cache
def _shared(device: int) -> tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]:
    """What all graphs of a device share: a stream, and a trivial graph whose pool of memory the others use as well.

    Each rollout thus uses the memory of the one before. A pool can be used again only while a graph of it exists.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    keeper, _ = _capture(stream, None, lambda: (torch.zeros(1, device=f"cuda:{device}"),))
    return stream, keeper


def free_shared_memory() -> None:
    """Frees the memory of recorded graphs that no longer exist. The next recording allocates it anew."""
    if _shared.cache_info().currsize:
        _shared.cache_clear()
        torch.cuda.empty_cache()


def _capture(
    stream: torch.cuda.Stream, pool: Any, function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor
) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    """Records ``function`` without running its kernels.

    ``torch.cuda.graph`` would empty the allocator's cache, which training then had to fill again.
    """
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Other threads, such as the one that pins the memory of batches, may call CUDA meanwhile.
        graph.capture_begin(pool, capture_error_mode="thread_local")
        try:
            outputs = function(*inputs)
        except BaseException:
            with suppress(RuntimeError):  # of a recording that the error has made invalid
                graph.capture_end()
            raise
        graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph, outputs
