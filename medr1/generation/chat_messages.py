"""User turns as the chat API of OpenAI takes them, which vLLM and ``transformers serve`` implement."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any


def chat_content(parts: Sequence[str | bytes]) -> list[dict[str, Any]]:
    """The content of one user turn: texts and PNG images in order."""
    return [{"type": "text", "text": part} if isinstance(part, str) else _image_part(part) for part in parts]


def _image_part(png: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png).decode()}"}}
