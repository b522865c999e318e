"""A folder of plugins: its options and settings are known to the command line, and its names must be new."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from medr1.config.registry import Registry
from medr1.data.sources import SOURCES
from medr1.errors import ConfigError
from medr1.generation.engines import ENGINES
from medr1.runs.run_directory import RunDirectory
from medr1.training.algorithms import ALGORITHMS
from medr1.workflows import plugin_sources
from medr1.workflows.components import import_plugins, use_plugins
from medr1.workflows.plugin_sources import PLUGINS_VARIABLE
from tests.command_lines import Answer, run

LENGTH = """
from medr1.rewards import reward_function

def _check(limit, threshold):
    if threshold >= limit:
        raise ValueError(f"threshold={threshold} must be below limit={limit}")

@reward_function("length", check=_check)
def length(completions, records, *, completion_ids, limit=20, threshold=10):
    return [-float(len(ids) > limit) for ids in completion_ids]
"""
YAML = """
defaults: [schema]
name: length
functions:
  accuracy: {weight: 1.0}
  length: {weight: 1.0, limit: "${algorithm.sampling.max_completion_length}"}
"""
FILES = {
    "length.py": LENGTH,
    "reward/length.yaml": YAML,
    "algorithm/high_entropy.yaml": "defaults: [grpo]\nname: high_entropy\n",
    "experiment/mine.yaml": "# @package _global_\nseed: 1\n",
}
# What is typed between "train.py" and "plugins=plugins", and what the message must say.
TYPED: dict[str, list[str]] = {
    "reward=lenght": ["reward/lenght", "Did you mean 'length'"],
    "reward=length reward.functions.length.treshold=2": ["length.treshold: no such setting", "Did you mean threshold"],
    "reward=length reward.functions.lenght.threshold=2": ["no such reward function", "Did you mean length"],
    "reward=length +reward.functions.length.treshold=2": ["length.treshold: no such setting", "Did you mean threshold"],
    "reward=length ~reward.functions.acuracy": ["no such reward function", "Did you mean accuracy"],
    "reward.functions.acuracy.weight=2": ["reward.functions.acuracy", "Did you mean accuracy"],
    "reward.functions.length.weight=1": ["+reward.functions.length.weight=..."],
    "reward=length reward.functions.length.threshold=2": ["+reward.functions.length.threshold=..."],
    "reward=length +reward.functions.length.threshold=99": ["reward.functions.length: threshold=99", "below limit=32"],
    "reward=length reward.functions.length.weight=-1": ["length.weight=-1", "negative"],
    "-m reward=length,med_r1 reward.functions.length.treshold=2": ["length.treshold", "Did you mean threshold"],
    "reward=length algorithm=sft": [
        "reward.functions.length.limit=${algorithm.sampling.max_completion_length}",
        "a setting of algorithm=grpo, which is not chosen",
        "Give reward.functions.length.limit a value",
    ],
    "reward=length algorithm=zero_shot": ["reward.functions.length.limit=$", "a setting of algorithm=grpo"],
    "-m reward=length algorithm=grpo,sft": ["reward.functions.length.limit=$", "a setting of algorithm=grpo"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("plugins")
    write(folder / "plugins", FILES)
    return folder


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, Answer]:
    lines = ["--help", *TYPED]
    return dict(zip(lines, run([(folder, f"train.py {line} plugins=plugins") for line in lines]), strict=True))


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


@pytest.mark.parametrize("line", TYPED)
def test_a_mistake_with_plugins_gets_one_message(line: str, answers: dict[str, Answer]) -> None:
    answer = answers[line]
    assert answer.code == 2 and answer.err.startswith("error: ") and "Traceback" not in answer.err, answer.err
    assert [words for words in TYPED[line] if words not in answer.err] == [], answer.err
    assert answer.heavy == []


def test_help_lists_the_options_of_plugins(answers: dict[str, Answer]) -> None:
    answer = answers["--help"]
    assert (answer.code, answer.err) == (0, "")
    options = {group.strip(): line.split(" | ") for group, _, line in (row.partition("=") for row in rows(answer.out))}
    assert {"length", "med_r1"} <= {word.strip() for word in options["reward"]}
    assert {"high_entropy", "grpo"} <= {word.strip() for word in options["algorithm"]}
    assert {"mine", "paper"} <= {word.strip() for word in options["experiment"]}


def rows(text: str) -> list[str]:
    return [line for line in text.replace("\n" + 17 * " ", " ").splitlines() if line.startswith("  ")]


def test_help_of_a_missing_folder_says_so(tmp_path: Path) -> None:
    (answer,) = run([(tmp_path, "evaluate.py plugins=nowhere --help")])
    assert answer.code == 2 and "nowhere" in answer.err and "no such folder" in answer.err


def test_plugins_that_came_with_a_run_are_executed_only_if_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run directory, or the folder that it lies in, may come from someone else."""
    monkeypatch.setenv(PLUGINS_VARIABLE, "")
    run_dir, marker = tmp_path / "received" / "run", tmp_path / "executed"
    for folder in (run_dir / "plugins", tmp_path / "received" / "plugins", tmp_path / "mine"):
        write(folder, {"own.py": f"open({str(marker)!r}, 'a').close()"})
    for folder in (run_dir / "plugins", tmp_path / "received" / "plugins"):
        (run_dir / "config.yaml").write_text(f"plugins: {folder}\n")
        for key in ("run", "resume"):
            with pytest.raises(ConfigError, match=f"add plugins={folder}"):
                use_plugins([f"{key}={run_dir}"])
    assert not marker.exists()
    (run_dir / "config.yaml").write_text(f"plugins: {tmp_path / 'mine'}\n")
    use_plugins([f"run={run_dir}"])
    assert marker.exists()
    sys.modules.pop("medr1_plugins.own")


