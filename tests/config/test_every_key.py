"""Every key of the schema, typed with a right and with a wrong value on every command: honoured, or refused by name."""

from __future__ import annotations

import contextlib
import io
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from operator import attrgetter
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

import medr1.workflows.components
import medr1.workflows.evaluate
import medr1.workflows.train
from medr1.cli.main import entry_point
from medr1.config.schema import key_paths, schemas
from medr1.config.settings import EvaluateConfig, TrainConfig
from medr1.config.validate import _RANGES
from medr1.runs.run_directory import RunDirectory
from medr1.runs.sweep import Manifest, SweepDirectory
from tests.composing import composed

pytestmark = pytest.mark.fuzz

# The choice that has a key which the default choice of its group lacks.
CHOICES = {
    "model.url": "model=server model.url=http://127.0.0.1:1/v1 model.path=name",
    "data.axis": "data=omnimedvqa data.root=DIR data.split=image_grouped",
    "data.path": "data=mcqa data.path=DIR",
    "data.version": "data=pmc_vqa data.root=DIR",
    "rollout.url": "rollout=vllm_server rollout.url=http://127.0.0.1:1",
    "rollout.python": f"rollout=vllm_colocate rollout.python={sys.executable}",
    "algorithm.rationale": "algorithm=sft",
    "algorithm.text_steps": "algorithm=pretrain",
}
# Keys whose right values are not told by their types.
RIGHT = {
    "modality.name": "ct",
    "question_type.name": "lesion",
    "reasoning.mode": "no_think",
    "modality": "ct",
    "question_type": "lesion",
    "reasoning": "no_think",
    "model": "tiny",
    "data": "phantoms",
    "rollout": "local",
    "tracking": "none",
    "reward": "accuracy_only",
    "algorithm": "dapo",
    "trainer": "cpu",
    "data.image_size": "112",
    "model.image_size": "112",
    "model.image_token_size": "42",
    "model.url": "http://127.0.0.1:2/v1",
    "rollout.url": "http://127.0.0.1:2",
    "rollout.python": sys.executable,
    "trainer.accelerator": "cpu",
    "trainer.train_batch_size": "32",
    "trainer.devices": "2",
    "trainer.num_nodes": "2",
    "algorithm.num_generations": "4",
    "model.recipe.rl_learning_rate": "0.01",
    "model.recipe.sft_learning_rate": "0.01",
    "tracking.uri": "sqlite:///DIR/other.db",
    "plan_memory": "24",
    "evaluation.k": "[1,2]",
    "data.filter.pass_rate": "[0.1, 0.9]",
    "trainer.metric_for_best_model": "validation/accuracy",
}
SELF = {
    "resume",
    "run",
    "sweep",
    "audit",
    "compare",
    "data.sets",
    "data.train",
    "export",
    "merge",
    "plan",
    "plugins",
    "reward.functions",
    "data.columns.image",
    "data.columns.options",
    "data.files.train",
    "data.files.validation",
    "data.files.test",
    "data.modality_map",
    "data.question_type_map",
}  # tested by name elsewhere


class Case(NamedTuple):
    command: str
    key: str
    value: str
    is_right: bool
    words: tuple[str, ...]


def leaves(schema: type, prefix: str = "") -> Iterator[tuple[str, Any, type]]:
    """Every key without keys below it: its type, and the schema in which it stands."""
    for item in fields(schema):
        hint, key = get_type_hints(schema)[item.name], f"{prefix}{item.name}"
        nested = [found for (group, _), found in schemas().items() if group == item.name]
        if not nested and isinstance(hint, type) and is_dataclass(hint):
            nested = [hint]
        for below in nested:
            yield from leaves(below, f"{key}.")
        if not nested:
            yield key, hint, schema


def right_value(key: str, hint: Any) -> str:
    kind = next((a for a in get_args(hint) if a is not NoneType), hint) if get_origin(hint) is UnionType else hint
    if key in RIGHT:
        return RIGHT[key]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return str(list(kind)[-1])
    if kind is bool:
        return "true"
    low, high = _RANGES.get(key, (1, 100))
    if kind is int:
        return str(int(min(high, low + 2)))
    if kind is float:
        return repr((low + min(high, low + 1)) / 2)
    return "a_word" if not key.endswith(("root", "splits", "cache_dir", "path", "output_dir")) else "DIR"


