"""Sends the weights of a policy to a vLLM server over a process group, without a file."""

from __future__ import annotations

import secrets
import shlex
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from medr1.errors import ServerError, ServerUnavailable
from medr1.generation import vllm_worker
from medr1.generation.vllm_worker.medr1_weights import WeightGroup, address_toward, nccl_version
from medr1.models.export import checkpoint_state, merged_weights

if TYPE_CHECKING:
    from medr1.generation.vllm_client import VLLMClient
    from medr1.models.policy import Policy

_POLL = 1e-4  # seconds
_LONGEST_JOIN = 60.0  # seconds
# Of this process, by the server's address: NCCL takes seconds to set one up.
_groups: dict[str, WeightGroup] = {}


def send_weights(policy: Policy, client: VLLMClient, backend: str) -> None:
    """Makes the server load the weights of ``policy``, with any adapter merged. One weight at a time is copied.

    Raises:
        ServerUnavailable: the server has gone. ServerError: it cannot load them.
    """
    group = _groups.pop(client.url, None)
    if group is None or any(worker["group"] != group.key for worker in _workers(client)):
        if group is not None:
            group.close()
        group = _join(client, backend, policy.device)
    described = [
        (name, str(weight.dtype).removeprefix("torch."), list(weight.shape))
        for name, weight in checkpoint_state(policy).items()
    ]
    with ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(_call, client, "medr1_receive", weights=described)
        try:
            for _, weight in merged_weights(policy):
                _send(weight.to(group.device).contiguous(), group, receiving)
            receiving.result()
        except BaseException:
            group.close()  # so that workers do not wait for the rest
            raise
    _groups[client.url] = group


def check_workers(client: VLLMClient, backend: str) -> None:
    """Checks that the server can take weights over ``backend``.

    Raises:
        ServerError: says why not. ServerUnavailable.
    """
    found = _workers(client)
    if backend != "nccl":
        return
    if not torch.cuda.is_available() or any(worker["nccl"] is None for worker in found):
        raise ServerError("NCCL needs GPUs on both sides; use gloo")
    own = nccl_version()
    other = next((worker["nccl"] for worker in found if worker["nccl"] != own), None)
    if other is not None:
        raise ServerError(
            f"the training has NCCL {'.'.join(map(str, own))}, and the server {'.'.join(map(str, other))}; install the "
            "same nvidia-nccl in both environments, or use gloo"
        )


def start_words() -> tuple[str, str]:
    """What stands before and after the command of a server that takes weights over a process group."""
    directory = shlex.quote(str(Path(vllm_worker.__file__).parent))
    return f"PYTHONPATH={directory} ", " --worker-extension-cls medr1_weights.WeightReceiver"


def _workers(client: VLLMClient) -> list[dict[str, Any]]:
    """What each worker of the server says of itself, see ``WeightReceiver.medr1_worker``.

    Raises:
        ServerError: the server was started without what receives weights. ServerUnavailable.
    """
    found: list[dict[str, Any]] = _call(client, "medr1_worker")["results"]
    return found


def _join(client: VLLMClient, backend: str, device: torch.device) -> WeightGroup:
    """A new group of this process and all workers of the server."""
    server = urlsplit(client.url)
    assert server.hostname is not None
    address = address_toward(server.hostname, server.port or 80)
    size, key = 1 + len(_workers(client)), secrets.token_hex(8)
    seconds = min(client.timeout, _LONGEST_JOIN)
    listener = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    port = listener.getsockname()[1]
    store = TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=seconds),
        master_listen_fd=listener.detach(),  # by itself a store listens on all interfaces
    )
    with ThreadPoolExecutor(1) as pool:
        where = {"host": address, "port": port, "size": size, "seconds": seconds}
        joining = pool.submit(_call, client, "medr1_join", key=key, backend=backend, **where)
        try:
            group = WeightGroup(key, backend, store, 0, size, address, device, seconds)
        except RuntimeError as error:
            raise _cause(joining, error) from error
        joining.result()
    return group


def _send(weight: torch.Tensor, group: WeightGroup, receiving: Future[Any]) -> None:
    """Sends a weight, unless the request that receives it fails before.

    Raises:
        ServerUnavailable, ServerError.
    """
    work = group.broadcast(weight)
    try:
        while not work.is_completed():
            if receiving.done():  # it may have got the last weight before this process knows
                receiving.result()
            time.sleep(_POLL)
        work.wait()
    except RuntimeError as error:
        raise _cause(receiving, error) from error


def _cause(request: Future[Any], error: RuntimeError) -> ServerError:
    """Why the other side has gone: the error of its request, which says more than that of the connection."""
    wait([request], timeout=5)
    problem = request.exception() if request.done() else None
    return problem if isinstance(problem, ServerError) else ServerUnavailable(f"the transfer of weights ended: {error}")


def _call(client: VLLMClient, method: str, **arguments: Any) -> Any:
    return client.post("/collective_rpc", {"method": method, "kwargs": arguments})
