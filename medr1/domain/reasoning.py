"""Reasoning modes: the prompt, the format of the completion and the parser.

Training, evaluation and all controls use this one definition of prompt and answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from medr1.domain.texts import one_line, option_meaning, plain_line


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

TAGS = ("<think>", "</think>", "<answer>", "</answer>")

# Text without any of the four tags. It rejects a second block and a block nested in another one.
_FREE = r"(?:(?!</?(?:think|answer)>).)*"
_THINK = rf"<think>(?P<rationale>{_FREE})</think>"
_ANSWER = rf"<answer>(?P<answer>{_FREE})</answer>"

_GRAMMAR = {
    ReasoningMode.THINK_BEFORE: re.compile(rf"\s*{_THINK}\s*{_ANSWER}\s*", re.DOTALL),
    ReasoningMode.NO_THINK: re.compile(rf"\s*{_ANSWER}\s*", re.DOTALL),
    ReasoningMode.THINK_AFTER: re.compile(rf"\s*{_ANSWER}\s*{_THINK}\s*", re.DOTALL),
}
_ANSWER_BLOCK = re.compile(_ANSWER, re.DOTALL)
_THINK_BLOCK = re.compile(_THINK, re.DOTALL)
# A block up to the next tag or the end of the text, for the lenient reading.
_OPEN_BLOCK = re.compile(rf"<answer>({_FREE})", re.DOTALL)
_ANY_TAG = re.compile("|".join(TAGS))

# The patterns from here on are for blocks after NFKC and with single blanks.
# A letter, alone or written as an option: "C", "(C)", "C)", "C." or "C) text".
_CHOICE = re.compile(r"\(?(?P<letter>[A-Ja-j])(?: ?|[).:](?P<rest>.*))", re.DOTALL)
# Capital letters on their own, but neither the article in "A nodule" nor the letter in "C-spine".
_CAPITAL = re.compile(
    r"(?<!\w)(?<!\w\w-)([A-J])(?!\w|-\w\w)"
    r"(?<!A(?= (?!(?:and|but|is|nor|or|to)\b)[a-z])(?!(?: [a-z]+\.?){1,3} \(?[A-J](?!\w|-\w\w)))"
)
# A small "a" only where no word can stand: marked as in "a)", or as an item of a list as in "or a".
_SMALL_A = re.compile(
    r"(?<!\w)(a)\)|(?:^|[(,;/&|+]|\b(?:and|but|nor|not|or|to|option|answer|choice)\b) ?"
    r"(a)(?= ?(?:$|[,;/&|+):]|\.(?!\w)|(?:and|but|nor|or|to)\b))"
)
# Other small letters are no words, but "5 g" is a unit, and "c-spine" and "d'emblee" are words.
_SMALL = re.compile(r"(?<![\w'])(?<!\w\w-)(?<!\d )([b-j])(?![\w']|-\w\w)")
_ABBREVIATION = re.compile(r"\b(?:e\. ?g|i\. ?e|c\. ?f)\b")
# A longer block is not the text of an option.
_MAX_OPTION_LENGTH = 2000
_NEAR = 24  # how many marks may stand around a letter; without a bound, a long row of them would take minutes

# A capital letter that stands alone, but neither the article "A" nor the pronoun "I" before a lower-case word.
LETTER = (
    r"(?<![A-Za-z])(?!A\s+(?!(?:and|as|because|but|due|for|is|nor|or|since|to|was|which|with)\b)[a-z])"
    r"(?!I\s+(?!(?:because|is|nor|or|since)\b)[a-z])([A-J])(?![A-Za-z])"
)
_LONE_LETTER = re.compile(LETTER)
# Outside blocks a letter before a lower-case word may be part of a name, as in "B cells". It counts if "option" or the
# like stands before it, or one of some verbs and conjunctions behind it.
_LONE_IN_TEXT = re.compile(
    r"(?:(?i:(?<=answer )|(?<=choice )|(?<=option ))([A-J])(?![A-Za-z])|"
    rf"{LETTER}(?!\s+(?!(?:appears|as|because|fits|is|looks|must|rather|seems|shows|since|was|would)\b)[a-z]))"
)
# What may stand between "the answer is" and the letter: marks, \boxed{ of LaTeX, and "option".
_MARKS = r"[\s:*(<\[\"'`$\u201c\u2018]"
_OPENING = rf"(?:{_MARKS}|\\(?:boxed|text|textbf|mathrm|mathbf)\s*\{{|(?i:(?:option|choice|letter)\b)){{0,{_NEAR}}}"
# What a text says of its answer is worth more than letters that it mentions besides: "the answer for this image is
# (B)", "answer: B", "my answer B.", "I choose B", "B is correct".
_SUBJECT = r"(?:answer|(?:correct|right|best) (?:option|choice))"
_VERB = r"(?:is|would be|must be|should be)"
_STATED = re.compile(
    rf"(?i:\b{_SUBJECT}(?:(?:\s+[\w']+){{0,6}}?\s+{_VERB}\b|[\s*]*[:(])){_OPENING}{LETTER}|"
    r"(?i:\b(?:answer|option|choice)[\s:*(]+)([A-J])(?=[\s)*]*(?:$|[.,;\n]))|"
    rf"(?i:\bI(?: will| would|'ll|'d)? (?:choose|pick|select)(?: (?:option|choice|answer))?[\s:*(]+){LETTER}|"
    rf"(?:^|[.!?\n]|\b(?i:so|hence|thus|therefore)\b,?){_OPENING}(?i:answer )?{LETTER}[\s*)\"'`]{{0,{_NEAR}}}"
    rf"\s{_VERB} (?:the )?(?:most likely )?(?:correct|right|best)"
    r"(?=\W*$|[.,;:\n]|\s+(?:one|because|since|as|answer|option|choice)\b)"
)
# A second letter of the same statement, in front of the matched one or behind it: "B or C", "A, B", "A and B".
_BEFORE = re.compile(r"(?<![A-Za-z])([A-J])[\s*)\"'`}$]{1,9}\b(?:and|or)\b[\s*(\"'`$]{1,9}(?i:(?:option|choice) )?$")
_BEHIND = re.compile(
    r"[\s*)\"'`}$]{0,9}(?:\b(?:and|or)\b|[,/&])[\s*(\"'`$]{0,9}(?i:(?:and|or|option|choice) ){0,2}([A-J])(?![A-Za-z])"
    r"(?=[\s)*\"'`}$]{0,9}(?:$|[.,;\n]|\b(?:and|or|because|since|as)\b))"
)
# Letters that a text denies or compares with, with "option" before them: "not A", "unlike option (A)", "A is wrong".
DENIED = re.compile(
    r"(?i:\b(?:not|cannot be|nor|neither|unlike|than|instead of|exclud\w+|rul\w+ out)|n['\u2019]t)\s[\s*(\"'`]{0,9}"
    r"(?i:(?:option|choice|answer|letter)\s)?[\s*(\"'`]{0,9}[A-J](?![A-Za-z])[)\"'`*]{0,9}|"
    r"(?<![A-Za-z])[A-J](?![A-Za-z])[)\"'`*]{0,9}\s(?i:is|are|was|would be|seems)\s"
    r"(?i:not|wrong|incorrect|false|unlikely|less likely|excluded|ruled out)\b"
)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A parsed completion.

    ``format``: the whole completion matches the grammar of the mode.
    ``answer``: the letter in the answer block if there is exactly one block and it names no second option, else None.
    Rewards and accuracies use it.
    ``lenient``: ``answer`` or, without one, the option whose text is the whole answer, else the letter that a block or,
    without one, the text says to be the answer, else its last letter. None if the last block with letters names
    several. Reported, but never rewarded.
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


_PLACEHOLDER = re.compile(r"<image (\d+)>")


def content_parts(text: str, images: int) -> list[str | int]:
    """The parts of a user message in order: texts, and the indices of ``images`` images.

    An image stands where the text first has its placeholder, ``<image 1>`` for the first image. The images without one
    stand before the text.
    """
    placed: list[int] = []
    parts: list[str | int] = []
    end = 0
    for place in _PLACEHOLDER.finditer(text):
        index = int(place[1]) - 1
        if index in range(images) and index not in placed:
            placed.append(index)
            parts += [text[end : place.start()], index]
            end = place.end()
    parts.append(text[end:])
    return [*(index for index in range(images) if index not in placed), *(part for part in parts if part != "")]


def missing_placeholder(texts: Iterable[str], images: int) -> str | None:
    """The first placeholder of the texts that stands for none of ``images`` images."""
    found = (place for text in texts for place in _PLACEHOLDER.finditer(text))
    return next((place[0] for place in found if int(place[1]) not in range(1, images + 1)), None)


def target_text(mode: ReasoningMode, answer: str, rationale: str = "") -> str:
    """The target completion of supervised fine-tuning. Without a rationale the think block is empty."""
    answer_block, think_block = f"<answer>{answer}</answer>", f"<think>{rationale}</think>"
    return {
        ReasoningMode.THINK_BEFORE: think_block + answer_block,
        ReasoningMode.NO_THINK: answer_block,
        ReasoningMode.THINK_AFTER: answer_block + think_block,
    }[mode]


def answer_position(text: str) -> int | None:
    """Index of the answer letter in ``text``, or None if there is not exactly one answer block or it has no letter.

    The letter is as the model wrote it: it may be lower-case or full-width.
    """
    block = _only_block(text)
    if block is None or _CHOICE.fullmatch(plain_line(block["answer"])) is None:
        return None
    start, end = block.span("answer")
    return next(i for i in range(start, end) if any(map(str.isalnum, unicodedata.normalize("NFKC", text[i]))))


def parse(text: str, mode: ReasoningMode, options: Mapping[str, str] | Iterable[str]) -> Parsed:
    """Parses one completion, given without control tokens.

    Only the letters of ``options`` count as answers. Letters alone are enough; with the texts of the options the
    lenient reading accepts these, too. Several answer blocks are no answer, even if they agree, nor is a block that
    names several options: otherwise the policy could collect the reward by trying all letters.
    """
    texts = dict(options) if isinstance(options, Mapping) else dict.fromkeys(options, "")
    block = _only_block(text)
    answer = None if block is None else _choice(plain_line(block["answer"]), texts)
    rationale = _THINK_BLOCK.search(text)
    return Parsed(
        format=answer is not None and _GRAMMAR[mode].fullmatch(text) is not None,
        answer=answer,
        lenient=answer or _lenient(text, texts),
        rationale=rationale["rationale"].strip() if rationale else "",
    )


def _only_block(text: str) -> re.Match[str] | None:
    blocks = list(_ANSWER_BLOCK.finditer(text))
    return blocks[0] if len(blocks) == 1 == text.count("<answer>") else None


def _named(block: str) -> set[str]:
    """The letters that a block names, wherever they stand in it."""
    block = _ABBREVIATION.sub(" ", block.replace("_", " "))
    small = ["a" for _ in _SMALL_A.findall(block)] + _SMALL.findall(block)
    return {*_CAPITAL.findall(block), *(letter.upper() for letter in small)}


def _choice(block: str, texts: Mapping[str, str]) -> str | None:
    """The option that a block chooses by its letter, or None without one or if it names another option, too.

    Letters that belong to the option's own text, as in "B) Hepatitis A", name no option.
    """
    match = _CHOICE.fullmatch(block)
    if match is None:
        return None
    letter, rest = str(match["letter"]).upper(), str(match["rest"] or "")
    if letter not in texts:
        return None
    others = (_named(rest) & texts.keys()) - {letter}
    # In capitals, so that the A of "vitamin A deficiency" is not taken for an article.
    return None if others - _named(plain_line(texts[letter]).upper()) else letter


def _lenient(text: str, texts: Mapping[str, str]) -> str | None:
    for block in filter(None, map(plain_line, reversed(_OPEN_BLOCK.findall(text)))):
        if letter := _choice(block, texts) or _option_with_text(block, texts):
            return letter
        if _CHOICE.fullmatch(block) or len(_named(block) & texts.keys()) > 1:
            return None  # of no option, or of several
        if letter := _last_letter(block, texts, _LONE_LETTER):
            return letter
    answer = _ANY_TAG.sub("", _THINK_BLOCK.sub("", text))
    if letter := _option_with_text(answer, texts) or _choice(plain_line(answer), texts):
        return letter
    return _last_letter(text, texts, _LONE_IN_TEXT)


def _last_letter(text: str, texts: Mapping[str, str], lone: re.Pattern[str]) -> str | None:
    """The last letter that the text says to be the answer, else the last one that matches ``lone``.

    None if another letter is named beside it. Letters that are denied do not count.
    """
    text = DENIED.sub(" ", text)
    for pattern in (_STATED, lone):
        for match in reversed([*pattern.finditer(text)]):
            group = match.lastindex or 0
            letter, (start, end) = str(match[group]), match.span(group)
            if letter not in texts:
                continue
            others = _BEFORE.search(text[max(0, start - _NEAR) : start]), _BEHIND.match(text, end)
            names_two = any(other and other[1] in texts and other[1] != letter for other in others)
            return None if names_two else letter
    return None


def _option_with_text(text: str, texts: Mapping[str, str]) -> str | None:
    """The option whose text is all of ``text``."""
    if not text.strip() or len(text) > _MAX_OPTION_LENGTH:
        return None
    meaning = option_meaning(text)
    return next((letter for letter, option in texts.items() if option and option_meaning(option) == meaning), None)
