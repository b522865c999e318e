"""The chat client against a scripted HTTP server: what is sent, what is retried, and which errors a user sees."""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import openai._base_client
import pytest

from medr1.errors import ConfigError, ServerError
from medr1.evaluation.chat_client import ChatClient, ChatCompletion
from tests.scripted_server import DROP, ScriptedServer, Step, completion, scripted_server

KEY = "sk-very-secret"


GOOD: Step = (200, completion(), {})


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedServer]]:
    """Starts a server that sends the given replies, one for each request."""
    with ExitStack() as stack:

        def start(*script: Step) -> ScriptedServer:
            steps = iter(script)
            return stack.enter_context(scripted_server(lambda _: next(steps)))

        yield start


@pytest.fixture(autouse=True)
def short_retry_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)


def ask(url: str, **settings: Any) -> ChatCompletion:
    client = ChatClient(url, "name", **{"timeout": 5.0, "max_retries": 2, **settings})
    return client.complete([b"PNG", "What?"], 9, record="r1")


def test_a_request_is_greedy_with_its_image_first_and_the_key_in_its_header(
    scripted: Callable[..., ScriptedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-server")
    server = scripted(GOOD, (200, completion(None, 9, "length"), {}))
    assert ask(server.url, api_key=KEY) == ChatCompletion("<answer>A</answer>", 7, False)
    assert ask(server.url + "/", repetition_penalty=1.0) == ChatCompletion("", 9, True)
    (_, path, headers, body), (_, _, without, penalised) = server.requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert "Authorization" not in without and penalised == {**body, "repetition_penalty": 1.0}
    assert body["temperature"] == 0 and "seed" not in body
    image, text = body["messages"][0]["content"]
    assert image["image_url"]["url"] == "data:image/png;base64,UE5H" and text == {"type": "text", "text": "What?"}
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("name", 0, 9)


def test_texts_and_images_are_sent_in_their_order(scripted: Callable[..., ScriptedServer]) -> None:
    server = scripted(GOOD)
    client = ChatClient(server.url, "name", timeout=5.0, max_retries=0)
    client.complete([b"1", "Is ", b"2", "?"], 9, record="r1")
    content = server.requests[0][3]["messages"][0]["content"]
    assert [part.get("text") or part["image_url"]["url"][22:] for part in content] == ["MQ==", "Is ", "Mg==", "?"]


def test_a_server_on_this_machine_is_reached_without_the_proxy(
    scripted: Callable[..., ScriptedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert ask(scripted(GOOD).url).length == 7


@pytest.mark.parametrize("problem", [DROP, (500, b"", {}), (503, {"detail": "loading"}, {}), (429, {}, {})])
def test_temporary_problems_are_retried(problem: Step, scripted: Callable[..., ScriptedServer]) -> None:
    server = scripted(problem, problem, GOOD)
    assert ask(server.url).length == 7 and len(server.requests) == 3


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_replaces_the_delay_of_the_client(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = list[float]()
    monkeypatch.setattr(openai._base_client, "time", SimpleNamespace(time=time.time, sleep=waits.append))
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 8.0)

    def replies() -> Iterator[Step]:
        yield status, {}, {"Retry-After": "11"}
        yield status, {}, {"Retry-After": formatdate(time.time() + 50, usegmt=True)}
        yield GOOD

    steps = replies()
    with scripted_server(lambda _: next(steps)) as server:
        ask(server.url)
    assert waits == [11, pytest.approx(35, abs=15)]


def test_the_delay_doubles(scripted: Callable[..., ScriptedServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.1)
    server = scripted(DROP, DROP, DROP, GOOD)
    ask(server.url, max_retries=3)
    first, second, third, fourth = (when for when, *_ in server.requests)
    assert second - first >= 0.07 and third - second >= 0.14 and fourth - third >= 0.29


def test_a_server_that_asks_for_a_long_wait_is_not_waited_for(scripted: Callable[..., ScriptedServer]) -> None:
    """Older versions of the library retry after their own short delay."""
    server = scripted(*[(429, {"error": {"message": "daily quota"}}, {"Retry-After": "7200"})] * 3)
    with pytest.raises(ServerError, match=r"record r1: HTTP 429.*7200.*daily quota"):
        ask(server.url)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ((400, {"error": {"message": "image too large"}}, {}), "HTTP 400.*image too large"),
        ((401, {"error": {"message": f"no such key {KEY}"}}, {}), r"HTTP 401.*no such key \[key\]"),
        ((404, {"object": "error", "message": "no model name"}, {}), "HTTP 404.*no model name"),
        ((422, {"detail": "Unexpected fields"}, {}), "HTTP 422.*Unexpected fields"),
        ((302, b"", {"Location": "http://127.0.0.1:1/"}), "HTTP 302"),
        ((200, b"<html>hello", {}), "hello"),
        ((200, b"<html>hello", {"Content-Type": "text/html"}), "hello"),
        ((200, b"{hello", {"Content-Type": "application/json"}), "hello"),
        ((200, b"\xff\xfe", {"Content-Type": "application/json"}), ""),
        ((200, {"choices": []}, {}), "choices"),
        ((200, {"choices": [None], "usage": {"completion_tokens": 1}}, {}), "choices"),
        ((200, ["choices"], {}), "choices"),
        ((200, completion(tokens="7"), {}), "completion_tokens '7'"),
        ((200, completion(tokens=True), {}), "completion_tokens True"),
        ((200, completion(tokens=-1), {}), "completion_tokens -1"),
        ((200, completion(content=[1]), {}), r"content \[1\]"),
        ((200, completion(reasoning_content="hm"), {}), "--reasoning-parser"),
        ((200, completion(reasoning="hm"), {}), "--reasoning-parser"),
    ],
)
def test_a_permanent_problem_fails_at_once(step: Step, said: str, scripted: Callable[..., ScriptedServer]) -> None:
    server = scripted(step, GOOD)
    with pytest.raises(ServerError, match=f"{server.url}/chat/completions, record r1: .*{said}") as error:
        ask(server.url, api_key=KEY)
    assert len(server.requests) == 1 and KEY not in str(error.value)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(status: int, scripted: Callable[..., ScriptedServer]) -> None:
    target = scripted(GOOD)
    with pytest.raises(ServerError, match=f"HTTP {status}"):
        ask(scripted((status, b"", {"Location": f"{target.url}/chat/completions"})).url, api_key=KEY)
    assert target.requests == []


def test_the_last_reply_is_named_after_all_retries(scripted: Callable[..., ScriptedServer]) -> None:
    server = scripted(DROP, (502, {}, {}), (503, {"error": {"message": "out of memory"}}, {}))
    with pytest.raises(ServerError, match=r"record r1: HTTP 503.*out of memory.*2 retries"):
        ask(server.url)
    assert len(server.requests) == 3


def test_no_server_and_a_silent_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with pytest.raises(ServerError, match=r"no answer: .*timed out.*1 retries"):
            ask(url, timeout=0.1, max_retries=1)
    with pytest.raises(ServerError, match=r"no answer: .*refused.*2 retries"):
        ask(url)


def test_nothing_is_logged_for_a_request_that_is_retried(
    scripted: Callable[..., ScriptedServer], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        ask(scripted(DROP, (503, {}, {}), GOOD).url, api_key=KEY)
    assert caplog.text == ""


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"medr1\[server\]"):
        ask("http://127.0.0.1:1/v1")


def test_a_sample_has_its_temperature_and_seed(scripted: Callable[..., ScriptedServer]) -> None:
    server = scripted(GOOD)
    client = ChatClient(server.url, "name", timeout=5.0, max_retries=0)
    client.complete([b"PNG", "What?"], 9, record="r1", temperature=0.7, seed=2**63 - 1)
    ((_, _, _, body),) = server.requests
    assert (body["temperature"], body["seed"]) == (0.7, 2**63 - 1)
