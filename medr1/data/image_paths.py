"""Finds the image files that records name, also where a file's name is spelled differently from the record's path."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from medr1.data.data_files import is_beside_the_data
from medr1.data.images import FileImage, resolve_inside
from medr1.domain.records import BadRecord, Reason

# difflib takes milliseconds for a folder of thousands of names, and a whole release may be missing.
_HINTS = 20


class ImagePaths:
    """The image files below a data root.

    Folders are listed once. ``respelled`` maps each path that was found under another spelling to the file's path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.respelled: dict[str, str] = {}
        self._folders: dict[str, dict[str, list[str]]] = {}
        self._hints_left = _HINTS

    def find(self, written: str) -> str:
        """The path of the file that a record names, relative to the root.

        That is the path as written if there is such a file. Otherwise it is the only file whose path differs only in
        separators, Unicode form (NFC or NFD), percent encoding, case, or blanks around a name.

        Raises:
            BadRecord: PATH_LEAVES_ROOT or MALFORMED (see ``resolve_inside``), NO_IMAGE, or AMBIGUOUS_IMAGE if several
                files fit.
        """
        if os.path.isfile(resolve_inside(self.root, written)):
            return written
        decoded = unquote(written)
        try:
            resolve_inside(self.root, decoded.strip().replace("\\", "/").lstrip("/") or ".")
        except BadRecord as bad:
            raise BadRecord(bad.reason, f"image {written!r}, without percent encoding: {bad.detail}") from bad
        places, parts = [""], [part for part in re.split(r"[/\\]", decoded) if part.strip() not in ("", ".")]
        for part in parts:
            below = [os.path.join(place, name) for place in places for name in self._names(place).get(_key(part), ())]
            if not below:
                raise self._missing(written, places, part)
            places = below
        # Two spellings may be one file, by a link.
        files = {os.path.realpath(self.root / place): place for place in reversed(places)}
        files = {real: place for real, place in files.items() if os.path.isfile(real)}
        if not files:
            raise BadRecord(Reason.NO_IMAGE, f"image {written!r} does not exist below {self.root}")
        if len(files) > 1:
            listing = ", ".join(map(repr, sorted(files.values())))
            detail = f"image {written!r} does not exist below {self.root}, and several files fit: {listing}"
            raise BadRecord(Reason.AMBIGUOUS_IMAGE, f"{detail}. Remedy: write the exact path of one of them")
        self.respelled[written] = next(iter(files.values()))
        return self.respelled[written]

    def _names(self, folder: str) -> dict[str, list[str]]:
        """The names in a folder by ``_key``; none if it is no folder or cannot be read."""
        if folder not in self._folders:
            names: dict[str, list[str]] = defaultdict(list)
            try:
                for name in sorted(os.listdir(self.root / folder)):
                    # A name that is no UTF-8 cannot be stored with the predictions.
                    if not is_beside_the_data(name) and os.fsencode(name).decode("utf-8", "replace") == name:
                        names[_key(name)].append(name)
            except OSError:
                names.clear()  # the image is then reported as missing
            self._folders[folder] = dict(names)
        return self._folders[folder]

    def _missing(self, written: str, places: list[str], part: str) -> BadRecord:
        """NO_IMAGE, with the folder in which the search ended and the name there that is most like the missing one."""
        detail, place = f"image {written!r} does not exist below {self.root}", places[0]
        if os.path.isdir(self.root / place):
            detail += f": {place or 'it'} has no {part!r}"
            if self._hints_left:
                self._hints_left -= 1
                names = [name for same in self._names(place).values() for name in same]
                near = difflib.get_close_matches(part, names, 1)
                detail += f"; the most similar name there is {near[0]!r}" if near else ""
        return BadRecord(Reason.NO_IMAGE, detail)


class ImageFiles:
    """The images that records name by paths below a root. Each path is looked for once."""

    def __init__(self, root: Path, max_pixels: int) -> None:
        self.root, self.max_pixels = root, max_pixels
        self._paths = ImagePaths(root)
        self._found: dict[str, FileImage | BadRecord] = {}

    @property
    def respelled(self) -> dict[str, str]:
        """The files by the paths that are spelled differently."""
        return self._paths.respelled

    def find(self, written: str) -> FileImage:
        """The image that ``ImagePaths.find`` finds. Raises BadRecord as it does."""
        if written not in self._found:
            try:
                self._found[written] = FileImage(self.root, self._paths.find(written), max_pixels=self.max_pixels)
            except BadRecord as bad:
                self._found[written] = bad
        found = self._found[written]
        if isinstance(found, BadRecord):
            raise BadRecord(found.reason, found.detail)
        return found


def respelled_messages(respelled: Mapping[str, str]) -> list[str]:
    """What the log says of paths that are spelled differently from their files."""
    if not respelled:
        return []
    written, file = next(iter(respelled.items()))
    return [
        f"{len(respelled)} image paths are spelled differently from their files, which are used nevertheless: "
        f"{written!r} is {file!r}"
    ]


def _key(name: str) -> str:
    """Equal for the spellings of a name that one and the same file may have on different systems."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", unquote(name)).casefold()).strip()
