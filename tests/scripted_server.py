"""An HTTP server on this machine whose replies a test decides."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Step = tuple[int, Any, dict[str, str]]  # status, body (bytes, or what becomes JSON), headers
DROP: Step = (0, None, {})  # the connection is closed without a reply


def completion(
    content: Any = "<answer>A</answer>", tokens: Any = 7, reason: str = "stop", **more: Any
) -> dict[str, Any]:
    """The body of a chat completion."""
    choice = {"message": {"content": content, **more}, "finish_reason": reason}
    return {"choices": [choice], "usage": {"completion_tokens": tokens}}


class ScriptedServer(ThreadingHTTPServer):
    """Replies to every POST with what ``reply`` returns for its body. Records time, path, headers and body of each."""

    def __init__(self, reply: Callable[[Any], Step]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.requests = reply, list[tuple[float, str, Message, Any]]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((time.monotonic(), self.path, self.headers, body))
        status, content, headers = self.server.reply(body)
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


@contextmanager
def scripted_server(reply: Callable[[Any], Step]) -> Iterator[ScriptedServer]:
    server = ScriptedServer(reply)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
