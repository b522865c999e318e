"""Standard output and error: writing to them never raises, and the log of the run receives a copy."""

from __future__ import annotations

import atexit
import io
import os
import re
import sys
from collections import deque
from pathlib import Path
from typing import TextIO

_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")  # ECMA-48: colours and movements of the cursor
_LINES_KEPT = 1000  # of those printed before the run has a directory
_NEVER_RAISE = ("replace", "backslashreplace", "xmlcharrefreplace", "namereplace", "ignore")


class PrintedStream(io.TextIOWrapper):
    """Standard output or error that never raises.

    A character that the encoding lacks is replaced. If the stream cannot be written, because the reader of a pipe has
    ended or a disk is full, further output to it is discarded. The log of the run still receives it.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        errors = stream.errors if stream.errors in _NEVER_RAISE else "replace"
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors=errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self._replaced = stream  # it would close the buffer if nothing referred to it
        self._line = ""

    def write(self, text: str, /) -> int:
        try:
            super().write(text)
        except OSError:
            self._discard_output()
        *complete, self._line = (self._line + text).split("\n")
        for line in complete:
            _LOG.add(line)
        return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            self._discard_output()

    def log_rest(self) -> None:
        """Logs the last line, which has no line end."""
        if self._line:
            _LOG.add(self._line)
            self._line = ""

    def _discard_output(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # also takes what the buffer still holds, when Python flushes it at its end
        os.close(nowhere)


class _Log:
    """The printed lines: kept in memory until a run has a file for them."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque(maxlen=_LINES_KEPT)
        self._file: TextIO | None = None
        self._is_redirected = False

    def open(self, path: Path) -> None:
        self._is_redirected = any(_writes_to(stream, path) for stream in (sys.stdout, sys.stderr))
        if not self._is_redirected:
            self._file = path.open("a", encoding="utf-8", errors="replace")
            while self._waiting and self._file is not None:
                self._write(self._waiting.popleft())

    def add(self, line: str) -> None:
        if self._file is not None:
            self._write(line)
        elif not self._is_redirected:
            self._waiting.append(line)

    def _write(self, line: str) -> None:
        assert self._file is not None
        # As a terminal shows it: a progress bar writes its line again and again.
        shown = _CONTROL_SEQUENCE.sub("", line.rstrip("\r")).rsplit("\r", 1)[-1]
        try:
            self._file.write(f"{shown}\n")
            self._file.flush()
        except OSError as error:
            broken, self._file = self._file, None
            print(f"warning: nothing more is written to {broken.name}: {error.strerror}", file=sys.stderr)


_LOG = _Log()


def _writes_to(stream: TextIO | None, path: Path) -> bool:
    """Whether a stream is redirected to this file, as by a sweep."""
    if not isinstance(stream, io.TextIOWrapper) or not path.exists():
        return False
    return os.path.samestat(os.fstat(stream.fileno()), path.stat())


def protect_terminal() -> None:
    """Makes standard output and error ``PrintedStream``. Streams that are not files, as in a test, stay as they are."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller; the next file that is opened would take its number
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (open as long as the process)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, PrintedStream):
            stream.flush()
            stream = PrintedStream(stream)
            atexit.register(stream.log_rest)
        setattr(sys, name, stream)


def log_to(path: Path) -> None:
    """Copies what this process has printed and will print to a file, unless its output is redirected there already."""
    if isinstance(sys.stdout, PrintedStream) or isinstance(sys.stderr, PrintedStream):
        _LOG.open(path)