def test_plugins_that_have_changed_are_executed_only_if_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = RunDirectory(tmp_path / "runs" / "run (1)"), tmp_path / "mine"
    write(folder, {"own.py": "X = 1"})
    monkeypatch.setenv(PLUGINS_VARIABLE, str(folder))
    plugin_sources.store(run)
    run.config.write_text(f"plugins: {folder}\n")
    use_plugins([f'resume="{run.path}"'])
    assert sys.modules.pop("medr1_plugins.own").X == 1
    written = (folder / "own.py").stat()
    write(folder, {"own.py": "X = 2", "more.py": "Y = 1"})
    os.utime(folder / "own.py", ns=(written.st_atime_ns, written.st_mtime_ns))  # as cached bytecode would be
    with pytest.raises(ConfigError, match=rf"since this run began: more\.py, own\.py in .*add plugins={folder}"):
        use_plugins([f"resume={run.path}"])
    assert "medr1_plugins.own" not in sys.modules
    use_plugins([f"resume={run.path}", f"plugins={folder}"])
    assert sys.modules.pop("medr1_plugins.own").X == 2 and sys.modules.pop("medr1_plugins.more")
    plugin_sources.store(run)
    assert [(place.name, (place / "own.py").read_text()) for place in run.plugin_sources()] == [
        ("plugins", "X = 1"),
        ("plugins-2", "X = 2"),
    ]
    use_plugins([f"resume={run.path}"])  # these are what the run goes on with
    assert sys.modules.pop("medr1_plugins.own").X == 2 and sys.modules.pop("medr1_plugins.more")


COMPONENT = """
from dataclasses import dataclass
from types import SimpleNamespace
from medr1.{module} import {registry}

@dataclass
class Settings:
    kind: str = "{kind}"

{registry}.register(SimpleNamespace(kind="{kind}", settings=Settings))
"""
TAKEN = {
    **{
        f"{group}/{kind}": {"own.py": COMPONENT.format(module=module, registry=registry, kind=kind)}
        for module, registry, group, kind in [
            ("training.algorithms", "ALGORITHMS", "algorithm", "grpo"),
            ("training.algorithms", "ALGORITHMS", "algorithm", "sft"),
            ("data.sources", "SOURCES", "data", "phantoms"),
            ("data.sources", "SOURCES", "data", "omnimedvqa"),
            ("generation.engines", "ENGINES", "rollout", "local"),
        ]
    },
    "function accuracy": {"own.py": LENGTH.replace('"length"', '"accuracy"')},
    "function format": {"own.py": LENGTH.replace('"length"', '"format"')},
    **{
        name: {name: "defaults: [schema]\n"}
        for name in ("reward/med_r1.yaml", "algorithm/dapo.yaml", "data/phantoms.yaml", "sweep/cross_modality.yaml")
    },
    "two plugins": {"a.py": LENGTH, "b.py": LENGTH},
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_name_that_is_taken_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, TAKEN[name])
    monkeypatch.setenv(PLUGINS_VARIABLE, str(tmp_path))
    monkeypatch.setattr("medr1.rewards.REWARDS", {})
    with pytest.raises(ConfigError) as caught:
        import_plugins()
    kind = "length" if name == "two plugins" else name.split("/")[-1].split()[-1]
    assert kind in str(caught.value) and "rename" in str(caught.value), caught.value
    own = next(iter(reversed(TAKEN[name])))
    assert own.split("/")[-1] in str(caught.value)


@pytest.mark.parametrize("registry", [ALGORITHMS, SOURCES, ENGINES], ids=lambda registry: registry.group)
def test_the_same_component_may_be_registered_again(registry: Registry) -> None:
    """A file that is imported under two names, such as a plugin and its test."""
    for component in list(registry):
        assert registry.register(component) is component
