"""Client of an OpenAI-compatible chat server (vLLM, ``transformers serve``): one question with its images a request."""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from medr1.config.settings import LOOPBACK
from medr1.errors import ConfigError, ServerError
from medr1.generation.chat_messages import chat_content


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """A completion without special tokens, its number of tokens, and whether the token limit cut it off."""

    text: str
    length: int
    truncated: bool


class ChatClient:
    """Sends questions to ``url``/chat/completions with the openai library. Threads may share one client.

    Connection errors, timeouts and the statuses 408, 409, 429 and 5xx are retried up to ``max_retries`` times, with the
    library's exponential backoff or after the server's Retry-After. ``timeout`` is in seconds without data from the
    server. ``api_key`` is sent as a bearer token and removed from error messages. Redirects are not followed, because
    they could carry image and key to another host. ``repetition_penalty`` None: not part of the request.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout: float,
        max_retries: int,
        repetition_penalty: float | None = None,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise ConfigError('model=server needs the openai library: pip install "medr1[server]"') from error
        for name in ("openai", "httpx", "httpx2"):  # they log one line a request
            logging.getLogger(name).setLevel(logging.WARNING)
        self.url, self.model, self._api_key = f"{url.rstrip('/')}/chat/completions", model, api_key
        self._extra_body = None if repetition_penalty is None else {"repetition_penalty": repetition_penalty}
        self._extra_headers = None if api_key else {"Authorization": openai.Omit()}
        self._client = openai.OpenAI(
            base_url=url,
            api_key=api_key or "none",  # without one it would read OPENAI_API_KEY
            timeout=timeout,
            max_retries=max_retries,
            http_client=openai.DefaultHttpxClient(
                follow_redirects=False,
                trust_env=urlsplit(url).hostname not in LOOPBACK,  # no proxy for a server on this machine
                verify=ssl.create_default_context(),  # the system's certificates
            ),
        )

    def complete(
        self,
        parts: Sequence[str | bytes],
        max_completion_length: int,
        *,
        record: str,
        temperature: float = 0,
        seed: int | None = None,
    ) -> ChatCompletion:
        """The completion of one user turn: texts and PNG images in order. ``record`` is named in error messages.

        ``temperature`` 0 is greedy decoding. ``seed``: of a sample; None: not part of the request.

        Raises:
            ServerError: no usable completion after all retries; names URL, record and the server's reply.
        """
        import openai
        from openai import APIConnectionError, APIStatusError

        content: Any = chat_content(parts)
        retries: str | None = None
        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],
                temperature=temperature,
                seed=openai.omit if seed is None else seed,
                max_tokens=max_completion_length,
                extra_headers=self._extra_headers,
                extra_body=self._extra_body,
            )
            return _parse(response.http_response.content)
        except APIStatusError as error:
            wait = error.response.headers.get("Retry-After")
            problem = f"HTTP {error.status_code}{f', Retry-After {wait}' if wait else ''}: {error.response.text}"
            retries = error.request.headers.get("x-stainless-retry-count")
        except APIConnectionError as error:
            problem = f"no answer: {error.__cause__ or error}"
            retries = error.request.headers.get("x-stainless-retry-count")
        except ValueError as error:
            problem = str(error)
        if self._api_key:  # which the server may repeat
            problem = problem.replace(self._api_key, "[key]")
        problem = " ".join(problem.split())[:500]
        tried = f" (after {retries} retries)" if retries and retries != "0" else ""
        raise ServerError(f"{self.url}, record {record}: {problem}{tried}")

    def close(self) -> None:
        """Closes the connections. Threads that wait for a retry send nothing more."""
        self._client.close()


def _parse(body: bytes) -> ChatCompletion:
    """The completion in a reply. The library itself does not check the types of a reply.

    Raises:
        ValueError: what the reply lacks, or why it cannot be used.
    """
    try:
        reply = json.loads(body)
        choice, length = reply["choices"][0], reply["usage"]["completion_tokens"]
        text, finish_reason = choice["message"]["content"], choice["finish_reason"]
        reasoning = choice["message"].get("reasoning_content") or choice["message"].get("reasoning")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not a chat completion with its usage: {body.decode('utf-8', 'replace')}") from error
    if reasoning:  # the reasoning tags must be in the text, which is checked against their grammar
        raise ValueError(
            "the server removes the reasoning from the completion. vLLM: start it without --reasoning-parser. "
            "transformers serve: give the checkpoint's tokenizer a response_template without reasoning"
        )
    if not isinstance(text, str | None) or type(length) is not int or length < 0:
        raise ValueError(f"content {text!r} and completion_tokens {length!r} are not a text and its length")
    # JSON can hold half of a surrogate pair, which no file can.
    whole = (text or "").encode("utf-8", "replace").decode()
    return ChatCompletion(whole, length, finish_reason == "length")
