"""How the benchmarks write a measurement."""

from __future__ import annotations

from statistics import median, quantiles


def spread(values: list[float], form: str) -> str:
    """The median of the values and their quartiles in brackets, each in the format ``form``."""
    low, _, high = quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return f"{median(values):{form}} [{low:{form}}, {high:{form}}]"
