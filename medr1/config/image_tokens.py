"""The side of an image token in pixels, read from small files or guessed from a model's name."""

from __future__ import annotations

import json
from pathlib import Path

_DEFAULT = 28  # Qwen2-VL and Qwen2.5-VL: 14 x 14 patches, merged 2 x 2
_BY_FAMILY = {"qwen2-vl": _DEFAULT, "qwen2.5-vl": _DEFAULT, "qwen3-vl": 32}  # by a part of the hub id


def known_image_token_size(path: str) -> int | None:
    """The side of an image token of a model, in pixels, or None if it is unknown.

    Read from config.json of a checkpoint directory or of a run's model; otherwise from the family in a hub id or in a
    served model's name. It is a hint for defaults: ``load_policy`` checks the value.
    """
    files = [Path(path, "config.json"), Path(path, "model", "config.json")]  # of a checkpoint, or of a run
    for file in filter(Path.is_file, files):
        try:
            vision = json.loads(file.read_text(encoding="utf-8"))["vision_config"]
            return int(vision["patch_size"]) * int(vision["spatial_merge_size"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # load_policy reads the whole file and reports what is wrong with it
    name = path.lower().replace("_", "-")
    return next((side for family, side in _BY_FAMILY.items() if family in name), None)


def image_token_size(path: str | None) -> int:
    """The side of an image token of a model, in pixels; 28 if it is unknown."""
    return (known_image_token_size(path) if path else None) or _DEFAULT


def fitting(size: int, token: int) -> int:
    """The multiple of ``token`` nearest to ``size``, at least one token."""
    return max(token, round(size / token) * token)
