"""Weights over a process group, from a training to the workers of a vLLM server.

vLLM imports this file as ``medr1_weights`` in an environment without medr1, so it may import torch and the standard
library only. ``--worker-extension-cls medr1_weights.WeightReceiver`` makes its methods those of each worker.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import BroadcastOptions, ProcessGroupGloo, Store, TCPStore, Work  # type: ignore[attr-defined]

PATIENCE = 60.0  # seconds that a piece of a weight may take
_PIECE = 2**26  # bytes
Described = list[tuple[str, str, list[int]]]  # name, dtype and shape of each weight, in the order of sending


class WeightGroup:
    """The training, with rank 0, and all workers of a server, beside torch's default process group.

    It exists as soon as all are there. ``key``: the same in all of them. ``address``: of this machine, as the others
    reach it. ``device``: of the tensors that NCCL sends; gloo sends those of the CPU.

    Raises:
        RuntimeError: another one does not come.
    """

    def __init__(
        self, key: str, backend: str, store: Store, rank: int, size: int, address: str, device: torch.device
    ) -> None:
        self.key, self._store = key, store
        if backend == "nccl":
            from torch.distributed import ProcessGroupNCCL

            nccl = ProcessGroupNCCL.Options()
            nccl._timeout = timedelta(seconds=PATIENCE)
            with _errors_are_raised():
                self._group: Any = ProcessGroupNCCL(store, rank, size, nccl)
            self.device = device
        else:
            gloo = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            gloo._timeout = timedelta(seconds=PATIENCE)
            gloo._devices = [ProcessGroupGloo.create_device(hostname=address)]
            self._group = ProcessGroupGloo(store, rank, size, gloo)
            self.device = torch.device("cpu")
        self.broadcast(torch.zeros(1, dtype=torch.uint8, device=self.device)).wait()  # with it NCCL connects

    def broadcast(self, piece: torch.Tensor) -> Work:
        """Starts to send a part of ``pieces`` from rank 0 to all others."""
        options = BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        work: Work = self._group.broadcast([piece], options)
        return work

    def close(self) -> None:
        """Ends transfers of all members. The group cannot be used afterwards."""
        group, self._group = self._group, None  # gloo closes its connections with its last reference
        if group is not None:
            with suppress(RuntimeError):  # of a group that has failed
                group.abort()


def pieces(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The bytes of a contiguous weight, which gloo and NCCL send whatever its type. Writing to them changes it."""
    return torch.split(weight.reshape(-1).view(torch.uint8), _PIECE)


class WeightReceiver:
    """Methods of a vLLM worker, called by name with ``/collective_rpc``.

    None of them raises, because after an exception of one of several workers vLLM takes the replies of the others
    for those to the next call.
    """

    _medr1_group: WeightGroup | None = None
    rank: int
    device: torch.device

    def medr1_worker(self) -> dict[str, Any]:
        """The key of this worker's group, and its version of NCCL."""
        return {
            "group": self._medr1_group and self._medr1_group.key,
            "nccl": nccl_version() if self.device.type == "cuda" else None,
        }

    def medr1_join(self, key: str, backend: str, host: str, port: int, size: int) -> str:
        """Joins the group of the training that has a store at ``host``, an IP address, and ``port``. Leaves the one of
        before. Returns an error or ""."""
        self._medr1_leave()
        try:
            store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=PATIENCE))
            address, rank = _address_toward(host, port), 1 + self.rank
            self._medr1_group = WeightGroup(key, backend, store, rank, size, address, self.device)
        except Exception as error:
            return str(error) or repr(error)
        return ""

    def medr1_receive(self, key: str, weights: Described) -> dict[str, str]:
        """Loads the weights that the training ``key`` sends.

        Returns ``interrupted``: why not all have arrived. They can be sent again. Or ``failed``: why vLLM cannot load
        them, after which it is of no use.
        """
        if self._medr1_group is None or self._medr1_group.key != key:
            return {"interrupted": "another training has joined the server"}
        errors: list[str] = []
        received = self._medr1_received(weights, errors)
        try:
            self.reload_weights(weights_iterator=received)  # type: ignore[attr-defined]
            for _ in received:  # those that the model does not use
                pass
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        except Exception as error:
            self._medr1_leave()
            return {"failed": repr(error)}
        if errors:
            self._medr1_leave()
            return {"interrupted": errors[0]}
        return {}

    def _medr1_received(self, weights: Described, errors: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights as they arrive, and zeros after an error: weights of a layer that vLLM could not finish would be
        mixed into the next ones."""
        group = self._medr1_group
        assert group is not None
        for name, dtype, shape in weights:
            weight = torch.zeros(shape, dtype=getattr(torch, dtype), device=group.device)
            try:
                for piece in () if errors else pieces(weight):
                    group.broadcast(piece).wait()
            except RuntimeError as error:
                errors.append(str(error))
            yield name, weight

    def _medr1_leave(self) -> None:
        if self._medr1_group is not None:
            self._medr1_group.close()
            self._medr1_group = None


def nccl_version() -> list[int]:
    """Of this environment, such as [2, 27, 3]."""
    return list(torch.cuda.nccl.version())  # type: ignore[no-untyped-call]


def _address_toward(host: str, port: int) -> str:
    """The address of this machine from which it reaches the IP address ``host``."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.connect((host, port))  # sends nothing
        found: str = unused.getsockname()[0]
        return found


@contextmanager
def _errors_are_raised() -> Iterator[None]:
    """By default an error of NCCL ends the process. A group that is made in this context raises it in ``wait``."""
    name = "TORCH_NCCL_BLOCKING_WAIT"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
