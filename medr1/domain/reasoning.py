"""Reasoning modes: the prompt, the grammar of the completion and the parser.

Training, evaluation and all controls use this one definition of prompt and answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from medr1.domain.texts import one_line


class ReasoningMode(StrEnum):
    """Position of the reasoning relative to the answer (Med-R1: Think-Before, No-Think and Think-After)."""

    THINK_BEFORE = "think_before"
    NO_THINK = "no_think"
    THINK_AFTER = "think_after"


_INSTRUCTION = {
    ReasoningMode.THINK_BEFORE: "Reason in <think></think>, then put the letter of the answer in <answer></answer>.",
    ReasoningMode.NO_THINK: "Put the letter of the answer in <answer></answer>.",
    ReasoningMode.THINK_AFTER: "Put the letter of the answer in <answer></answer>, then explain it in <think></think>.",
}

# Text without any of the four tags. It rejects a second block and a block nested in another one.
_FREE = r"(?:(?!</?(?:think|answer)>).)*"
# A letter, alone or written as an option: "C", "(C)", "C)", "C." or "C) text".
_LETTER = rf"\(?(?P<letter>[A-J])(?:\s*|[).:]{_FREE})"
_THINK = rf"<think>(?P<rationale>{_FREE})</think>"
_ANSWER = rf"<answer>\s*{_LETTER}</answer>"

_GRAMMAR = {
    ReasoningMode.THINK_BEFORE: re.compile(rf"\s*{_THINK}\s*{_ANSWER}\s*", re.DOTALL),
    ReasoningMode.NO_THINK: re.compile(rf"\s*{_ANSWER}\s*", re.DOTALL),
    ReasoningMode.THINK_AFTER: re.compile(rf"\s*{_ANSWER}\s*{_THINK}\s*", re.DOTALL),
}
_ANSWER_BLOCK = re.compile(_ANSWER, re.DOTALL)
_THINK_BLOCK = re.compile(_THINK, re.DOTALL)
# A capital letter that stands alone. A letter before a lower-case word is skipped: it may be the article "A".
_LONE_LETTER = re.compile(r"(?<![A-Za-z])([A-J])(?![A-Za-z])(?!\s+[a-z])")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A parsed completion.

    ``format``: the whole completion matches the grammar of the mode.
    ``answer``: the letter in the answer block if there is exactly one block, else None. Rewards and accuracies use it.
    ``lenient``: ``answer`` or, without one, the last letter found anywhere. Reported, but never rewarded.
    """

    format: bool
    answer: str | None
    lenient: str | None
    rationale: str


def instruction(mode: ReasoningMode) -> str:
    """The last line of the prompt: which tags the completion must have."""
    return _INSTRUCTION[mode]


def question_text(question: str, options: Mapping[str, str], mode: ReasoningMode) -> str:
    """The user message: the question, one option per line, the instruction of the mode."""
    lines = [question.strip(), *(f"{letter}) {one_line(text)}" for letter, text in options.items()), instruction(mode)]
    return "\n".join(lines)


def target_text(mode: ReasoningMode, answer: str, rationale: str = "") -> str:
    """The target completion of supervised fine-tuning. Without a rationale the think block is empty."""
    answer_block, think_block = f"<answer>{answer}</answer>", f"<think>{rationale}</think>"
    return {
        ReasoningMode.THINK_BEFORE: think_block + answer_block,
        ReasoningMode.NO_THINK: answer_block,
        ReasoningMode.THINK_AFTER: answer_block + think_block,
    }[mode]


def answer_position(text: str) -> int | None:
    """Index of the answer letter in ``text``, or None if there is not exactly one answer block."""
    blocks = list(_ANSWER_BLOCK.finditer(text))
    return blocks[0].start("letter") if len(blocks) == 1 == text.count("<answer>") else None


def parse(text: str, mode: ReasoningMode, letters: Iterable[str]) -> Parsed:
    """Parses one completion, given without special tokens.

    Only the ``letters`` of the question's options count as answers. Several answer blocks are no answer, even if they
    agree: otherwise the policy could collect the reward by trying all letters.
    """
    allowed = set(letters)
    position = answer_position(text)
    answer = text[position] if position is not None and text[position] in allowed else None
    lenient = answer
    if lenient is None:
        blocks = [block["letter"] for block in _ANSWER_BLOCK.finditer(text)]
        found = [letter for letter in (blocks or _LONE_LETTER.findall(text)) if letter in allowed]
        lenient = found[-1] if found else None
    rationale = _THINK_BLOCK.search(text)
    return Parsed(
        format=answer is not None and _GRAMMAR[mode].fullmatch(text) is not None,
        answer=answer,
        lenient=lenient,
        rationale=rationale["rationale"].strip() if rationale else "",
    )
