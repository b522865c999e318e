"""Finds the files of a data set below a folder, and tells them from files beside the data."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

# What medr1 writes, by files that stand together: a run, a sweep, an audit, a comparison of runs. One name alone could
# be that of a data file.
_OUTPUTS = (
    {"config.yaml", "overrides.yaml"},
    {"sweep.json", ".sweep.lock"},
    {"audit.json", "audit.txt"},
    {"comparison.json", "results.md"},
)
_IMAGE_CACHE = re.compile(r"images-[0-9a-f]{16}\.jsonl")


def is_beside_the_data(name: str) -> bool:
    """Whether a file or folder of this name holds no data: hidden ones, and what macOS puts into archives."""
    return name.startswith(".") or name == "__MACOSX"


def walk(place: Path, suffixes: Collection[str]) -> Iterator[tuple[Path, bool]]:
    """Each file with one of the suffixes below a folder, sorted, and whether it belongs to the data.

    Only ``place`` itself if it is a file.

    Links are followed. A folder that is reached twice, as by a link to a folder above, is read once. What medr1 has
    written below the folder is left out: ``runs`` is there as soon as a command was typed in the folder of the data.
    """
    if not place.is_dir():
        if place.exists():
            yield place, True
        return
    found: list[tuple[Path, bool]] = []
    # Two sets: a link to a hidden folder may be how the data was installed.
    seen = {True: {os.path.realpath(place)}, False: set[str]()}
    for folder, below, names in os.walk(place, followlinks=True):
        inside = Path(folder)
        if inside != place and _is_output(names):
            below.clear()
            continue
        if "mlflow.db" in names:  # of tracking, beside copies of files of the runs
            below[:] = [name for name in below if name != "mlartifacts"]
        is_data = not any(map(is_beside_the_data, inside.relative_to(place).parts))
        # Folders before links to them, so that a file keeps the names of the folders that hold it.
        below.sort(key=lambda name: ((inside / name).is_symlink(), name))
        for name in list(below):
            real, visited = os.path.realpath(inside / name), seen[is_data and not is_beside_the_data(name)]
            if real in visited:
                below.remove(name)
            visited.add(real)
        for name in names:
            if _IMAGE_CACHE.fullmatch(name):
                continue
            if os.path.splitext(name)[1].casefold() in suffixes:
                found.append((inside / name, is_data and not is_beside_the_data(name)))
    yield from sorted(found)


def _is_output(names: Collection[str]) -> bool:
    """Whether a folder with files of these names was written by medr1."""
    return any(files <= set(names) for files in _OUTPUTS)
