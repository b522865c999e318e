"""The memory of the device that a run is planned for."""

from __future__ import annotations

import math
import os
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
    """Free and total bytes."""
    info = Path("/proc/meminfo")
    if info.exists():
        lines = dict(line.split(":") for line in info.read_text().splitlines())
        free, total = (int(lines[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
        return free, total
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total, total
