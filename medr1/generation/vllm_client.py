"""HTTP client of a vLLM server."""

from __future__ import annotations

import json
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from medr1.config.settings import LOOPBACK
from medr1.errors import ServerError, ServerTimeout, ServerUnavailable


class _NoRedirects(HTTPRedirectHandler):
    """They could carry images to another host."""

    def redirect_request(self, *args: Any) -> None:
        return None


class VLLMClient:
    """Sends requests to the server at ``url``. Threads may share one client.

    ``timeout``: seconds without data after which a request has failed.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout
        # No proxy for a server on this machine.
        proxies = [ProxyHandler({})] if urlsplit(url).hostname in LOOPBACK else []
        self._opener = build_opener(_NoRedirects, *proxies)

    def get(self, path: str) -> Any:
        """The reply to a GET request, see ``post``."""
        return self._send(Request(f"{self.url}{path}"))

    def post(self, path: str, body: Any) -> Any:
        """The reply to a POST request, as parsed JSON; None if it is empty.

        Raises:
            ServerUnavailable: no reply, or the server is failing. ServerTimeout: no reply in time.
            ServerError: the server refuses the request.
        """
        data = json.dumps(body).encode()
        return self._send(Request(f"{self.url}{path}", data, {"Content-Type": "application/json"}))

    def _send(self, request: Request) -> Any:
        try:
            with self._opener.open(request, timeout=self.timeout) as reply:
                content = reply.read()
            return json.loads(content) if content else None
        except HTTPError as error:
            try:
                text = " ".join(error.read().decode("utf-8", "replace").split())[:500]
            except (OSError, HTTPException) as cut:  # the server has ended while it said why
                raise ServerUnavailable(f"{request.full_url}: HTTP {error.code}, and then {cut!r}") from error
            problem = f"{request.full_url}: HTTP {error.code}: {text}"
            if error.code in (408, 429, 502, 503, 504) or (error.code == 500 and not self._is_healthy()):
                raise ServerUnavailable(problem) from error
            raise ServerError(problem) from error
        except ValueError as error:
            raise ServerError(f"{request.full_url}: the reply is no JSON: {error}") from error
        except TimeoutError as error:
            raise ServerTimeout(f"{request.full_url}: no answer in {self.timeout:g} seconds") from error
        except (OSError, HTTPException) as error:
            raise ServerUnavailable(f"{request.full_url}: no answer: {error}") from error

    def _is_healthy(self) -> bool:
        """Whether the server still works. After an error of its own it may be about to end."""
        try:
            with self._opener.open(f"{self.url}/health", timeout=min(self.timeout, 10)):
                return True
        except (OSError, HTTPException):
            return False
