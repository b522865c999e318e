"""The curves on disk: one line a step, none twice after a resume, none torn by a kill."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from medr1.tracking.metrics_file import MetricsFile


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("resumed", range(7))
@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("torn", ["", '{"st', '{"step": 5, "train/loss": 0.1}'])
def test_a_resumed_run_has_each_step_once(resumed: int, every: int, torn: str, tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in range(0, 5, every):
        file.append({"train/loss": 0.1}, step)
    file.sync()
    file.path.write_text(file.path.read_text() + torn)
    again = MetricsFile(file.path)
    again.drop_from(resumed)
    assert steps(file.path) == [step for step in range(0, 5, every) if step < resumed]
    for step in range(resumed, 9):
        if step % every == 0:
            again.append({"train/loss": 0.2}, step)
    found = steps(file.path)
    assert len(set(found)) == len(found) and found == sorted(found)


@pytest.mark.parametrize(
    ("resumed", "left"), [(0, []), (1, [(0, "validation/a"), (0, "train/a"), (1, "validation/a")])]
)
def test_validation_of_the_step_at_which_a_run_is_resumed_stays(
    resumed: int, left: list[tuple[int, str]], tmp_path: Path
) -> None:
    file = MetricsFile(tmp_path / "m")
    for step in range(3):
        file.append({"validation/a": 1.0}, step)
        file.append({"train/a": 1.0}, step)
    file.drop_from(resumed)
    found = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert [(line["step"], list(line)[1]) for line in found] == left


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_null(value: float, tmp_path: Path) -> None:
    MetricsFile(tmp_path / "m").append({"train/loss": value, "train/reward": 1e-300}, 3)
    assert (tmp_path / "m").read_text() == '{"step": 3, "train/loss": null, "train/reward": 1e-300}\n'


def test_without_a_line_there_is_nothing_to_drop_or_sync(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "m")
    file.drop_from(3)
    file.sync()
    assert not file.path.exists()
