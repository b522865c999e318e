"""``rollout=vllm_server`` and servers that it cannot use: what is refused, and what is tried again.

That it generates the completions of the policy is tested with a real server (tests/integration/test_vllm_server.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medr1.config.enums import Precision, WeightTransfer
from medr1.config.settings import LoraConfig, ModelConfig
from medr1.errors import ServerError, ServerTimeout, ServerUnavailable
from medr1.generation.child_process import free_port
from medr1.generation.engines import ENGINES
from medr1.generation.engines.vllm_server import (
    VLLMServerConfig,
    VLLMServerEngine,
    _completions,
    fingerprint,
    start_command,
)
from medr1.generation.sampling import Sampling
from medr1.generation.vllm_client import VLLMClient
from medr1.models.adapters import set_trainable
from medr1.models.export import save_merged_weights

Replies = dict[str, tuple[int, Any]]  # path -> status (0: the connection is closed) and body
MODEL = ModelConfig("hf", "tiny", "a checkpoint", dtype=Precision.float32)


def served(is_chunked: bool = False, engines: int = 1, extension: str = "", **changes: str) -> Replies:
    """The replies of a usable server on a CPU to the questions at the start, with changes of its model."""
    info = {
        "model_config": {"logprobs_mode": "processed_logprobs", "dtype": "torch.float32", **changes},
        "device_config": {"device": "cpu", "device_type": "cpu"},
        "scheduler_config": {"enable_chunked_prefill": is_chunked},
        "parallel_config": {"data_parallel_size": engines, "worker_extension_cls": extension},
    }
    return {
        "/health": (200, None),
        "/weight_info": (200, {"weight_version": "default"}),
        "/server_info?config_format=json": (200, {"vllm_config": info}),
    }


@pytest.fixture
def serve() -> Iterator[Callable[[Replies], str]]:
    """Starts a server with fixed replies; its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(replies: Replies) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, content = replies.get(self.path, (404, {"detail": "Not Found"}))
                if not status:
                    return
                if content == "slow":
                    Event().wait(1)
                body = content if isinstance(content, bytes) else json.dumps(content).encode() if content else b""
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) + (10 if content == "cut" else 0)))
                if 300 <= status < 400:
                    self.send_header("Location", "/health")
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def settings(url: str, **more: Any) -> VLLMServerConfig:
    return VLLMServerConfig("vllm_server", url=url, weights_dir="nowhere", **more)


def test_a_usable_server_is_accepted(serve: Callable[[Replies], str]) -> None:
    VLLMServerEngine.check_available(settings(serve(served())), MODEL)


@pytest.mark.parametrize(
    ("replies", "words"),
    [
        ({"/health": (503, None)}, ["no vLLM server answers", "HTTP 503", "--no-enable-chunked-prefill"]),
        ({"/health": (200, None)}, ["not in dev mode", "HTTP 404"]),
        (served() | {"/server_info?config_format=json": (200, {"vllm_config": {}})}, ["dev mode", "model_config"]),
        (served() | {"/server_info?config_format=json": (200, [])}, ["dev mode"]),
        (served(logprobs_mode="raw_logprobs"), ["gives raw_logprobs"]),
        (
            served(dtype="torch.bfloat16"),
            ["computes in bfloat16", "model.dtype=float32", "--dtype float32 --no-enable-"],
        ),
        (served(is_chunked=True), ["on a CPU", "--dtype float32 --no-enable-chunked-prefill"]),
    ],
    ids=["failing", "not in dev mode", "no info", "other info", "raw log-probabilities", "precision", "chunks"],
)
def test_an_unusable_server_is_refused_with_the_command_that_starts_it(
    replies: Replies, words: list[str], serve: Callable[[Replies], str]
) -> None:
    url = serve(replies)
    with pytest.raises(ServerError) as error:
        VLLMServerEngine.check_available(settings(url), MODEL)
    command = f"VLLM_SERVER_DEV_MODE=1 vllm serve 'a checkpoint' --host 127.0.0.1 --port {url.rpartition(':')[2]}"
    for word in (f"rollout.url={url}", command, "--logprobs-mode processed_logprobs", "--dtype float32", *words):
        assert word in str(error.value)


EXTENSION = "medr1_weights.WeightReceiver"


