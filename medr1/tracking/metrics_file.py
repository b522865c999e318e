"""The curves of a training as JSON lines, which every run writes, whether it is tracked or not."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from medr1.atomic_write import drop_torn_line, write_text


class MetricsFile:
    """One line for each logged step: ``{"step": 0, "train/loss": 0.1, ...}``. A value that is not finite is null."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def drop_from(self, step: int) -> None:
        """Removes the lines of ``step`` and of later steps, which are computed again when a run is resumed."""
        if not self.path.is_file():
            return
        drop_torn_line(self.path)
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(self.path, "".join(line for line in lines if json.loads(line)["step"] < step))

    def append(self, values: Mapping[str, float], step: int) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")

    def sync(self) -> None:
        """Writes the lines to disk. Called before a checkpoint, so that a crash leaves no gap before its step."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
