"""One question to an OpenAI-compatible chat server, asked again while it is worth it. Standard library only.

No redirect is followed, because it could carry picture and key to another host.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import json
import random
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from threading import Event
from typing import Any
from urllib.parse import urlsplit

from medr1.config.settings import LOOPBACK
from medr1.errors import ServerError

_LONGEST_WAIT = 60.0  # seconds; what a server asks for itself may be longer


@dataclass(frozen=True, slots=True)
class Reply:
    """A completion without special tokens, its tokens as the server counts them, and whether the limit cut it off."""

    text: str
    length: int
    truncated: bool


class Stopped(Exception):
    """Somebody else has failed, and this request was given up."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why one attempt failed, whether another may help, and how many seconds the server wants to be left alone."""

    why: str
    again: bool
    wait: float | None = None


class ChatServer:
    """Asks ``model`` at ``url`` (up to and without /chat/completions) greedily. Safe to share between threads.

    ``timeout`` and ``backoff`` in seconds: the longest silence of the server, and the wait after the first failure,
    doubled after each further one. ``attempts`` counts the first one too. ``key`` is sent as a bearer token and shown
    nowhere. ``repetition_penalty`` is left out of requests when it is None.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        timeout: float,
        max_retries: int,
        backoff: float,
        repetition_penalty: float | None = None,
    ) -> None:
        self.url, self.model, self._key = f"{url.rstrip('/')}/chat/completions", model, key
        self.timeout, self.max_retries, self.backoff = timeout, max_retries, backoff
        self.settings = {} if repetition_penalty is None else {"repetition_penalty": repetition_penalty}
        # What runs on this machine is asked directly, whatever proxy is set for the world outside.
        own = [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in LOOPBACK else []
        self._opener = urllib.request.build_opener(_NoRedirect(), *own)

    def complete(self, text: str, png: bytes, max_completion_length: int, *, record: str, stop: Event) -> Reply:
        """The answer to one user turn, picture first. ``record`` is for messages; ``stop`` ends all waiting.

        Raises:
            ServerError: the last attempt failed, or one that no other would better; names URL, record and answer.
            Stopped: ``stop`` was set.
        """
        picture = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": text}]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": max_completion_length,
            "stream": False,
            **self.settings,
        }
        sent = json.dumps(body).encode()
        for attempt in range(1, self.max_retries + 1):
            if stop.is_set():
                raise Stopped
            got = self._once(sent)
            if isinstance(got, Reply):
                return got
            if not got.again or attempt == self.max_retries:
                times = f" ({attempt} times)" if attempt > 1 else ""
                raise ServerError(f"{self.url}, record {record}: {got.why}{times}")
            wait = self._wait(attempt) if got.wait is None else got.wait
            if wait > max(self.timeout, _LONGEST_WAIT):
                raise ServerError(f"{self.url}, record {record}: {got.why}; it asks to be left alone for {wait:.0f} s")
            if stop.wait(wait):
                raise Stopped
        raise AssertionError("attempts is at least 1")

    def _wait(self, attempt: int) -> float:
        """Doubled each time, and not in step with the other threads."""
        longest: float = min(_LONGEST_WAIT, self.backoff * 2 ** (attempt - 1))
        return longest * random.uniform(0.75, 1.0)

    def _once(self, body: bytes) -> Reply | _Failure:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return self._reply(response.read())
        except urllib.error.HTTPError as error:  # an answer, though not the one that was wanted
            with error:
                return self._refused(error)
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            return _Failure(f"no answer: {reason or type(error).__name__}", again=True)

    def _refused(self, error: urllib.error.HTTPError) -> _Failure:
        try:
            said = error.read(10_000)
        except (OSError, http.client.HTTPException) as broken:
            said = f"(its message broke off: {broken})".encode()
        why = f"HTTP {error.code} {error.reason}: {self._shown(_message(said))}"
        again = error.code == 429 or error.code >= 500
        return _Failure(why, again, _seconds(error.headers.get("Retry-After")) if again else None)

    def _reply(self, raw: bytes) -> Reply | _Failure:
        try:
            answer = json.loads(raw)
            choice, length = answer["choices"][0], answer["usage"]["completion_tokens"]
            text, reason = choice["message"]["content"], choice["finish_reason"]
            aside = choice["message"].get("reasoning_content") or choice["message"].get("reasoning")
        except (ValueError, LookupError, TypeError, AttributeError):
            return _Failure(f"not a chat completion with its usage: {self._shown(_message(raw))}", again=False)
        if aside:  # the grammar is read from the whole completion
            return _Failure(
                "the server takes the reasoning out of its answers; start it without a reasoning parser (vLLM), or "
                "give the checkpoint's tokenizer a response_template without reasoning (transformers serve: README)",
                again=False,
            )
        if not isinstance(text, str | None) or type(length) is not int or length < 0:
            return _Failure(f"content {text!r}, completion_tokens {length!r}: not a text and its length", again=False)
        return Reply(text or "", length, reason == "length")

    def _shown(self, message: str) -> str:
        """What a server says may repeat the key."""
        return message.replace(self._key, "[key]") if self._key else message


def _message(raw: bytes) -> str:
    """What a server's answer says, in one short line."""
    text = raw.decode("utf-8", "replace")
    try:
        error = json.loads(text)
        error = error.get("error", error)
        text = error if isinstance(error, str) else str(error.get("message") or error.get("detail") or text)
    except (ValueError, AttributeError):
        pass  # plain text, or JSON of another shape: it is shown as it is
    return " ".join(text.split())[:500] or "(empty)"


def _seconds(header: str | None) -> float | None:
    """Retry-After: seconds, or a date; None where there is none that can be read."""
    if header is None:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
