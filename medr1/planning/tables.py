"""A plan as text."""

from __future__ import annotations

from medr1.planning.device import GIB, Device
from medr1.planning.memory_ledger import PARTS, Peaks, peak_bytes


def memory_table(peaks: Peaks) -> str:
    """The peak of each phase in a column, each part in a row, in GiB."""
    width = max(12, *(len(name) + 2 for name in peaks))
    lines = ["memory, GiB".ljust(14) + "".join(name.rjust(width) for name in peaks)]
    for part in PARTS:
        if any(parts[part] for parts in peaks.values()):
            lines.append(part.ljust(14) + "".join(_gib(parts[part]).rjust(width) for parts in peaks.values()))
    lines.append("total".ljust(14) + "".join(_gib(sum(parts.values())).rjust(width) for parts in peaks.values()))
    return "\n".join(lines)


def verdict(peaks: Peaks, device: Device) -> str:
    """Whether the highest phase fits on the device."""
    highest = max(peaks, key=lambda name: sum(peaks[name].values()))
    fits = "fits" if peak_bytes(peaks) <= device.usable_bytes else "does not fit"
    return (
        f"{fits}: {_gib(peak_bytes(peaks))} GiB in {highest}, of {_gib(device.usable_bytes)} GiB that are usable on "
        f"{device.name} ({_gib(device.total)} GiB in all)"
    )


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _gib(size: float) -> str:
    value = size / GIB
    return "0" if not size else f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
