"""A child process and everything below it end with the process that started it, whatever ends that."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from medr1.generation.child_process import ChildProcess

ROOT = Path(__file__).resolve().parents[3]
# Starts a process of its own, and writes its and that one's id.
COMMAND = [
    sys.executable,
    "-c",
    "import os, subprocess, time\n"
    "below = subprocess.Popen(['sleep', '1000'])\n"
    "print(os.getpid(), below.pid, flush=True)\n"
    "time.sleep(1000)",
]
PARENT = """
import os, sys, time
from pathlib import Path
from medr1.generation.child_process import ChildProcess
child = ChildProcess({command!r}, Path({log!r}), os.environ)
time.sleep(1000)
"""


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def pids(log: Path) -> list[int]:
    wait_for(lambda: log.is_file() and len(log.read_text().split()) == 2)
    return [int(word) for word in log.read_text().split()]


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the states of processes are in /proc")


@needs_proc
def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(command=COMMAND, log=str(log))], cwd=ROOT)
    found = pids(log)
    assert all(map(is_running, found))
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(map(is_running, found)))


@needs_proc
def test_it_is_killed_with_all_below_it(tmp_path: Path) -> None:
    child = ChildProcess(COMMAND, tmp_path / "log", os.environ)
    found = pids(tmp_path / "log")
    assert child.is_running
    child.kill()
    assert not child.is_running
    wait_for(lambda: not any(map(is_running, found)))
    child.kill()  # once more does no harm


@needs_proc
def test_what_is_left_below_a_command_that_has_ended_is_killed(tmp_path: Path) -> None:
    child = ChildProcess(COMMAND, tmp_path / "log", os.environ)
    command, below = pids(tmp_path / "log")
    os.kill(command, 9)
    wait_for(lambda: not child.is_running)
    wait_for(lambda: not is_running(below))