def wrong_value(hint: Any) -> str:
    return "[1,{a:b}]" if hint is str or str in get_args(hint) else "certainly_not"


def cases(command: str, schema: type, start: tuple[str, ...]) -> list[Case]:
    found = {}
    for key, hint, _ in leaves(schema):
        if key in SELF:
            continue
        choice: tuple[str, ...] = ()
        if command in ("train", "evaluate"):
            for known, words in CHOICES.items():
                group = known.split(".")[0]
                owner = next(s for (g, _), s in schemas().items() if g == group and known in key_paths(s, f"{group}."))
                first = next(s for (g, n), s in schemas().items() if g == group and "schema" in n)
                if key in set(key_paths(owner, f"{group}.")) - set(key_paths(first, f"{group}.")):
                    choice = tuple(word for word in words.split() if not word.startswith(f"{key}="))
            if choice and choice[0] == "model=server" and command == "train":
                choice += ("algorithm=zero_shot",)
        for is_right in (True, False):
            value = right_value(key, hint) if is_right else wrong_value(hint)
            found[key, is_right] = Case(command, key, value, is_right, (*start, *choice))
    return list(found.values())


class Outcome(NamedTuple):
    settings: Any
    message: str


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for data, and a stored run of train.py and one of evaluate.py."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "data" / "Images").mkdir(parents=True)
    for command in ("train", "evaluate"):
        run = RunDirectory(folder / command)
        run.create(OmegaConf.structured(composed(command)), [], {"data_fingerprint": "-"})
    SweepDirectory(folder / "sweep").add(Manifest("t", "seed", "modality", [], []))
    runs = {"TRAINED": folder / "train", "EVALUATED": folder / "evaluate"}
    return {"SWEPT": folder / "sweep", "DIR": folder / "data", **runs}


def outcome(case: Case, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """What a command line does up to the start of its work: its settings, or its message."""
    script = "train" if case.command in ("train", "resume") else "evaluate"
    words = [*case.words, f"{case.key}={case.value}"]
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    if script == "evaluate":  # for which a train.py of this process must not have made sweep a group
        ConfigStore.instance().repo.pop("sweep", None)
    started: list[Any] = []
    monkeypatch.setattr(medr1.workflows.components, "check_available", lambda settings: None)  # there is no server
    monkeypatch.setattr(medr1.workflows.train, "train", lambda cfg, *_: started.append(cfg))
    monkeypatch.setattr(medr1.workflows.evaluate, "evaluate", lambda cfg, *_: started.append(cfg))
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *words])
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            entry_point(script)
        except SystemExit as leaving:
            assert leaving.code == 2, errors.getvalue()
    assert bool(started) != bool(errors.getvalue()), errors.getvalue()
    return Outcome(started[0] if started else None, errors.getvalue())


COMMANDS = {
    "train": (TrainConfig, ()),
    "evaluate": (EvaluateConfig, ()),
    "run": (EvaluateConfig, ("run=TRAINED",)),
    "resume": (TrainConfig, ("resume=TRAINED",)),
    "resume_evaluation": (EvaluateConfig, ("resume=EVALUATED",)),
    "sweep": (EvaluateConfig, ("sweep=SWEPT",)),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_key_is_ignored(
    command: str, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    schema, start = COMMANDS[command]
    counts: Counter[str] = Counter()
    faults = []
    for case in cases(command, schema, start):
        found = outcome(case, places, monkeypatch)
        if found.settings is None:
            counts["right, refused" if case.is_right else "wrong, refused"] += 1
            if case.key not in found.message:
                faults.append(f"{case.key}={case.value}: {found.message.strip()}")
            continue
        counts["right, honoured" if case.is_right else "wrong, taken"] += 1
        value = attrgetter(case.key)(found.settings)
        if not case.is_right or str(value).lower() != case.value.replace("DIR", str(places["DIR"])).lower():
            faults.append(f"{case.key}={case.value}: taken as {value!r}")
    print(command, dict(counts))
    assert faults == []
    assert counts["right, refused"] + counts["right, honoured"] == counts["wrong, refused"] > 50
