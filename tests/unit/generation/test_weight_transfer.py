"""Weights over a process group of gloo, to two workers in threads. With a real vLLM: test_vllm_weight_transfer.py."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from medr1.config.settings import LoraConfig
from medr1.errors import ServerError, ServerUnavailable
from medr1.generation import weight_transfer
from medr1.generation.vllm_client import VLLMClient
from medr1.generation.vllm_worker.medr1_weights import WeightGroup, WeightReceiver
from medr1.generation.weight_transfer import send_weights
from medr1.models.adapters import set_trainable
from medr1.models.export import merged_weights
from medr1.models.policy import Policy


class Worker(WeightReceiver):
    """What vLLM's worker has of itself: a number and a method that loads weights."""

    def __init__(self, number: int) -> None:
        self.rank = number
        self.device = torch.device("cpu")
        self.loaded: dict[str, Tensor] = {}
        self.fails_after: int | None = None

    def reload_weights(self, weights_iterator: Iterable[tuple[str, Tensor]]) -> None:
        self.loaded = {}
        for count, (name, weight) in enumerate(weights_iterator):
            if count == self.fails_after:
                raise ValueError(f"no room for {name}")
            self.loaded[name] = weight


@pytest.fixture
def workers() -> list[Worker]:
    return [Worker(0), Worker(1)]


@pytest.fixture
def client(workers: list[Worker]) -> Iterator[VLLMClient]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            call = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with ThreadPoolExecutor(2) as pool:
                running = [pool.submit(getattr(worker, call["method"]), **call["kwargs"]) for worker in workers]
            errors = [str(error) for done in running if (error := done.exception())]
            body = json.dumps({"errors": errors} if errors else {"results": [done.result() for done in running]})
            self.send_response(500 if errors else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def do_GET(self) -> None:  # /health
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield VLLMClient(f"http://127.0.0.1:{server.server_port}", 20)
    server.shutdown()
    server.server_close()
    weight_transfer.close_groups()


def group_of(client: VLLMClient) -> WeightGroup:
    return weight_transfer._groups[client.url, "gloo", torch.device("cpu")]


def check_received(workers: list[Worker], policy: Policy) -> None:
    expected = dict(merged_weights(policy))
    for worker in workers:
        assert list(worker.loaded) == list(expected)
        assert all(torch.equal(worker.loaded[name], weight) for name, weight in expected.items())
        assert all(worker.loaded[name].dtype == weight.dtype for name, weight in expected.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_each_worker_gets_all_weights_with_the_adapter_merged(
    tuning: str, dtype: torch.dtype, build: Any, workers: list[Worker], client: VLLMClient
) -> None:
    policy, _ = build("qwen2_vl")
    policy.to(dtype)
    set_trainable(policy, lora=LoraConfig(r=2) if tuning == "lora" else None)
    groups = set()
    for _ in range(2):
        send_weights(policy, client, "gloo")
        check_received(workers, policy)
        groups.add(group_of(client).key)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter += 0.1
    assert len(groups) == 1


def test_workers_that_were_started_again_or_serve_another_run_are_joined_anew(
    build: Any, workers: list[Worker], client: VLLMClient
) -> None:
    policy, _ = build("qwen2_vl")
    send_weights(policy, client, "gloo")
    place, first = weight_transfer._groups.popitem()
    send_weights(policy, client, "gloo")  # of another process
    second = group_of(client)
    weight_transfer._groups[place] = first
    send_weights(policy, client, "gloo")
    assert len({first.key, second.key, group_of(client).key}) == 3
    workers[1]._medr1_leave()
    send_weights(policy, client, "gloo")
    check_received(workers, policy)


def test_workers_that_cannot_load_end_the_transfer_with_their_error(
    build: Any, workers: list[Worker], client: VLLMClient
) -> None:
    policy, _ = build("qwen2_vl")
    workers[1].fails_after = 3
    with pytest.raises(ServerError, match=r"start it again.*no room for") as error:
        send_weights(policy, client, "gloo")
    assert not isinstance(error.value, ServerUnavailable) and not weight_transfer._groups
    workers[1].fails_after = None
    send_weights(policy, client, "gloo")
    check_received(workers, policy)


@pytest.mark.parametrize("who", ["training", "worker"])
def test_an_interrupted_transfer_ends_with_whole_layers_and_is_repeated(
    who: str, build: Any, workers: list[Worker], client: VLLMClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, _ = build("qwen2_vl")
    send_weights(policy, client, "gloo")
    group = group_of(client) if who == "training" else workers[0]._medr1_group
    assert group is not None
    broadcast, pieces = group.broadcast, []

    def interrupted(piece: Tensor) -> Any:
        pieces.append(1)
        if len(pieces) < 11:
            return broadcast(piece)
        if who == "training":
            raise KeyboardInterrupt
        group.close()
        raise RuntimeError("no connection")

    monkeypatch.setattr(group, "broadcast", interrupted)
    with pytest.raises(KeyboardInterrupt if who == "training" else ServerUnavailable):
        send_weights(policy, client, "gloo")
    expected = dict(merged_weights(policy))
    for worker in workers:  # vLLM keeps the weights of a layer that is not finished for the next transfer
        assert list(worker.loaded) == list(expected) and not list(worker.loaded.values())[-1].any()
    send_weights(policy, client, "gloo")
    check_received(workers, policy)


def test_a_request_for_another_training_is_not_served(build: Any, workers: list[Worker], client: VLLMClient) -> None:
    policy, _ = build("qwen2_vl")
    send_weights(policy, client, "gloo")
    assert workers[0].medr1_receive("another key", []) == {"interrupted": "another training has joined the server"}
    check_received(workers, policy)


def test_workers_that_do_not_reach_the_training_are_named(
    build: Any, workers: list[Worker], client: VLLMClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, _ = build("qwen2_vl")

    def refuse(*arguments: Any, **more: Any) -> None:
        raise RuntimeError("no route")

    monkeypatch.setattr("medr1.generation.vllm_worker.medr1_weights.TCPStore", refuse)
    with pytest.raises(ServerError, match=r"cannot join this training at 127\.0\.0\.1, port .*no route") as error:
        send_weights(policy, client, "gloo")
    assert not isinstance(error.value, ServerUnavailable)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads /proc")
def test_training_and_workers_listen_on_the_address_toward_each_other_alone(
    build: Any, workers: list[Worker], client: VLLMClient
) -> None:
    policy, _ = build("qwen2_vl")
    before = listening()
    send_weights(policy, client, "gloo")
    opened = listening() - before
    assert opened and all(address == "0100007F" for address, _ in opened)  # 127.0.0.1


def listening() -> set[tuple[str, str]]:
    """Addresses and ports, in hexadecimal digits, of this process's TCP sockets that wait for connections."""
    own = {os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink() and file.exists()}
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    rows = [words for words in lines if words[3] == "0A" and f"socket:[{words[9]}]" in own]
    return {(address, port) for address, port in (words[1].split(":") for words in rows)}
