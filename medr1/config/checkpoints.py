"""Whether a checkpoint exists, known from its path before any heavy library is loaded."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path

from medr1.errors import CheckpointError

_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


def is_local(path: str) -> bool:
    """Whether a model path can only be a directory, and no hub id (``OWNER/NAME``)."""
    place = Path(path)
    return place.is_absolute() or path.startswith((".", "~")) or len(place.parts) != 2 or place.parent.is_dir()


def check_checkpoint(path: str) -> None:
    """Checks that a checkpoint directory is there, or that a hub id is in the cache or on a hub that answers.

    Raises:
        CheckpointError: no such directory, no such repository, or no network.
    """
    place = Path(path)
    if place.is_dir() or is_local(path):
        if not (place / "config.json").is_file():
            raise CheckpointError(f"model.path={path}: {_why_not(place)}; give a checkpoint directory or a hub id")
        return
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    try:
        if not isinstance(try_to_load_from_cache(path, "config.json"), str):
            get_hf_file_metadata(hf_hub_url(path, "config.json"), timeout=10)
    except Exception as error:  # which errors there are depends on the HTTP library of this version of huggingface_hub
        why = str(error).strip().splitlines()[0].rstrip(".")
        raise CheckpointError(
            f"model.path={path}: no such directory (looked from {Path.cwd()}), not in the cache, and the hub does "
            f"not give it: {why}; where there is a network: hf download {path}"
        ) from error


def fingerprint(path: str, adapter: Path | None = None) -> str | None:
    """Identifies the weights of a checkpoint, and of an adapter on it, wherever they lie; None if they are not on this
    machine yet.

    Hashes config.json, and of each file of weights its size, its header and samples of its content, which takes less
    than a second for 100 GB.
    """
    place = Path(path) if Path(path).is_dir() else _cached(path)
    if place is None or not list(place.glob("*.safetensors")):
        return None
    found = hashlib.sha256((place / "config.json").read_bytes())
    files = sorted(place.glob("*.safetensors"))
    for file in [*files, *(sorted(adapter.glob("*.safetensors")) if adapter else [])]:
        size = file.stat().st_size
        found.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for part in range(_SAMPLES):
                content.seek(part * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                found.update(content.read(_SAMPLE_BYTES))
    return found.hexdigest()[:16]


def _cached(path: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    file = None if is_local(path) else try_to_load_from_cache(path, "config.json")
    return Path(file).parent if isinstance(file, str) else None


def _why_not(place: Path) -> str:
    if place.is_dir():
        return "no config.json there"
    near = difflib.get_close_matches(place.name, [p.name for p in place.parent.glob("*")], n=1)
    guess = f", did you mean {place.parent / near[0]}" if near else ""
    return f"no such directory (looked from {Path.cwd()}){guess}"
