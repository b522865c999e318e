"""Closed questions without a list of options: yes or no, or the choices that the question names."""

from __future__ import annotations

from typing import Any

from medr1.data.sources.mcqa.choices import YES_NO, named_choices, parse_answer, yes_or_no
from medr1.data.sources.mcqa.layout import Cells, LeftOut, LeftOutReason, RawQuestion
from medr1.domain.records import LETTERS


def closed_question(cells: Cells, *, is_closed: bool = True, **fields: Any) -> RawQuestion:
    """The question in the columns ``question`` and ``answer``, with the options Yes and No or the choices it names.

    ``fields`` are further fields of ``RawQuestion``.

    Raises:
        LeftOut: an open question, or a closed one that does not name its choices.
        BadRecord: no question or no answer.
    """
    if not is_closed:
        raise LeftOut(LeftOutReason.OPEN_QUESTION)
    question, answer = cells.text("question"), cells.text("answer")
    if yes_no := yes_or_no(answer):
        choices, answer = list(YES_NO), yes_no
    elif named := named_choices(question, answer):
        choices = named
    else:
        raise LeftOut(LeftOutReason.CHOICES_NOT_NAMED)
    options = dict(zip(LETTERS, choices, strict=False))
    return RawQuestion(question=question, options=options, answer=parse_answer(answer, options), **fields)
