"""The trials of a search: the ranges as they are typed, and what is tried next, which a kill does not change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice, product

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from medr1.config.search_space import Choice, Interval, Range, range_of, size
from medr1.errors import ConfigError
from medr1.reporting.sections import search_section
from medr1.runs.search import Trial, candidates, cell_of
from medr1.runs.selection import choose
from medr1.runs.sweep import State

ACCURACY, LENGTH = "validation/accuracy", "validation/completion_length"


def typed(text: str) -> Range | None:
    return range_of(OverridesParser.create().parse_override(f"key={text}"))


def space(**ranges: str) -> dict[str, Range]:
    return {key: of for key, text in ranges.items() if (of := typed(text))}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", None),
        ("interval(1e-5,1e-3)", Interval("interval(1e-5,1e-3)", 1e-5, 1e-3)),
        ("tag(log,interval(1,8))", Interval("tag(log,interval(1,8))", 1, 8, is_log=True)),
        ("int(interval(1,8))", Interval("int(interval(1,8))", 1, 8, is_int=True)),
        ("tag(log,int(interval(1,8)))", Interval("tag(log,int(interval(1,8)))", 1, 8, is_log=True, is_int=True)),
        ("a,b", Choice("a,b", ["a", "b"])),
        ("choice(0,0.01,0)", Choice("choice(0,0.01,0)", ["0", "0.01"])),
        ("range(1,8,3)", Choice("range(1,8,3)", ["1", "4", "7"], is_ordered=True)),
    ],
)
def test_a_range_is_read_as_hydra_writes_it(text: str, expected: Range | None) -> None:
    assert typed(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("interval(2,2)", "interval(1e-3,1e-5)", "interval(0,inf)", "interval(nan,1)", "int(interval(0.1,0.9))"),
        *("tag(log,interval(0,1))", "tag(log,interval(-1,1))", "tag(log,choice(1,2))", "tag(ln,interval(1,2))"),
        *("shuffle(1,2)", "shuffle(range(3))"),
    ],
)
def test_a_range_that_cannot_be_searched_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        typed(text)
    assert f"key={text}" in str(error.value)


def value(settings: Mapping[str, str]) -> float:
    """Best at x = 0.3."""
    return -((float(settings["x"]) - 0.3) ** 2)


def search(
    ranges: Mapping[str, Range], number: int, before: Sequence[Trial] = (), metric: str = ACCURACY
) -> list[Trial]:
    """The trials of a search with a known value; every fifth one fails."""
    trials = list(before)
    while len(trials) < number:
        settings = next(candidates(ranges, trials, metric))
        fails = len(trials) % 5 == 4
        own = None if fails else value(settings)
        trials.append(Trial(settings, {"0": str(len(trials))}, State.FAILED if fails else State.FINISHED, own))
    return trials


SPACES = {
    "interval": space(x="interval(0,1)"),
    "log": space(x="tag(log,interval(1e-5,1))", beta="choice(0,0.01,0.04)"),
    "int": space(x="int(interval(0,400))", mode="a,b"),
    "log int": space(x="tag(log,int(interval(1,400)))"),
    "range": space(x="range(0,1,0.005)"),
}


@pytest.mark.parametrize("ranges", SPACES.values(), ids=SPACES)
def test_a_killed_search_goes_on_with_the_same_trials_all_different_and_in_range(ranges: dict[str, Range]) -> None:
    whole = search(ranges, 16)
    assert search(ranges, 16, before=whole[:11]) == whole
    assert len({tuple(trial.settings.values()) for trial in whole}) == 16
    for trial in whole:
        for key, of in ranges.items():
            if isinstance(of, Choice):
                assert trial.settings[key] in of.values
            else:
                assert of.low <= float(trial.settings[key]) <= of.high
                assert not of.is_int or trial.settings[key].isdigit()


@pytest.mark.parametrize(("metric", "finds"), [(ACCURACY, True), (LENGTH, False)])
def test_the_sampler_goes_where_the_metric_is_better(metric: str, finds: bool) -> None:
    late = search(SPACES["interval"], 40, metric=metric)[20:]
    near = [trial for trial in late if abs(float(trial.settings["x"]) - 0.3) < 0.15]
    assert (len(near) >= 10) if finds else (len(near) < 3)


def test_trials_at_once_are_different() -> None:
    trials = search(SPACES["interval"], 12)
    for number in range(4):
        settings = next(candidates(SPACES["interval"], trials, ACCURACY))
        trials.append(Trial(settings, {"0": f"open {number}"}, State.WAITING, None))
    assert len({trial.settings["x"] for trial in trials}) == 16


def test_a_small_space_is_tried_to_its_end() -> None:
    ranges = space(x="range(0,3)", mode="a,b", n="int(interval(1,2))")
    trials = search(ranges, 12)
    assert size(ranges) == 12
    assert {tuple(trial.settings.values()) for trial in trials} == set(product("012", "ab", "12"))
    assert list(candidates(ranges, trials, ACCURACY)) == []


def test_other_candidates_are_offered_if_the_first_cannot_be_composed() -> None:
    offered = list(islice(candidates(SPACES["interval"], [], ACCURACY), 5))
    assert len({settings["x"] for settings in offered}) == 5


def test_the_report_has_all_trials_and_says_which_is_best() -> None:
    axes = ("algorithm", "grpo")
    trials = search(SPACES["interval"], 10)
    of_run = {trial.runs["0"]: {axes[0]: axes[1], **trial.settings, "seed": "0"} for trial in trials if trial.value}
    values = {trial.runs["0"]: trial.value for trial in trials if trial.value is not None}
    choices = choose(of_run, values, "seed", ACCURACY)
    section = search_section({(axes,): trials}, choices, ACCURACY, {"x": "interval(0,1)"})
    best = max(values, key=lambda name: values[name])
    assert f"Trial {int(best) + 1} of 10 is the best: x={of_run[best]['x']} " in " ".join(section.paragraphs)
    ((_, table),) = section.tables
    assert [row[-1] for row in table.rows].count("failed") == 2 and table.rows[int(best)][-1] == "best"
    assert [row[1] for row in table.rows] == [trial.settings["x"] for trial in trials]


def test_trials_without_all_seeds_are_not_compared_and_fixed_parameters_do_not_matter() -> None:
    """The search was repeated with one seed less; ``trainer.max_steps`` has one value in the sweep file."""
    cell = (("algorithm", "grpo"), ("trainer.max_steps", "50"))
    trials = [
        Trial({"x": "0.1"}, {"0": "a", "1": "b"}, State.FINISHED, 0.5),
        Trial({"x": "0.2"}, {"0": "c"}, State.FINISHED, 0.9),
    ]
    of_run = {
        name: {**dict(cell), **trial.settings, "seed": seed} for trial in trials for seed, name in trial.runs.items()
    }
    values = {name: trial.value for trial in trials if trial.value for name in trial.runs.values()}
    (choice,) = choices = choose(of_run, values, "seed", ACCURACY, searched=("x",))
    assert tuple(choice.cell.items()) == cell == cell_of(of_run["a"], ("x",))
    section = search_section({cell: trials}, choices, ACCURACY, {"x": "interval(0,1)"})
    assert "Trial 1 of 2 is the best: x=0.1 (0.500)." in " ".join(section.paragraphs)
    ((_, table),) = section.tables
    assert [row[-1] for row in table.rows] == ["best", "not compared: seeds missing"]
