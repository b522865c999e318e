"""Recognizes errors of storage in whatever a library raises: a full disk, a quota, no permission."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Iterator

_REMEDY = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space, or have the quota raised",
    errno.EFBIG: "raise the limit of the size of files (ulimit -f), or free space",
    errno.EACCES: "correct its permissions",
    errno.EPERM: "correct its permissions",
    errno.EROFS: "make the file system writable",
    errno.EIO: "repair the disk or its connection",
    errno.ESTALE: "mount the file system again",
    errno.ENOTDIR: "remove the file that has the name of a folder",
    errno.EEXIST: "remove the file that has the name of a folder",
}
_SQLITE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EACCES,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_IOERR: errno.EIO,
}
# Errors of Rust libraries (safetensors, tokenizers) have the number in their text only.
_RUST = re.compile(r"(?:\bOs \{ code: |\(os error )(\d+)")


def storage_problem(error: BaseException) -> str | None:
    """What is wrong with which file and the remedy, if storage is the cause of an error; otherwise None."""
    for cause in _causes(error):
        number, file = _number(cause), getattr(cause, "filename", None)
        if number in _REMEDY:
            where = f"{os.fsdecode(file) if isinstance(file, bytes) else file}: " if file else ""
            detail = f" ({cause})" if isinstance(cause, sqlite3.Error) else ""
            return f"{where}{os.strerror(number)}{detail}; {_REMEDY[number]}"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        yield current
        seen.append(current)
        current = current.__cause__ or current.__context__


def _number(error: BaseException) -> int:
    if isinstance(error, OSError):
        return error.errno or 0
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part
        return _SQLITE.get(code, 0)
    found = _RUST.search(str(error))
    return int(found[1]) if found else 0
