"""Into what squares a model cuts its pictures: the side of an image token in pixels. Imported before anything heavy."""

from __future__ import annotations

import json
from pathlib import Path

_USUAL = 28  # Qwen2-VL and Qwen2.5-VL: 14 x 14 patches, merged 2 x 2
_BY_FAMILY = {"qwen2-vl": _USUAL, "qwen2.5-vl": _USUAL, "qwen3-vl": 32}  # as it stands in a hub id


def known_image_token_size(path: str) -> int | None:
    """Of a checkpoint directory by its config.json, of a hub id or a name at a server by the family in it; None where
    neither says. Only hints for a default: ``load_policy`` reads the truth."""
    file = Path(path) / "config.json"
    if file.is_file():
        try:
            vision = json.loads(file.read_text(encoding="utf-8"))["vision_config"]
            return int(vision["patch_size"]) * int(vision["spatial_merge_size"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # what is wrong with it is said by load_policy, which needs all of it
    name = path.lower().replace("_", "-")
    return next((side for family, side in _BY_FAMILY.items() if family in name), None)


def image_token(path: str | None) -> int:
    """The side of an image token of the model at ``path``; the usual one where nothing says."""
    return (known_image_token_size(path) if path else None) or _USUAL


def fitting(size: int, token: int) -> int:
    """The multiple of ``token`` nearest to ``size``, at least one token."""
    return max(token, round(size / token) * token)
