"""A reasoning mode: what the model is told, how its completion must be built, and how it is read.

One place for prompt and parser, so that training, evaluation and both baselines cannot drift apart (in the released
Med-R1 code they use different prompts and three different readers).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class ReasoningMode(StrEnum):
    """Where the reasoning stands relative to the answer (Med-R1, section on Think / No-Think / Think-After)."""

    THINK_BEFORE = "think_before"
    NO_THINK = "no_think"
    THINK_AFTER = "think_after"


_INSTRUCTION = {
    ReasoningMode.THINK_BEFORE: "Reason in <think></think>, then put the letter of the answer in <answer></answer>.",
    ReasoningMode.NO_THINK: "Put the letter of the answer in <answer></answer>.",
    ReasoningMode.THINK_AFTER: "Put the letter of the answer in <answer></answer>, then explain it in <think></think>.",
}

# Text that opens no tag of ours: keeps a second block, or a block inside a block, from passing as the grammar.
_FREE = r"(?:(?!</?(?:think|answer)>).)*"
# A letter, alone or as options are written: "C", "(C)", "C)", "C." and "C) text".
_LETTER = r"\(?(?P<letter>[A-J])(?:\s*|[).:](?:(?!</?(?:think|answer)>).)*)"
_THINK = rf"<think>(?P<rationale>{_FREE})</think>"
_ANSWER = rf"<answer>\s*{_LETTER}</answer>"

_GRAMMAR = {
    ReasoningMode.THINK_BEFORE: re.compile(rf"\s*{_THINK}\s*{_ANSWER}\s*", re.DOTALL),
    ReasoningMode.NO_THINK: re.compile(rf"\s*{_ANSWER}\s*", re.DOTALL),
    ReasoningMode.THINK_AFTER: re.compile(rf"\s*{_ANSWER}\s*{_THINK}\s*", re.DOTALL),
}
_ANSWER_BLOCK = re.compile(_ANSWER, re.DOTALL)
_THINK_BLOCK = re.compile(_THINK, re.DOTALL)
# Last resort: a capital letter that stands alone. "A" as the English article is excluded by what follows it.
_LONE_LETTER = re.compile(r"(?<![A-Za-z])([A-J])(?![A-Za-z])(?!\s+[a-z])")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What was read from one completion.

    ``format``: the whole completion obeys the grammar of the mode.
    ``answer``: the letter of the one and only answer block, or None. This is what rewards and accuracies count.
    ``lenient``: a last-resort reading, counted in reports and never rewarded.
    """

    format: bool
    answer: str | None
    lenient: str | None
    rationale: str


def instruction(mode: ReasoningMode) -> str:
    return _INSTRUCTION[mode]


def question_text(question: str, options: Mapping[str, str], mode: ReasoningMode) -> str:
    """The user's turn: question, one option a line, the instruction of the mode."""
    lines = [question.strip(), *(f"{letter}) {text}" for letter, text in options.items()), instruction(mode)]
    return "\n".join(lines)


def target_text(mode: ReasoningMode, answer: str, rationale: str = "") -> str:
    """The completion that supervised fine-tuning imitates. Without a rationale the think block is empty."""
    answer_block, think_block = f"<answer>{answer}</answer>", f"<think>{rationale}</think>"
    match mode:
        case ReasoningMode.THINK_BEFORE:
            return think_block + answer_block
        case ReasoningMode.NO_THINK:
            return answer_block
        case ReasoningMode.THINK_AFTER:
            return answer_block + think_block


def answer_place(text: str) -> int | None:
    """Where the letter stands in ``text``: that of its one answer block, or None, as ``parse`` reads it."""
    blocks = list(_ANSWER_BLOCK.finditer(text))
    return blocks[0].start("letter") if len(blocks) == 1 == text.count("<answer>") else None


def parse(text: str, mode: ReasoningMode, letters: Iterable[str]) -> Parsed:
    """Reads one completion (without special tokens).

    A letter that is none of the question's options is no answer. Two answer blocks are no answer either, even when
    they agree: the released reward code accepts several, which invites the policy to try them all.
    """
    allowed = set(letters)
    blocks = [m["letter"] for m in _ANSWER_BLOCK.finditer(text)]
    opened = text.count("<answer>")
    answer = blocks[0] if len(blocks) == 1 == opened and blocks[0] in allowed else None
    thought = _THINK_BLOCK.search(text)
    lenient = answer
    if lenient is None:
        found = [letter for letter in (blocks or _LONE_LETTER.findall(text)) if letter in allowed]
        lenient = found[-1] if found else None
    return Parsed(
        format=answer is not None and _GRAMMAR[mode].fullmatch(text) is not None,
        answer=answer,
        lenient=lenient,
        rationale=thought["rationale"].strip() if thought else "",
    )
