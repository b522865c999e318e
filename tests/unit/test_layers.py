"""The house rules, from the syntax trees: imports go one way, heavy libraries stay in their rooms, files stay short.

A room is a folder or a file of medr1; files of one subject (tracking*, config*, pipeline*) are one room.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "medr1").rglob("*.py"))
ENTRY = [ROOT / "train.py", ROOT / "evaluate.py"]
# From the ground up. A room imports what lies below it, and nothing on its own floor.
FLOORS: list[set[str]] = [
    {"errors"},
    {"reasoning", "records", "tensors"},
    {"config"},
    {"rl", "policy", "data", "rewards", "chat"},
    {"training", "evaluation", "reporting", "tracking", "run_directory", "sweep"},
    {"algorithms", "model_choice", "planning"},
    {"pipeline"},
    {"messages"},
    {"multirun"},
    {"cli", "ask"},
    {"train", "evaluate"},
]
# Reports stand on top of what was evaluated; a training loop writes to a tracker that it is given; a sweep is made of
# run directories.
ON_ONE_FLOOR = {("reporting", "evaluation"), ("training", "tracking"), ("sweep", "run_directory")}
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room(path: Path) -> str:
    name = path.relative_to(ROOT / "medr1").parts[0] if path not in ENTRY else path.name
    return of_subject(name.removesuffix(".py"))


def of_subject(name: str) -> str:
    return next((subject for subject in ("tracking", "config", "pipeline") if name.startswith(subject)), name)


def imports(path: Path, everywhere: bool = True) -> Iterator[str]:
    """Dotted names that a file imports; ``everywhere=False``: those that are executed when it is imported itself."""
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
        if first != "medr1":
            continue
        there = of_subject(rest[0])
        assert there == here or FLOOR[there] < FLOOR[here] or (here, there) in ON_ONE_FLOOR, name


HOME = {
    "mlflow": {"tracking"},
    "peft": {"policy"},
    "transformers": {"policy", "pipeline"},
    "pytorch_lightning": {"training", "pipeline"},
    "lightning": set(),
    "hydra": {"cli", "config", "messages", "multirun"},
    "matplotlib": {"reporting"},
    "pydicom": {"data"},
}


@pytest.mark.parametrize("library", HOME)
def test_a_library_stays_in_its_rooms(library: str) -> None:
    users = {room(path) for path in [*ENTRY, *FILES] if library in {name.split(".")[0] for name in imports(path)}}
    assert users <= HOME[library]


def test_the_pipeline_only_quietens_transformers() -> None:
    tree = ast.parse((ROOT / "medr1" / "pipeline.py").read_text(encoding="utf-8"))
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    direct = {name for name in used if name.startswith("transformers.") and name.count(".") >= 2}
    assert all(name.startswith("transformers.utils.logging") for name in direct)
    assert not [name for name in imports(ROOT / "medr1" / "pipeline.py") if name.startswith("transformers.")]


@pytest.mark.parametrize(
    "name",
    [
        *("ask", "chat", "cli", "config", "config_checks", "config_compose", "errors", "messages", "model_choice"),
        *("multirun", "reasoning", "records", "run_directory", "sweep"),
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


def test_files_are_short_and_say_what_they_are() -> None:
    long = {ids(path): count for path in FILES if (count := len(path.read_text("utf-8").splitlines())) > 400}
    assert long == {}
    assert not {path.stem for path in FILES} & {"utils", "util", "helpers", "misc", "common"}


def test_a_file_that_uses_nobody_is_no_file() -> None:
    """Nothing stands about that no other file of the project imports."""
    used = {name for path in [*ENTRY, *FILES] for name in imports(path)} | {"medr1.ask"}  # python -m medr1.ask
    for path in FILES:
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.stem != "__init__":
            assert any(name == dotted or name.startswith(f"{dotted}.") for name in used), dotted
