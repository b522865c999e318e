"""The curves of a training as JSON lines, which every run writes, whether it is tracked or not."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from medr1.atomic_write import drop_torn_line, write_text


def is_validation(names: Iterable[str]) -> bool:
    """Whether the metrics of a line are those of an evaluation on the validation records."""
    return any(name.startswith("validation/") for name in names)


def _is_before(step: int, end: int, names: Iterable[str]) -> bool:
    """Whether metrics of ``step`` are from before a checkpoint at step ``end``.

    Validation of this step is: it is computed before the checkpoint is written. At step 0 there is no checkpoint.
    """
    return step < end or (step == end > 0 and is_validation(names))


class MetricsFile:
    """One line for each logged step: ``{"step": 0, "train/loss": 0.1, ...}``. A value that is not finite is null.

    Evaluations on the validation records have lines of their own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def drop_from(self, step: int) -> None:
        """Removes what is computed again when a run is resumed at ``step``: the lines of this step and of later ones.

        What is from before its checkpoint stays, see ``_is_before``.
        """
        if not self.path.is_file():
            return
        drop_torn_line(self.path)

        def stays(line: str) -> bool:
            values = json.loads(line)
            return _is_before(values["step"], step, values)

        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(self.path, "".join(filter(stays, lines)))

    def read(self) -> dict[str, list[tuple[int, float]]]:
        """(step, value) by metric, without values that are not finite; nothing if the run has no curves."""
        found: dict[str, list[tuple[int, float]]] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []:
            values = json.loads(line)
            step = values.pop("step")
            for name, value in values.items():
                if value is not None:
                    found.setdefault(name, []).append((step, value))
        return found

    def last_steps(self, end: int) -> dict[str, int]:
        """The last step of each metric before the step ``end``, at which a run is resumed (of validation, up to it)."""
        if self.path.is_file():
            drop_torn_line(self.path)
        before = {
            name: [step for step, _ in curve if _is_before(step, end, [name])] for name, curve in self.read().items()
        }
        return {name: max(steps) for name, steps in before.items() if steps}

    def append(self, values: Mapping[str, float], step: int) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")

    def sync(self) -> None:
        """Writes the lines to disk. Called before a checkpoint, so that a crash leaves no gap before its step."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
