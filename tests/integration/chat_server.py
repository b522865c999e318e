"""An OpenAI-compatible chat server for the tests: completions of the shipped tiny model, greedy or with a seed.

    python -m tests.integration.chat_server PORT LOG

It prints its port when it is ready (0: any free one) and appends one line to LOG for each completion.
"""

from __future__ import annotations

import base64
import json
import sys
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image

from medr1.generation.rollout import rollout
from medr1.generation.sampling import Sampling
from medr1.models.loading import ModelSpec, load_policy
from medr1.models.policy import Policy
from medr1.models.processor import Processor, Prompt

TINY = Path(__file__).resolve().parents[2] / "medr1" / "models" / "tiny_base"


class ChatServer(ThreadingHTTPServer):
    """Accepts requests in parallel and generates one completion at a time."""

    def __init__(self, port: int, log: Path, policy: Policy, processor: Processor) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.log, self.policy, self.processor, self.lock = log, policy, processor, Lock()

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        (turn,) = request["messages"]
        assert request["model"] == "tiny"
        images, parts = [], []
        for part in turn["content"]:
            if part["type"] == "text":
                parts.append(part)
                continue
            kind, _, data = part["image_url"]["url"].partition(",")
            assert kind == "data:image/png;base64"
            images.append(Image.open(BytesIO(base64.b64decode(data))).convert("RGB"))
            parts.append({"type": "image"})
        text = self.processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
        )
        prompts = self.processor.encode([Prompt(text, tuple(images))])
        greedy = Sampling.greedy(request["max_tokens"], self.processor)
        sampling = replace(greedy, temperature=request["temperature"])
        uniforms = torch.from_numpy(np.random.default_rng(request.get("seed")).random((1, request["max_tokens"])))
        with self.lock, torch.no_grad():
            done = rollout(self.policy, self.policy.prefill(prompts), sampling, uniforms=uniforms)
            with self.log.open("a") as file:
                file.write(next(part["text"] for part in parts if "text" in part).splitlines()[0] + "\n")
        return {
            "object": "chat.completion",
            "model": "tiny",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": self.processor.decode(done.ids, done.mask)[0]},
                    "finish_reason": "length" if bool(done.truncated[0]) else "stop",
                }
            ],
            "usage": {"completion_tokens": int(done.mask.sum())},
        }


class Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = self.path == "/v1/chat/completions"
        answer = self.server.complete(request) if found else {"error": {"message": f"nothing at {self.path}"}}
        body = json.dumps(answer).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(BrokenPipeError):  # the client was killed
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


if __name__ == "__main__":
    torch.set_num_threads(1)
    loaded = load_policy(ModelSpec(str(TINY)))
    with ChatServer(int(sys.argv[1]), Path(sys.argv[2]), *loaded) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