@pytest.mark.parametrize(
    ("transfer", "engines", "extension", "nccl", "words"),
    [
        ("gloo", 1, "", None, ["no WeightReceiver", "--worker-extension-cls", "PYTHONPATH="]),
        ("gloo", 2, EXTENSION, None, ["several data parallel engines", "rollout.weight_transfer=files"]),
        ("nccl", 1, EXTENSION, None, ["needs GPUs on both sides"]),
        ("nccl", 1, EXTENSION, [2, 1, 5], ["2.27.3", "2.1.5", "nvidia-nccl"]),
    ],
    ids=["not extended", "data parallel", "no GPU", "another NCCL"],
)
def test_a_server_that_cannot_take_weights_over_a_process_group_is_refused(
    transfer: str,
    engines: int,
    extension: str,
    nccl: list[int] | None,
    words: list[str],
    serve: Callable[[Replies], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reply = {"results": [{"group": None, "nccl": nccl}]}
    url = serve(served(engines=engines, extension=extension) | {"/collective_rpc": (200, reply)})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.nccl.version", lambda: (2, 27, 3))
    with pytest.raises(ServerError) as error:
        VLLMServerEngine.check_available(settings(url, weight_transfer=WeightTransfer(transfer)), MODEL)
    for word in (f"rollout.weight_transfer={transfer}", url, "vllm serve", *words):
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("reply", "health", "is_retried"),
    [
        ((400, {"error": "too long"}), 200, False),
        ((404, {}), 200, False),
        ((302, {}), 200, False),
        ((500, {"error": "shapes"}), 200, False),
        ((500, {"error": "the engine is dead"}), 503, True),
        ((500, {"error": "the engine is dead"}), 0, True),
        ((503, {}), 200, True),
        ((429, {}), 200, True),
        ((0, None), 200, True),
        ((200, b"not JSON"), 200, False),
    ],
    ids=str,
)
def test_only_errors_that_may_pass_are_retried(
    reply: tuple[int, Any], health: int, is_retried: bool, serve: Callable[[Replies], str]
) -> None:
    client = VLLMClient(serve({"/x": reply, "/health": (health, None)}), 5)
    with pytest.raises(ServerError) as error:
        client.post("/x", {})
    assert isinstance(error.value, ServerUnavailable) is is_retried
    assert "/x" in str(error.value)


def test_a_server_that_ends_while_it_says_why_is_away(serve: Callable[[Replies], str]) -> None:
    with pytest.raises(ServerUnavailable, match="HTTP 400, and then IncompleteRead"):
        VLLMClient(serve({"/x": (400, "cut")}), 5).post("/x", {})


def test_a_slow_server_is_told_from_one_that_is_away(serve: Callable[[Replies], str]) -> None:
    client = VLLMClient(serve({"/x": (200, "slow")}), 0.2)
    with pytest.raises(ServerTimeout, match=r"no answer in 0\.2 seconds"):
        client.post("/x", {})
    engine = VLLMServerEngine(settings("http://127.0.0.1:1", timeout=0.2))
    with pytest.raises(ServerError, match=r"raise rollout\.timeout"):
        engine._patiently(lambda: client.post("/x", {}))


@pytest.mark.parametrize(
    ("url", "host"),
    [("http://localhost:1", "127.0.0.1"), ("http://[::1]:1", "127.0.0.1"), ("http://node7:1", "node7")],
)
def test_the_printed_server_listens_on_the_host_of_the_url_alone(url: str, host: str) -> None:
    assert f"--host {host} --port 1 " in start_command(url, "m", "float32")


def test_a_server_that_was_started_again_is_checked_again(
    serve: Callable[[Replies], str], build: Any, tmp_path: Any
) -> None:
    """With raw log-probabilities, the ratios of the correction would be wrong."""
    policy, _ = build("qwen2_vl")
    url = serve(served(logprobs_mode="raw_logprobs"))
    engine = VLLMServerEngine(VLLMServerConfig("vllm_server", url=url, weights_dir=str(tmp_path)))
    with pytest.raises(ServerError, match="gives raw_logprobs"):
        engine._send_weights(policy, "version")
    engine._sent = "default"  # its own
    with pytest.raises(ServerError, match="collective_rpc"):
        engine._send_weights(policy, "version")


def test_the_fingerprint_of_a_large_weight_is_summed_in_parts(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = build("qwen2_vl")
    monkeypatch.setattr("medr1.generation.engines.vllm_server._PART", 7)
    with torch.no_grad():
        weight = next(policy.parameters()).view(-1)
        parts = fingerprint(policy)
        weight[-1] += 1e-5
        assert fingerprint(policy) != parts


def test_a_closed_port_may_open_again() -> None:
    port = free_port()
    with pytest.raises(ServerUnavailable, match=str(port)):
        VLLMClient(f"http://127.0.0.1:{port}", 5).get("/health")


def test_an_engine_waits_and_gives_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    clock = [0.0]
    module = "medr1.generation.engines.vllm_server.time"
    monkeypatch.setattr(f"{module}.monotonic", lambda: clock[0])
    monkeypatch.setattr(f"{module}.sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    engine = VLLMServerEngine(settings("http://127.0.0.1:1", timeout=60.0))
    failures = [3]

    def attempt() -> str:
        if failures[0]:
            failures[0] -= 1
            raise ServerUnavailable("gone")
        return "completions"

    assert engine._patiently(attempt) == "completions" and clock[0] == 1 + 2 + 4
    assert [record.getMessage() for record in caplog.records] == [
        "gone; waiting up to 60 seconds for the vLLM server",
        "the vLLM server at http://127.0.0.1:1 is back",
    ]
    failures[0] = 1000
    with pytest.raises(ServerError, match=r"gone.*rollout\.timeout=60") as error:
        engine._patiently(attempt)
    assert not isinstance(error.value, ServerUnavailable) and clock[0] <= 67


SAMPLING = Sampling(3, 9, (7, 8))


def choice(ids: list[int], count: int | None = None, index: int = 0) -> dict[str, Any]:
    content = [{"logprob": -0.5}] * (len(ids) if count is None else count)
    return {"index": index, "token_ids": ids, "logprobs": {"content": content}, "finish_reason": "stop"}


def test_completions_are_in_the_order_of_their_index() -> None:
    reply = {"choices": [choice([1, 2, 3], index=1), choice([4, 9], index=0)]}
    rows = list(_completions(reply, 2, SAMPLING, "url", "use --max-model-len"))
    assert [[token for token, _ in row] for row in rows] == [[4, 9], [1, 2, 3]]


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ([choice([9]), choice([9], index=1), choice([9], index=2)], "3 completions in place of 2"),
        ([choice([9]), choice([1, 2], index=1)], "--max-model-len"),
        ([choice([9]), choice([1, 9], count=1, index=1)], "1 log-probabilities"),
        ([choice([9]), choice([1, 8, 9], index=1)], "suppressed"),
        ([choice([9]), choice([], index=1)], "0 tokens"),
    ],
    ids=["count", "cut off", "log-probabilities", "suppressed", "empty"],
)
def test_completions_that_the_settings_exclude_are_refused(choices: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ServerError, match=words):
        list(_completions({"choices": choices}, 2, SAMPLING, "url", "use --max-model-len"))


def test_a_temperature_at_which_tokens_cannot_be_suppressed_is_refused(tiny: Any, make_prompts: Any) -> None:
    policy, processor = tiny("qwen2_vl")
    hot = Sampling(3, processor.eos_token_id, (1,), temperature=5.0)
    with pytest.raises(ValueError, match="temperature is 5, at most 4"):
        ENGINES["vllm_server"](settings("http://127.0.0.1:1")).generate(
            policy, processor.encode(make_prompts(processor, [None])), hot, 1, torch.rand(1, 3)
        )


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)], ids=["full", "lora"])
def test_any_trained_weight_changes_the_fingerprint(lora: LoraConfig | None, build: Any) -> None:
    policy, _ = build("qwen2_vl")
    set_trainable(policy, lora=lora)
    found = {fingerprint(policy)}
    trained = [p for p in policy.parameters() if p.requires_grad]
    for parameter in trained:
        with torch.no_grad():
            parameter.view(-1)[0] += 1e-5
        found.add(fingerprint(policy))
    assert len(found) == len(trained) + 1 and fingerprint(policy) in found


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("targets", ["language", "both"])
def test_merged_weights_are_those_of_peft_and_the_policy_stays(
    family: str, targets: str, build: Any, tmp_path: Any
) -> None:
    policy, _ = build(family)
    set_trainable(policy, lora=LoraConfig(r=2, target_modules=targets))
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    save_merged_weights(policy, tmp_path / "model.safetensors")
    after = policy.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    merged = load_file(tmp_path / "model.safetensors")
    expected = policy.model.merge_and_unload().state_dict()
    assert expected.keys() - merged.keys() == ({"lm_head.weight"} if family == "qwen2_vl" else set())  # it is tied
    assert not merged.keys() - expected.keys()
    for name, value in merged.items():
        torch.testing.assert_close(value, expected[name])
