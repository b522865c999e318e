"""Atomic writes of files and directories: after a kill there is the old content or the new, never a part of it.

The new content is written beside the target, synced to disk and renamed, because a rename is atomic only within one
file system. One process at a time may write to a target.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_SYNC_EVERY = 16  # lines


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that replaces ``path`` when the block ends; after an exception ``path`` is unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Writes UTF-8 text; line ends stay as they are."""
    with atomic_write(path) as file:
        file.write(content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON with sorted keys; values without a JSON type become strings."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, default=str) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


@contextmanager
def append_lines(path: Path) -> Iterator[Callable[[Any], None]]:
    """A function that appends a JSON line to ``path``.

    A kill leaves at most one incomplete line, see ``drop_torn_line``; a power failure loses at most ``_SYNC_EVERY``.
    """
    count = 0
    with path.open("ab") as file:

        def append(line: Any) -> None:
            nonlocal count
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            count += 1
            if count % _SYNC_EVERY == 0:
                os.fsync(file.fileno())

        try:
            yield append
        finally:
            os.fsync(file.fileno())


def drop_torn_line(path: Path) -> None:
    """Removes the last line of a file that is only appended to, if a kill has cut it off before its line end."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """An empty directory that replaces ``path`` when the block ends; after an exception ``path`` is unchanged.

    A directory cannot be renamed onto another one, so an existing ``path`` is moved to ``.NAME.old`` first. Readers of
    directories that are replaced call ``restore_directory`` before they read.
    """
    temporary, backup = path.with_name(f".{path.name}.partial"), _backup(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove(temporary)  # of a process that was killed
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, files in os.walk(temporary):
            for name in files:
                _sync(Path(folder, name))
            _sync(Path(folder))
        if os.path.lexists(path):
            remove(backup)
            os.rename(path, backup)
        os.rename(temporary, path)
        _sync(path.parent)
        remove(backup)
    finally:
        remove(temporary)


def restore_directory(path: Path) -> None:
    """Undoes a replacement by ``atomic_directory`` that was killed between its two renames. Any number of processes may
    call it at once."""
    if not os.path.lexists(path) and _backup(path).is_dir():
        try:
            os.rename(_backup(path), path)
        except FileNotFoundError:  # another process has renamed it
            if not path.is_dir():
                raise


def remove(path: Path) -> None:
    """Deletes a file, a directory with its content, or a link but not its target; does nothing if there is none."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def _backup(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
