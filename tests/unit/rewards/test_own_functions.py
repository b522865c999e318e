"""Reward functions of the user's own, named by file or by module: found, called by name, and refused with a remedy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medr1.config.settings import RewardConfig, TrainConfig
from medr1.errors import ConfigError, RewardError
from medr1.rewards import check, checked_own, compute_rewards, locate_own
from medr1.runs.run_directory import RunDirectory
from medr1.workflows.reward_sources import check_before_resume, function_keys, give_again, store
from tests.unit.rewards.test_rewards import CUT, IDS, NO_THINK, record

TEXTS = ["<answer>C</answer>", "no"]


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def own(source: str, function: str = "own", **settings: Any) -> RewardConfig:
    """A config whose one function stands in mine.py."""
    Path("mine.py").write_text(source, encoding="utf-8")
    return RewardConfig("test", {"mine": {"function": f"mine.py:{function}", "weight": 1.0, **settings}})


def values(config: RewardConfig) -> list[float]:
    check(config)
    records = [record("C", id="first"), record("B", id="second")]
    return compute_rewards(config, TEXTS, records, NO_THINK, completion_ids=IDS, truncated=CUT).parts["mine"]


DATACLASS = "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"


@pytest.mark.parametrize(
    ("source", "settings", "expected"),
    [
        ("def own(completions): return [len(text) for text in completions]", {}, [18, 2]),
        ("def own(completion_ids): return [len(ids) for ids in completion_ids]", {}, [3, 4]),
        ("def own(truncated, answers): return [a == 'C' for a in answers]", {}, [1, 0]),
        ("def own(*, records, completions): return [r.id == 'first' for r in records]", {}, [1, 0]),
        ("def own(completions, reasoning): return [reasoning == 'no_think'] * 2", {}, [1, 1]),
        ("def own(completions, bonus=2): return [bonus, 0]", {}, [2, 0]),
        ("def own(completions, bonus): return [bonus, 0]", {"bonus": 3}, [3, 0]),
        ("def own(completions, **kwargs): return [len(kwargs), kwargs['bonus']]", {"bonus": 5}, [6, 5]),
        ("def own(completions, *args, **kwargs): return (0 for _ in kwargs['answers'])", {}, [0, 0]),
        ("import functools\nown = functools.partial(lambda completions, n: [n] * 2, n=4)", {}, [4, 4]),
        ("class Own:\n    def __call__(self, completions): return [1, 0]\nown = Own()", {}, [1, 0]),
        (f"{DATACLASS}def own(completions): return [A(1).x] * 2", {}, [1, 1]),
        ("def own(completions: list[str]): return [own.__annotations__['completions'] == list[str], 1]", {}, [1, 1]),
    ],
)
def test_a_function_gets_what_it_names(source: str, settings: dict[str, Any], expected: list[float]) -> None:
    assert values(own(source, **settings)) == expected


GOOD = "def own(completions, limit: int = 3): return [0.0] * len(completions)\n"


@pytest.mark.parametrize(
    ("source", "function", "settings", "named"),
    [
        (GOOD, "mine.py", {}, ["mine.py:FUNCTION"]),
        (GOOD, "mine:own", {}, ["does not end in .py"]),
        (GOOD, "mine.own", {}, ["no module mine is installed", "mine.py:own"]),
        (GOOD, "nowhere.py:own", {}, ["no file", "nowhere.py", "working directory"]),
        (GOOD, "own", {}, ["FILE.py:FUNCTION"]),
        (GOOD, ":own", {}, ["FILE.py:FUNCTION"]),
        (GOOD, "mine.py:", {}, ["FILE.py:FUNCTION"]),
        (GOOD, 3, {}, ["function=3"]),
        (GOOD, None, {}, ["function=None"]),
        (GOOD, "medr1.nothing.own", {}, ["no module medr1.nothing"]),
        (GOOD, "medr1.rewards.nothing", {}, ["no function nothing"]),
        (GOOD, "math.sqrt", {}, ["no Python source"]),
        (GOOD, "mine.py:owm", {}, ["no function owm", "did you mean own"]),
        (GOOD, "mine.py:own", {"limt": 3}, ["mine.limt: no such setting", "Did you mean limit"]),
        (GOOD, "mine.py:own", {"limit": "x"}, ["mine.limit=x"]),
        (GOOD, "mine.py:own", {"weight": -1}, ["mine.weight=-1"]),
        ("own = 3", "mine.py:own", {}, ["no function own"]),
        ("import not_installed", "mine.py:own", {}, ["cannot be imported", "not_installed", "installed"]),
        ("def own(", "mine.py:own", {}, ["cannot be imported", "SyntaxError"]),
        ("raise SystemExit(0)", "mine.py:own", {}, ["cannot be imported", "SystemExit"]),
        ("def own(texts): return [0]", "mine.py:own", {}, ["neither completions nor completion_ids"]),
        ("def own(records): return [0]", "mine.py:own", {}, ["neither completions nor completion_ids"]),
        ("def own(): return []", "mine.py:own", {}, ["neither completions nor completion_ids"]),
        ("def own(completions, /): return [0]", "mine.py:own", {}, ["by position only"]),
        ("def own(completions, prompts): return [0]", "mine.py:own", {}, ["mine.prompts", "answers"]),
        ("def own(completions, weight): return [0]", "mine.py:own", {}, ["weight is a setting of every function"]),
        ("async def own(completions): return [0]", "mine.py:own", {}, ["asynchronous"]),
    ],
)
def test_a_function_that_cannot_work_is_refused(
    source: str, function: Any, settings: dict[str, Any], named: list[str]
) -> None:
    config = own(source, **settings)
    config.functions["mine"]["function"] = function
    with pytest.raises(ConfigError) as caught:
        check(config)
    assert [words for words in ("reward.functions.mine", *named) if words not in str(caught.value)] == [], caught.value


@pytest.mark.parametrize("name", ["accuracy", "format", "tag_count"])
def test_a_reward_of_medr1_keeps_its_name(name: str) -> None:
    config = own(GOOD)
    config.functions[name] = config.functions.pop("mine")
    with pytest.raises(ConfigError, match="choose another name"):
        check(config)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("return [1.0]", ["1 values for 2 completions", "first"]),
        ("return [1.0, float('nan')]", ["nan", "second", "finite"]),
        ("return [1.0, None]", ["None", "second", "finite"]),
        ("return 1.0", ["1.0", "list"]),
        ("return [1 / len(t.removeprefix('no')) for t in completions]", ["ZeroDivisionError", "second"]),
        ("return [t.index('C') for t in completions]", ["ValueError", "second", "mine.py, line 1"]),
    ],
)
def test_what_fails_in_training_names_reward_and_record(body: str, named: list[str]) -> None:
    with pytest.raises(RewardError) as caught:
        values(own(f"def own(completions): {body}"))
    assert [words for words in ("reward mine", *named) if words not in str(caught.value)] == [], caught.value


def test_a_path_becomes_absolute_and_the_source_is_that_of_the_check(tmp_path: Path) -> None:
    """A file that is changed during a run changes nothing."""
    config = own("def own(completions): return [1, 1]")
    assert values(config) == [1, 1]
    assert config.functions["mine"]["function"] == f"{tmp_path / 'mine.py'}:own"
    Path("mine.py").write_text("def own(completions): return [2, 2]", encoding="utf-8")
    records = [record(), record()]
    assert compute_rewards(config, TEXTS, records, NO_THINK).total == [1, 1]
    assert "[1, 1]" in checked_own(config)["mine"].source and "[2, 2]" in locate_own(config)["mine"].source
    assert values(config) == [2, 2], "a new check reads it again, even if its size and time are the same"


def test_an_installed_module_is_named_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site" / "package").mkdir(parents=True)
    (tmp_path / "site" / "package" / "__init__.py").touch()
    (tmp_path / "site" / "package" / "module.py").write_text(GOOD, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "site")
    config = RewardConfig("test", {"mine": {"function": "package.module.own", "weight": 1}})
    assert values(config) == [0, 0] and config.functions["mine"]["function"] == "package.module.own"
    assert checked_own(config)["mine"].source == GOOD


def test_finding_a_function_executes_nothing() -> None:
    config = own("raise SystemExit(1)")
    assert locate_own(config)["mine"].source == "raise SystemExit(1)"


@pytest.fixture
def stored(tmp_path: Path) -> tuple[TrainConfig, RunDirectory]:
    """A run that has begun with mine.py."""
    cfg, run = TrainConfig(reward=own(GOOD)), RunDirectory(tmp_path / "runs" / "run")
    run.path.mkdir(parents=True)
    check(cfg.reward)
    assert [file.relative_to(run.path) for file in store(cfg, run)] == [Path("rewards/mine.py")]
    return cfg, run


def test_an_unchanged_function_is_resumed(stored: tuple[TrainConfig, RunDirectory]) -> None:
    cfg, run = stored
    check_before_resume(cfg, run, [])
    check(cfg.reward)
    assert store(cfg, run) == [] and run.reward_sources("mine")[0].read_text(encoding="utf-8") == GOOD
    assert function_keys(cfg) == ["reward.functions.mine.function"]


@pytest.mark.parametrize("change", ["source", "nothing stored", "in the run directory", "by a link"])
def test_a_resumed_run_executes_only_what_it_has_stored_or_what_is_named(
    change: str, stored: tuple[TrainConfig, RunDirectory], caplog: pytest.LogCaptureFixture
) -> None:
    cfg, run = stored
    (key,) = function_keys(cfg)
    if change == "source":
        Path("mine.py").write_text(GOOD.replace("0.0", "1.0"), encoding="utf-8")
    elif change == "nothing stored":
        run.reward_source("mine", 1).unlink()
    else:
        file = run.reward_source("mine", 1)
        if change == "by a link":
            Path("link.py").symlink_to(file)
        give_again(cfg, key, f"{file if change == 'in the run directory' else 'link.py'}:own")
    with pytest.raises(ConfigError, match=rf"add {key}=.*:own"):
        check_before_resume(cfg, run, ["resume"])
    check_before_resume(cfg, run, ["resume", key])
    check(cfg.reward)
    new = [file.name for file in store(cfg, run)]
    assert new == {"source": ["mine-2.py"], "nothing stored": ["mine.py"]}.get(change, [])
    assert ("reward mine has changed" in caplog.text) == (change == "source")
    if new:
        check_before_resume(cfg, run, [])
