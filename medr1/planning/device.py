"""The memory of the device that a run is planned for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from medr1.config.enums import Accelerator
from medr1.models.device import device_type

GIB = 2**30
# Usable share of the free memory. torch's allocator leaves gaps on a GPU; other programs share the memory of a CPU.
_GPU_SHARE, _CPU_SHARE = 0.95, 0.9
_CUDA_CONTEXT = 0.6 * GIB  # taken by CUDA, where it has not been started yet


@dataclass(frozen=True, slots=True)
class Device:
    """``total``: its memory in bytes. ``usable_bytes``: what the tensors of one process may take of it.

    ``host_bytes``: what they may take of the main memory beside a GPU. ``is_here`` is False for a GPU that is only
    planned for, whose main memory is not known.
    """

    name: str
    on_gpu: bool
    total: float
    usable_bytes: int
    host_bytes: float = math.inf
    is_here: bool = True


def find_device(accelerator: Accelerator, processes: int, memory: float | None) -> Device:
    """The device of a run: a GPU of ``memory`` GiB if that is given, else the one of this machine."""
    if memory is not None:
        total = memory * GIB
        return Device(f"a GPU of {memory:g} GiB", True, total, int((total - _CUDA_CONTEXT) * _GPU_SHARE), is_here=False)
    available, of = _main_memory()
    if device_type(accelerator) == "cuda":
        free, total = torch.cuda.mem_get_info()
        host = available * _CPU_SHARE / processes
        return Device(torch.cuda.get_device_name(), True, total, int(free * _GPU_SHARE), host)
    return Device("CPU", False, of, int(available * _CPU_SHARE / processes))


def _main_memory() -> tuple[float, float]:
    """Free and total bytes, within the limits of the process's control groups."""
    info = Path("/proc/meminfo")
    if info.exists():
        lines = dict(line.split(":") for line in info.read_text().splitlines())
        free, total = (int(lines[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
        for limit, used in _control_group_limits(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")):
            free, total = min(free, max(0, limit - used)), min(total, limit)
        return free, total
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total, total


def _control_group_limits(root: Path, membership: Path) -> Iterator[tuple[int, int]]:
    """The memory limit of the process's control group and of each one above it that has one, with the bytes in use.

    Of version 2 of control groups, with which SLURM, containers and systemd set limits. Files that are cached and have
    not been read lately do not count as used, because the kernel drops them.
    """
    if not membership.is_file():
        return
    lines = membership.read_text().splitlines()
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if own is None:
        return
    for group in (root / own, *(root / own).parents):
        limit = group / "memory.max"
        if limit.is_file() and (text := limit.read_text().strip()) != "max":
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / "memory.current").read_text()) - int(statistics["inactive_file"])
            yield int(text), used
        if group == root:
            return
