"""Sends the weights of a policy to a vLLM server over a process group, without a file."""

from __future__ import annotations

import atexit
import secrets
import shlex
import socket
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from medr1.errors import ServerError, ServerUnavailable
from medr1.generation import vllm_worker
from medr1.generation.vllm_worker.medr1_weights import (
    PATIENCE,
    Described,
    WeightGroup,
    WeightReceiver,
    nccl_version,
    pieces,
)
from medr1.models.export import checkpoint_state, merged_weights

if TYPE_CHECKING:
    from medr1.generation.vllm_client import VLLMClient
    from medr1.models.policy import Policy

_POLL = 1e-4  # seconds
# Of this process, by the server's address, backend and device: NCCL takes seconds to set one up.
_groups: dict[tuple[str, str, torch.device], WeightGroup] = {}


def send_weights(policy: Policy, client: VLLMClient, backend: str) -> None:
    """Makes the server load the weights of ``policy``, with any adapter merged. One weight at a time is copied.

    Raises:
        ServerUnavailable: they have not arrived, and can be sent again. ServerError: the server cannot load them.
    """
    if backend == "nccl" and policy.device.type != "cuda":
        raise ServerError(f"NCCL sends from a GPU, and the policy is on {policy.device}; use gloo")
    place = (client.url, backend, policy.device)
    found = _call(client, "medr1_worker")
    group = _groups.pop(place, None)
    if group is None or any(worker["group"] != group.key for worker in found):
        if group is not None:
            group.close()
        group = _join(client, backend, policy.device, len(found))
    state = checkpoint_state(policy).items()
    described = [(name, str(weight.dtype).removeprefix("torch."), list(weight.shape)) for name, weight in state]
    with ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(_receive, client, group.key, described)
        try:
            for _, weight in merged_weights(policy):
                for piece in pieces(weight.to(group.device).contiguous()):
                    _send(piece, group, receiving)
            receiving.result()
        except BaseException:
            group.close()  # so that workers do not wait for the rest
            raise
    _groups[place] = group


def check_workers(client: VLLMClient, backend: str, parallel_config: Mapping[str, Any]) -> None:
    """Checks that the server can take weights over ``backend``. ``parallel_config``: that of vLLM.

    Raises:
        ServerError: says why not. ServerUnavailable.
    """
    if not str(parallel_config["worker_extension_cls"]).endswith(WeightReceiver.__name__):
        raise ServerError("its workers have no WeightReceiver")
    if parallel_config["data_parallel_size"] > 1:
        raise ServerError(
            "it has several data parallel engines, of which one alone would answer; start it without "
            "--data-parallel-size, or use rollout.weight_transfer=files"
        )
    if backend != "nccl":
        return
    found = _call(client, "medr1_worker")
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


def _join(client: VLLMClient, backend: str, device: torch.device, workers: int) -> WeightGroup:
    """A new group of this process and all ``workers`` of the server.

    Raises:
        ServerUnavailable, ServerError.
    """
    size, key = 1 + workers, secrets.token_hex(8)
    address = _address_toward(client)
    listener = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    port = listener.getsockname()[1]
    store = TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=PATIENCE),
        master_listen_fd=listener.detach(),  # by itself a store listens on all interfaces
    )
    joined: Future[WeightGroup] = Future()

    def join() -> None:
        try:
            joined.set_result(WeightGroup(key, backend, store, 0, size, address, device))
        except BaseException as error:
            joined.set_exception(error)

    # Where workers do not come, NCCL waits for them without end.
    Thread(target=join, name="weight transfer", daemon=True).start()
    here = {"host": address, "port": port, "size": size}
    problem = next(filter(None, _call(client, "medr1_join", key=key, backend=backend, **here)), None)
    if problem:
        raise ServerError(
            f"the workers of the server cannot join this training at {address}, port {port} and further ones, over "
            f"{backend}: {problem}"
        )
    try:
        return joined.result(timeout=PATIENCE)
    except (RuntimeError, TimeoutError) as error:
        raise ServerUnavailable(f"the workers of {client.url} have joined, and then left: {error!r}") from error


def _address_toward(client: VLLMClient) -> str:
    """The address of this machine from which it reaches the server."""
    server = urlsplit(client.url)
    try:
        port = server.port or (443 if server.scheme == "https" else 80)
        with socket.create_connection((server.hostname or "", port), timeout=PATIENCE) as connection:
            found: str = connection.getsockname()[0]
            return found
    except OSError as error:
        raise ServerUnavailable(f"{client.url}: {error}") from error


def _receive(client: VLLMClient, key: str, described: Described) -> None:
    """Asks the workers to load what is sent, and waits until they have."""
    results = _call(client, "medr1_receive", key=key, weights=described)
    for problem in (result["failed"] for result in results if "failed" in result):
        raise ServerError(f"vLLM cannot load the weights, and has lost its own; start it again. {problem}")
    for problem in (result["interrupted"] for result in results if "interrupted" in result):
        raise ServerUnavailable(f"{client.url}: the transfer of weights was interrupted: {problem}")


def _send(piece: torch.Tensor, group: WeightGroup, receiving: Future[None]) -> None:
    """Sends a piece of a weight, unless the request that receives it fails before.

    Raises:
        ServerUnavailable, ServerError.
    """
    work = None
    try:
        work = group.broadcast(piece)
        while not work.is_completed():
            if receiving.done():  # it may have got the last piece before this process knows
                receiving.result()
            time.sleep(_POLL)
        work.wait()
        return
    except RuntimeError as error:
        problem = error
    finally:
        work = None  # it holds the connections, which then cannot be closed
    group.close()  # workers that still wait end the request, whose error says more than that of a connection
    wait([receiving], timeout=PATIENCE)
    if receiving.done():
        receiving.result()
    raise ServerUnavailable(f"the transfer of weights was interrupted: {problem}") from problem


def _call(client: VLLMClient, method: str, **arguments: Any) -> list[Any]:
    """What each worker returns."""
    results: list[Any] = client.post("/collective_rpc", {"method": method, "kwargs": arguments})["results"]
    return results


@atexit.register
def close_groups() -> None:
    """Leaves all groups of this process."""
    while _groups:
        _groups.popitem()[1].close()
