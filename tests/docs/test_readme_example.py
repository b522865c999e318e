"""The README's question: the prompts and completions are those of the shipped model, and the Python code runs."""

from __future__ import annotations

import re

import pytest

from medr1.ask import ask, load
from medr1.cli.main import CONF
from medr1.domain.reasoning import ReasoningMode, instruction, question_text

ROOT = CONF.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUESTION, OPTIONS = "Which finding is present?", ["nodule", "calcification", "cyst", "fissure"]
NAMES = {"Think-Before": "think_before", "No-Think": "no_think", "Think-After": "think_after"}


def test_the_prompt_is_that_of_the_mode() -> None:
    prompt = question_text(QUESTION, dict(zip("ABCD", OPTIONS, strict=True)), ReasoningMode.THINK_AFTER)
    assert f"```text\n{prompt}\n```" in README


@pytest.mark.parametrize("name", NAMES)
def test_the_completions_are_those_of_the_shipped_model(name: str) -> None:
    answer = ask(load("tiny", reasoning=NAMES[name]), ROOT / "docs" / "images" / "question.png", QUESTION, OPTIONS)
    last_line = instruction(ReasoningMode(NAMES[name]))
    assert f"| {name} | `{last_line}` | `{answer.completion}` |" in README


@pytest.mark.parametrize("page", ["README.md", "docs/guides/trained-models.md"])
def test_the_python_code_runs(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for code in blocks:
        exec(compile(code, page, "exec"), {})
