"""The reward ``consistency``: whether the rationale concludes the option that the answer block names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from medr1.domain.reasoning import DENIED, LETTER, ReasoningMode, parse
from medr1.domain.records import Record
from medr1.domain.texts import plain_line
from medr1.rewards import reward_function

_MARKS = r"[\s(*\"'`]{0,4}"
# "the answer is (B)", "the correct choice: B", but neither "the answer is a nodule" nor "answer: A nodule". It is worth
# more than an option that is named besides, as in "the answer is B, because option C would show fluid".
_CONCLUSIONS = [
    re.compile(rf"\b(?i:{subject})(?: (?i:is|would be|must be))?:?{_MARKS}{LETTER}(?!\w|'\w)")
    for subject in ("answer", "option|choice")
]


@reward_function("consistency", maximum=1.0)
def consistency(completions: Sequence[str], records: Sequence[Record], *, reasoning: ReasoningMode) -> list[float]:
    """1 if the rationale concludes the option of the answer block, -1 if it concludes another one, else 0.

    The rationale concludes the option of its last phrase such as "the answer is B", without one that of its last phrase
    such as "option (B)". Options that it denies, as in "option C is unlikely", do not count. Without such a phrase it
    concludes the only option whose text it mentions, in any case and as whole words; a mention inside of a longer
    option's text does not count. 0: no answer by strict parsing, no rationale (always so in No-Think), no option or
    several mentioned.

    Only words are compared: "no cyst" mentions cyst, synonyms do not count, and an empty "the answer is B" earns 1. A
    consistent answer may be wrong, so weigh it below accuracy.

    Range: -1 to 1.
    """
    return [_agreement(text, record.options, reasoning) for text, record in zip(completions, records, strict=True)]


def _agreement(text: str, options: Mapping[str, str], reasoning: ReasoningMode) -> float:
    if reasoning == ReasoningMode.NO_THINK:
        return 0.0
    parsed = parse(text, reasoning, options)
    concluded = _concluded(plain_line(parsed.rationale), options)
    if parsed.answer is None or concluded is None:
        return 0.0
    return 1.0 if concluded == parsed.answer else -1.0


def _concluded(rationale: str, options: Mapping[str, str]) -> str | None:
    claimed = DENIED.sub(" ", rationale)
    for conclusion in _CONCLUSIONS:
        if letters := [letter for letter in conclusion.findall(claimed) if letter in options]:
            return str(letters[-1])
    rest, mentioned = rationale.casefold(), []
    texts = {letter: plain_line(option) for letter, option in options.items()}
    for letter, text in sorted(texts.items(), key=lambda item: -len(item[1])):
        whole_words = rf"(?<!\w){re.escape(text.casefold())}(?!\w)"
        rest, count = re.subn(whole_words, "\n", rest)
        mentioned += [letter] if count else []
    return mentioned[0] if len(mentioned) == 1 else None
