"""Weights over a process group, from a training to the workers of a vLLM server.

vLLM imports this file as ``medr1_weights`` in an environment without medr1, so it may import torch and the standard
library only. ``--worker-extension-cls medr1_weights.WeightReceiver`` makes its methods those of each worker.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import BroadcastOptions, ProcessGroupGloo, Store, TCPStore, Work  # type: ignore[attr-defined]


class WeightGroup:
    """The training, with rank 0, and all workers of a server, beside torch's default process group.

    ``key``: the same in all members. ``address``: of this machine, as the other members reach it. ``device``: of the
    tensors that NCCL sends; gloo sends those of the CPU. ``seconds``: without progress until a transfer has failed.
    """

    def __init__(
        self,
        key: str,
        backend: str,
        store: Store,
        rank: int,
        size: int,
        address: str,
        device: torch.device,
        seconds: float,
    ) -> None:
        self.key, self._store = key, store
        if backend == "nccl":
            from torch.distributed import ProcessGroupNCCL

            nccl = ProcessGroupNCCL.Options()
            nccl._timeout = timedelta(seconds=seconds)
            self._group: Any = ProcessGroupNCCL(store, rank, size, nccl)
            self.device = device
        else:
            gloo = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            gloo._timeout = timedelta(seconds=seconds)
            gloo._devices = [ProcessGroupGloo.create_device(hostname=address)]
            self._group = ProcessGroupGloo(store, rank, size, gloo)
            self.device = torch.device("cpu")

    def broadcast(self, weight: torch.Tensor) -> Work:
        """Starts to send ``weight`` from rank 0 to all others. ``weight``: contiguous, on ``device``."""
        options = BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        content = weight.reshape(-1).view(torch.uint8)  # gloo does not know all types
        work: Work = self._group.broadcast([content], options)
        return work

    def close(self) -> None:
        """Ends transfers of all members. The group cannot be used afterwards."""
        self._group.abort()
        self._group = None  # gloo closes its connections with its last reference


class WeightReceiver:
    """Methods of a vLLM worker. They are called by name, with ``/collective_rpc``."""

    _medr1_group: WeightGroup | None = None
    vllm_config: Any
    rank: int
    device: torch.device

    def medr1_worker(self) -> dict[str, Any]:
        """This worker's number among all workers of the server, its group's key and its version of NCCL."""
        parallel = self.vllm_config.parallel_config
        return {
            "number": parallel.data_parallel_index * parallel.world_size + self.rank,
            "group": self._medr1_group and self._medr1_group.key,
            "nccl": nccl_version() if self.device.type == "cuda" else None,
        }

    def medr1_join(self, key: str, backend: str, host: str, port: int, size: int, seconds: float) -> None:
        """Joins the group of the training that has a store at ``host`` and ``port``. Leaves the one of before."""
        self._medr1_leave()
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=seconds))
        rank = 1 + self.medr1_worker()["number"]
        self._medr1_group = WeightGroup(
            key, backend, store, rank, size, address_toward(host, port), self.device, seconds
        )

    def medr1_receive(self, weights: list[tuple[str, str, list[int]]]) -> None:
        """Loads weights in the order in which the training sends them: name, dtype and shape of each.

        Raises:
            RuntimeError: the training has gone. The worker has lost its weights and waits for others.
        """
        received = self._medr1_received(weights)
        try:
            self.reload_weights(weights_iterator=received)  # type: ignore[attr-defined]
            for _ in received:  # those that the model does not use
                pass
        except BaseException:
            self._medr1_leave()
            raise

    def _medr1_received(self, weights: list[tuple[str, str, list[int]]]) -> Iterator[tuple[str, torch.Tensor]]:
        assert self._medr1_group is not None
        for name, dtype, shape in weights:
            weight = torch.empty(shape, dtype=getattr(torch, dtype), device=self._medr1_group.device)
            self._medr1_group.broadcast(weight).wait()
            yield name, weight

    def _medr1_leave(self) -> None:
        if self._medr1_group is not None:
            self._medr1_group.close()
            self._medr1_group = None


def nccl_version() -> list[int]:
    """Of this environment, such as [2, 27, 3]."""
    return list(torch.cuda.nccl.version())  # type: ignore[no-untyped-call]


def address_toward(host: str, port: int) -> str:
    """The address of this machine from which it reaches ``host``."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as unused:
        unused.connect(address)  # sends nothing
        found: str = unused.getsockname()[0]
        return found
