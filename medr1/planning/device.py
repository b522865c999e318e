"""How much memory there is for a run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

GIB = 2**30
# Of what is free: torch's allocator leaves gaps between its blocks, and a CPU's memory is never one program's alone.
_USABLE = {True: 0.95, False: 0.9}
_CONTEXT = 0.6 * GIB  # what CUDA takes for itself, where it has not begun yet


@dataclass(frozen=True, slots=True)
class Device:
    """Where a run is to take place. ``room``: bytes that its tensors may take, on each device."""

    name: str
    on_gpu: bool
    total: float
    usable_bytes: int
    is_here: bool = True


def find_device(accelerator: str, processes: int, memory: float | None) -> Device:
    """The device of a run; ``memory`` in GiB stands for a GPU that need not be here."""
    if memory is not None:
        return Device(
            f"a GPU of {memory:g} GiB", True, memory * GIB, int((memory * GIB - _CONTEXT) * _USABLE[True]), False
        )
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Device(torch.cuda.get_device_name(), True, total, int(free * _USABLE[True]))
    spare, all_of_it = _main_memory()
    return Device("CPU", False, all_of_it, int(spare * _USABLE[False] / processes))


def _main_memory() -> tuple[float, float]:
    """Bytes that can be had and bytes that there are."""
    info = Path("/proc/meminfo")
    if info.exists():
        lines = dict(line.split(":") for line in info.read_text().splitlines())
        free, total = (int(lines[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
        return free, total
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total, total
