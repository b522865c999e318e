"""``evaluate.py compare=[A,B]`` on runs of a few predictions that can be counted by eye."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medr1.config.settings import EvaluateConfig
from medr1.domain.reasoning import ReasoningMode
from medr1.errors import ConfigError, DataError
from medr1.evaluation.predictions import Condition, Prediction, write_predictions
from medr1.evaluation.statistics import mcnemar_exact
from medr1.runs.run_directory import RunDirectory
from medr1.workflows.compare_runs import compare_runs
from tests.composing import composed


def line(record: str, letter: str, condition: str, options: int = 4) -> Prediction:
    """A prediction whose correct answer is A, on an image of its own."""
    return Prediction(
        record=record,
        image=f"image of {record}",
        modality="ct" if record < "e" else "mri",
        question_type="lesion",
        condition=condition,
        reasoning=ReasoningMode.NO_THINK,
        text="",
        answer="A",
        parsed=letter,
        lenient=letter,
        correct=letter == "A",
        format=True,
        length=1,
        truncated=False,
        options=options,
    )


def stored(
    path: Path,
    letters: dict[str, str],
    condition: str = Condition.TRAINED,
    data: str = "0",
    **controls: dict[str, str],
) -> Path:
    """A finished run: the letter of each record under a condition, and those of its controls."""
    run = RunDirectory(path)
    (path / "predictions").mkdir(parents=True)
    run.config.write_text("seed: 0\n")
    run.finished.write_text("{}")
    run.environment.write_text(json.dumps({"data_fingerprint": data}))
    for name, of_condition in {condition: letters, **controls}.items():
        lines = [line(record, letter, name) for record, letter in of_condition.items()]
        write_predictions(run.predictions(name), lines)
    return path


def compared(tmp_path: Path, *runs: Path) -> dict[str, Any]:
    cfg: EvaluateConfig = composed("evaluate", "tracking=none")
    cfg.compare = list(map(str, runs))
    (out := tmp_path / "out").mkdir()
    compare_runs(cfg, out)
    result: dict[str, Any] = json.loads((out / "comparison.json").read_text())
    return result | {"table": (out / "results.md").read_text()}


def test_the_option_prior_names_the_run_that_it_is_of(tmp_path: Path) -> None:
    answers = dict(zip("cdef", "AABA", strict=True))
    a, b = stored(tmp_path / "a", answers), stored(tmp_path / "b", answers, option_prior=dict.fromkeys("cdef", "A"))
    assert "Option prior: of the training records of B." in compared(tmp_path, a, b)["table"]


def test_only_records_of_both_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = stored(tmp_path / "a", dict(zip("abcdef", "BBAABA", strict=True)), blank_image=dict.fromkeys("abcdef", "A"))
    b = stored(tmp_path / "b", dict(zip("cdefgh", "AAABAB", strict=True)), Condition.BASE)
    found = compared(tmp_path, a, b)
    # In common: c A A, d A A, e B A, f A B.
    overall = found["comparison"]["overall"]
    assert (overall["n"], overall["only_a"], overall["only_b"]) == (4, 1, 1)
    assert overall["difference"]["value"] == 0 and overall["p"] == mcnemar_exact(1, 1)
    assert (found["a"]["records_left_out"], found["b"]["records_left_out"]) == (2, 2)
    assert (found["a"]["condition"], found["b"]["condition"]) == ("trained", "base")
    assert found["a"]["summary"]["overall"]["accuracy"]["value"] == 3 / 4
    assert found["a"]["controls"]["blank_image"]["overall"]["n"] == 4 and not found["b"]["controls"]
    assert set(found["comparison"]["by_modality"]) == {"ct", "mri"}
    assert "| All questions | 4 | 25.0 | - | 100.0 | - | 75.0" in found["table"]
    assert "left out: 2 of A and 2 of B" in found["table"] and "A: a. B: b." in found["table"]
    lines = capsys.readouterr().out.splitlines()[:-1]
    assert max(map(len, lines)) <= 100 and any(line.startswith("All questions ") for line in lines)


def test_the_difference_is_b_minus_a(tmp_path: Path) -> None:
    a, b = (stored(tmp_path / name, dict.fromkeys("abc", letter)) for name, letter in (("a", "B"), ("b", "A")))
    assert compared(tmp_path, a, b)["comparison"]["overall"]["difference"]["value"] == 1


@pytest.mark.parametrize("other", ["0", "1"])
def test_runs_on_other_data_are_marked(tmp_path: Path, other: str) -> None:
    a, b = stored(tmp_path / "a", {"a": "A"}), stored(tmp_path / "b", {"a": "A"}, data=other)
    found = compared(tmp_path, a, b)
    assert ("fingerprints of A and B differ" in found["table"]) == (other != "0")
    assert (found["a"]["data_fingerprint"], found["b"]["data_fingerprint"]) == ("0", other)


def test_runs_without_a_common_record_are_refused(tmp_path: Path) -> None:
    a, b = stored(tmp_path / "a", {"a": "A"}), stored(tmp_path / "b", {"b": "A"})
    with pytest.raises(DataError, match="no test record in common"):
        compared(tmp_path, a, b)


def test_another_question_under_the_same_id_is_refused(tmp_path: Path) -> None:
    a, b = stored(tmp_path / "a", {"a": "A"}), stored(tmp_path / "b", {"a": "A"})
    write_predictions(RunDirectory(b).predictions("trained"), [line("a", "A", "trained", options=3)])
    with pytest.raises(DataError, match="record a is not the same question"):
        compared(tmp_path, a, b)


@pytest.mark.parametrize("names", [(), ("a",), ("a", "a"), ("a", "b", "c")])
def test_two_different_runs_are_needed(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"compare=\[RUN_A,RUN_B\]"):
        compared(tmp_path, *(tmp_path / name for name in names))


def test_a_link_to_a_run_is_not_another_run(tmp_path: Path) -> None:
    a = stored(tmp_path / "a", {"a": "A"})
    (tmp_path / "link").symlink_to(a)
    with pytest.raises(ConfigError, match="two different runs"):
        compared(tmp_path, a, tmp_path / "link")


def test_what_is_no_finished_run_is_named(tmp_path: Path) -> None:
    a, b = stored(tmp_path / "a", {"a": "A"}), stored(tmp_path / "b", {"a": "A"})
    with pytest.raises(ConfigError, match=r"nowhere is no run directory"):
        compared(tmp_path, a, tmp_path / "nowhere")
    (b / "finished.json").unlink()
    (tmp_path / "out").rmdir()
    with pytest.raises(DataError, match=r"b is not finished; continue it with resume="):
        compared(tmp_path, a, b)
