"""Rules on the source, checked on its syntax trees: imports go one way, heavy libraries stay in their packages."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "medr1").rglob("*.py"))
ENTRY = [ROOT / "train.py", ROOT / "evaluate.py"]
# From the ground up. A package imports packages of lower floors, and on its own floor only those listed below.
FLOORS: list[set[str]] = [
    {"errors", "atomic_write", "waiting_lock"},
    {"domain"},
    {"config"},
    {"rl", "models", "data", "rewards"},
    {"generation"},
    {"training", "evaluation", "tracking", "runs"},
    {"planning", "reporting"},
    {"workflows"},
    {"cli"},
    {"ask", "train", "evaluate"},
]
# A training callback writes to a tracker, and one predicts the validation records.
ON_ONE_FLOOR = {("training", "tracking"), ("training", "evaluation")}
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room(path: Path) -> str:
    name = path.relative_to(ROOT / "medr1").parts[0] if path not in ENTRY else path.name
    return name.removesuffix(".py")


@functools.cache
def imports(path: Path, everywhere: bool = True) -> list[str]:
    """Dotted names that a file imports; ``everywhere=False``: those that are executed when it is imported itself."""
    return list(_imports(path, everywhere))


def _imports(path: Path, everywhere: bool) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden: set[ast.AST] = set()
    for node in ast.walk(tree):
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not everywhere and (lazy or typing):
            hidden.update(ast.walk(node))
        if node not in hidden and isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if node not in hidden and isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*ENTRY, *FILES], ids=ids)
def test_imports_go_one_way(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        return
    assert here in FLOOR, f"give {here} a floor in this test"
    for name in imports(path):
        first, *rest = name.split(".")
        if first != "medr1" or rest == ["__version__"]:
            continue
        there = rest[0]
        assert there == here or FLOOR[there] < FLOOR[here] or (here, there) in ON_ONE_FLOOR, name


HOME = {
    "mlflow": {"tracking"},
    "peft": {"models"},
    "transformers": {"models", "workflows"},
    "pytorch_lightning": {"training", "workflows"},
    "lightning": set(),
    "hydra": {"cli", "config", "workflows"},
    "matplotlib": {"reporting"},
    "jinja2": {"reporting", "tracking"},
    "pydicom": {"data"},
    "openai": {"evaluation"},
}


@pytest.mark.parametrize("library", HOME)
def test_a_library_stays_in_its_rooms(library: str) -> None:
    users = {room(path) for path in [*ENTRY, *FILES] if library in {name.split(".")[0] for name in imports(path)}}
    assert users == HOME[library]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "ask",
            "cli/ask",
            "cli/main",
            "config/schema",
            "config/validate",
            "config/compose",
            "config/messages",
            "errors",
            "atomic_write",
        ),
        *("domain/reasoning", "domain/records", "evaluation/chat_client", "runs/run_directory", "runs/sweep"),
        *("workflows/model_choice", "workflows/multirun"),
    ],
)
def test_what_runs_before_the_config_is_checked_is_light(name: str) -> None:
    """Every file that these load when they are imported, however deep."""
    todo, seen = [ROOT / "medr1" / f"{name}.py"], set()
    while todo:
        path = todo.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        for dotted in imports(path, everywhere=False):
            library, *rest = dotted.split(".")
            assert library not in {"torch", "transformers", "mlflow", "pytorch_lightning", "peft", "scipy"}, path
            if library == "medr1":
                todo += [ROOT / Path("medr1", *rest[:n]).with_suffix(".py") for n in range(1, len(rest) + 1)]


def test_file_names_say_what_is_inside() -> None:
    assert not {path.stem for path in FILES} & {"utils", "util", "helpers", "misc", "common"}


REGISTRIES = ("algorithms", "engines", "rewards", "sources")  # they import the files beside them


def test_a_file_that_uses_nobody_is_no_file() -> None:
    """Nothing stands about that no other file of the project imports."""
    used = {name for path in [*ENTRY, *FILES] for name in imports(path)} | {"medr1.ask"}  # python -m medr1.ask
    for path in FILES:
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.stem != "__init__" and path.parent.name not in REGISTRIES:
            assert any(name == dotted or name.startswith(f"{dotted}.") for name in used), dotted
