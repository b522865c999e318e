"""One word for one thing: names of version 0.1 that the field calls otherwise are not defined anywhere any more."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from medr1.config.renamed import RENAMED

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("medr1", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py"))
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("conf/**/*.yaml"), *ROOT.glob("sweeps/*.yaml")]
)
# The changelog and the messages about old keys are the places where the old words stand.
EXEMPT = {ROOT / "CHANGELOG.md", ROOT / "medr1" / "config" / "renamed.py", Path(__file__).resolve()}

# Only names that cannot stand for anything else: "gain" or "right" are also ordinary words.
NAMES = {
    *("group_size", "updates_per_rollout", "ratio_level", "reward_scaling", "mask_truncated", "clip_low", "clip_high"),
    *("dual_clip", "ratio_cap", "token_budget", "dynamic_sampling", "banned", "zero_variance", "Part", "Sampled"),
    *("spare", "Total", "acts", "look", "recomputes", "most", "summed", "Encoder", "grids", "ask_once", "ask_blind"),
    *("Answers", "held", "busy", "lose", "foresee", "Stage", "quieten", "outline", "RoomyLayer", "room"),
    *("truncated_log_probs", "kept", "asked", "told"),
}
# The prompts of the phantoms: another wording would be other data.
PROMPTS = {
    "What part of the body does this picture show?",
    "What abnormality can be seen in this picture?",
    "How was this picture acquired?",
    "On which side of the picture does the abnormality lie?",
    "Describe the picture.",
    "Which organ does the picture show?",
}


def defined(tree: ast.AST) -> Iterator[str]:
    """Names of functions, classes, parameters and variables that a file defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parts[len(ROOT.parts)] == "medr1"], ids=str)
def test_no_old_name_is_defined(path: Path) -> None:
    if path not in EXEMPT:
        assert NAMES & set(defined(ast.parse(path.read_text(encoding="utf-8")))) == set()


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=str)
def test_an_image_is_called_image(path: Path) -> None:
    if path not in EXEMPT:
        text = path.read_text(encoding="utf-8")
        for prompt in PROMPTS:
            text = text.replace(prompt, "")
        assert [line for line in text.splitlines() if re.search("picture", line, re.IGNORECASE)] == []


@pytest.mark.parametrize("path", PAGES, ids=str)
def test_pages_use_no_old_key(path: Path) -> None:
    if path not in EXEMPT:
        text = path.read_text(encoding="utf-8")
        assert [old for old in RENAMED if re.search(rf"(?<![\w.]){re.escape(old)}(?![\w.])", text)] == []
