"""Runs a command that ends with the process that has started it, also if that one is killed.

The command runs below a second process of this file, which imports the standard library only.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_INTERVAL = 0.5  # seconds between two looks at the parent process


class ChildProcess:
    """A running command in a process group of its own, so that Ctrl-C does not reach it. Its output goes to ``log``."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        watch = [sys.executable, "-I", __file__, str(os.getpid())]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*watch, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """Kills the command and the processes that it has started."""
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def free_port() -> int:
    """A port of the loopback interface that nothing listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _watch(parent: int, command: Sequence[str]) -> None:
    """Runs ``command``, and kills the process group when it or the process ``parent`` has ended."""
    process = subprocess.Popen(command)
    while os.getppid() == parent and process.poll() is None:
        time.sleep(_INTERVAL)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), sys.argv[2:])
