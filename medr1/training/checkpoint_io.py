"""Training checkpoints as directories of safetensors and JSON. They hold no pickle, so loading one runs no code.

    <target>/model.safetensors       the module's ``state_dict``
    <target>/optimizer.safetensors   all other tensors and arrays of the checkpoint
    <target>/state.json              all other values, references to the tensors, and checksums of the files

Values are restored with their exact types and bits. Saving refuses values for which that is not possible.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medr1.atomic_write import atomic_directory, remove, restore_directory
from medr1.errors import CheckpointError
from medr1.training.checkpoint_tree import MODEL_FILE, OPTIMIZER_FILE, TreeEncoder, decode

STATE_FILE = "state.json"
FORMAT = "medr1-checkpoint/1"

_CHUNK = 1 << 22
_SMALL = 1 << 10  # bytes of tensors that are always copied, because a step count would keep the file


class SafetensorsCheckpointIO(CheckpointIO):
    """Saves and loads Lightning's checkpoints as directories. Only one process may write to a target at a time.

    ``is_mapped``: loaded tensors lie in the files, for a caller that copies what it keeps of them.
    """

    def __init__(self, *, is_mapped: bool = False) -> None:
        self._is_mapped = is_mapped

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Replaces the target atomically: a process that is killed leaves the old checkpoint or the new one.

        Raises:
            CheckpointError: a value that cannot be restored exactly; names its path and type.
        """
        if storage_options is not None:
            raise TypeError(f"{type(self).__name__} writes to local directories and takes no storage_options")
        target = Path(path)
        encoder = TreeEncoder()
        state = encoder.encode(checkpoint, ())
        with atomic_directory(target) as partial:
            save_file(encoder.model, partial / MODEL_FILE)
            save_file(encoder.other, partial / OPTIMIZER_FILE)
            document = {
                "format": FORMAT,
                "files": {name: _fingerprint(partial / name) for name in (MODEL_FILE, OPTIMIZER_FILE)},
                "crc32": zlib.crc32(_dumps(state).encode()),
                "state": state,
            }
            (partial / STATE_FILE).write_text(_dumps(document), encoding="ascii")

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint as it was saved, with its tensors on ``map_location`` (default: CPU).

        ``weights_only`` has no effect, because no file of a checkpoint holds code.

        Raises:
            CheckpointError: a file is missing, damaged or of another format; names the file and the remedy.
        """
        if map_location is not None and not isinstance(map_location, str | torch.device):
            raise TypeError(f"map_location must be a device or its name, got {type(map_location).__name__}")
        target = Path(path)
        restore_directory(target)
        document = _read_document(target)
        stores = {}
        for name in (MODEL_FILE, OPTIMIZER_FILE):
            file = target / name
            if not file.is_file():
                raise _damaged(file, "the file is missing")
            if _fingerprint(file) != document["files"][name]:
                raise _damaged(file, "size or checksum differ from those in state.json")
            try:
                # Cloned, because safetensors maps the file: the optimizer's tensors would keep the disk space of a
                # checkpoint that has been removed.
                loaded = load_file(file, device=str(map_location or "cpu"))
                is_mapped = self._is_mapped
                stores[name] = {k: t if is_mapped and t.nbytes > _SMALL else t.clone() for k, t in loaded.items()}
            except SafetensorError as error:
                raise _damaged(file, str(error)) from error
        checkpoint = decode(document["state"], stores)
        assert isinstance(checkpoint, dict)
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Deletes a checkpoint, or only the link if ``path`` is a link to one (``save_last="link"``)."""
        remove(Path(path))


def _read_document(target: Path) -> dict[str, Any]:
    file = target / STATE_FILE
    if target.is_file():
        raise CheckpointError(f"{target} is a file; a training checkpoint is a directory with {STATE_FILE} in it")
    if not target.is_dir():
        raise CheckpointError(f"there is no checkpoint {target}: check the path, or start without resuming")
    if not file.is_file():
        raise _damaged(file, "the file is missing")
    try:
        document = json.loads(file.read_bytes())
    except ValueError as error:
        raise _damaged(file, f"not JSON: {error}") from error
    if not isinstance(document, dict) or not {"format", "files", "crc32", "state"} <= document.keys():
        raise _damaged(file, "not a checkpoint's state")
    if document["format"] != FORMAT:
        raise CheckpointError(f"{file} has the format {document['format']!r}; this version reads {FORMAT!r}")
    if zlib.crc32(_dumps(document["state"]).encode()) != document["crc32"]:
        raise _damaged(file, "its checksum does not match its content")
    return document


def _dumps(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _fingerprint(file: Path) -> dict[str, int]:
    crc = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return {"bytes": file.stat().st_size, "crc32": crc}


def _damaged(file: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{file} is damaged: {what}. Remove {file.parent} and resume; without a checkpoint the training begins again."
    )
