"""One question to a scripted server: what is asked again, after how long, and what is said when it is no use."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest

from medr1.errors import ServerError
from medr1.evaluation.chat_client import ChatServer, Reply, Stopped

KEY = "sk-very-secret"


def completion(
    content: Any = "<answer>A</answer>", tokens: Any = 7, reason: str = "stop", **more: Any
) -> dict[str, Any]:
    choice = {"message": {"content": content, **more}, "finish_reason": reason}
    return {"choices": [choice], "usage": {"completion_tokens": tokens}}


Step = tuple[int, Any, dict[str, str]]  # status, body, headers
DROP: Step = (0, None, {})  # the connection is closed without a word
GOOD: Step = (200, completion(), {})


class Scripted(ThreadingHTTPServer):
    """Gives the answers of its script, one for each request, and keeps what was asked."""

    def __init__(self, script: list[Step]) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.script, self.asked = script, list[tuple[float, str, dict[str, str], Any]]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Answering(BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((time.monotonic(), self.path, dict(self.headers), body))
        status, content, headers = self.server.script.pop(0)
        if not status:
            return
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    made: list[Scripted] = []

    def start(*script: Step) -> Scripted:
        made.append(Scripted(list(script)))
        Thread(target=made[-1].serve_forever, args=(0.01,), daemon=True).start()
        return made[-1]

    yield start
    for server in made:
        server.shutdown()
        server.server_close()


def ask(url: str, stop: Event | None = None, **settings: Any) -> Reply:
    chosen = {"timeout": 5.0, "attempts": 3, "backoff": 0.01, **settings}
    return ChatServer(url, "name", **chosen).ask("What?", b"PNG", 9, record="r1", stop=stop or Event())


def test_a_question_is_greedy_with_its_picture_first_and_the_key_in_its_header(scripted) -> None:
    server = scripted(GOOD, (200, completion(None, 9, "length"), {}))
    assert ask(server.url, key=KEY) == Reply("<answer>A</answer>", 7, False)
    assert ask(server.url + "/", repetition_penalty=1.0) == Reply("", 9, True)
    (_, path, headers, body), (_, _, without, penalised) = server.asked
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert "Authorization" not in without and penalised == {**body, "repetition_penalty": 1.0}
    picture, text = body["messages"][0]["content"]
    assert picture["image_url"]["url"] == "data:image/png;base64,UE5H" and text == {"type": "text", "text": "What?"}
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("name", 0, 9)


@pytest.mark.parametrize("trouble", [DROP, (500, b"", {}), (503, {"detail": "loading"}, {}), (429, {}, {})])
def test_trouble_that_passes_is_asked_again(trouble: Step, scripted) -> None:
    server = scripted(trouble, trouble, GOOD)
    assert ask(server.url).length == 7 and len(server.asked) == 3


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_goes_before_the_own_wait(status: int, scripted) -> None:
    in_a_while = formatdate(time.time() + 2, usegmt=True)  # whole seconds, so at least one
    server = scripted(
        (status, {}, {"Retry-After": "1"}),
        (status, {}, {"Retry-After": in_a_while}),
        (status, {}, {"Retry-After": "0"}),
        GOOD,
    )
    ask(server.url, max_retries=4, backoff=50.0)
    first, second, third, fourth = (when for when, *_ in server.asked)
    assert second - first >= 0.95 and third - second >= 0.01 and fourth - third < 5


def test_the_wait_doubles(scripted) -> None:
    server = scripted(DROP, DROP, DROP, GOOD)
    ask(server.url, max_retries=4, backoff=0.1)
    first, second, third, fourth = (when for when, *_ in server.asked)
    assert second - first >= 0.07 and third - second >= 0.14 and fourth - third >= 0.29


def test_a_server_that_wants_long_peace_is_left_in_peace(scripted) -> None:
    server = scripted((429, {"error": {"message": "daily quota"}}, {"Retry-After": "7200"}))
    with pytest.raises(ServerError, match=r"record r1: HTTP 429 .*daily quota; .* for 7200 s"):
        ask(server.url)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ((400, {"error": {"message": "picture too large"}}, {}), "HTTP 400 .*picture too large"),
        ((401, {"error": {"message": f"no such key {KEY}"}}, {}), r"HTTP 401 .*no such key \[key\]"),
        ((404, {"object": "error", "message": "no model name"}, {}), "HTTP 404 .*no model name"),
        ((422, {"detail": "Unexpected fields"}, {}), "HTTP 422 .*Unexpected fields"),
        ((302, b"", {"Location": "http://127.0.0.1:1/"}), "HTTP 302"),
        ((200, b"<html>hello", {}), "not a chat completion.*hello"),
        ((200, {"choices": []}, {}), "not a chat completion"),
        ((200, completion(tokens="7"), {}), "completion_tokens '7'"),
        ((200, completion(content=[1]), {}), r"content \[1\]"),
        ((200, completion(reasoning_content="hm"), {}), "without a reasoning parser"),
    ],
)
def test_what_asking_again_would_not_mend_fails_at_once(step: Step, said: str, scripted) -> None:
    server = scripted(step, GOOD)
    with pytest.raises(ServerError, match=f"{server.url}/chat/completions, record r1: .*{said}") as error:
        ask(server.url, key=KEY)
    assert len(server.asked) == 1 and KEY not in str(error.value)


def test_the_last_answer_is_named_when_it_does_not_pass(scripted) -> None:
    server = scripted(DROP, (502, {}, {}), (503, {"error": {"message": "out of memory"}}, {}))
    with pytest.raises(ServerError, match=r"record r1: HTTP 503 .*out of memory \(3 times\)"):
        ask(server.url)


def test_nobody_there_and_somebody_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with pytest.raises(ServerError, match=r"no answer: .*timed out \(2 times\)"):
            ask(url, timeout=0.1, max_retries=2)
    with pytest.raises(ServerError, match=r"no answer: .*refused \(3 times\)"):
        ask(url)


def test_stop_ends_the_waiting(scripted) -> None:
    server, stop = scripted((429, {}, {"Retry-After": "30"})), Event()
    Thread(target=lambda: (time.sleep(0.2), stop.set()), daemon=True).start()
    start = time.monotonic()
    with pytest.raises(Stopped):
        ask(server.url, stop)
    assert time.monotonic() - start < 20
