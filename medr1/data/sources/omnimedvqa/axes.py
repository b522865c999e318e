"""Finds the axis that a split file does not give: its name has a modality or a question type, never both."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from enum import StrEnum

from medr1.data.sources.omnimedvqa.files import Question, SplitAxis, SplitFile
from medr1.domain.records import Modality, QuestionType


def complete_axes(
    questions: Iterable[Question], release: Sequence[Question], splits: Sequence[SplitFile]
) -> tuple[list[Question], int]:
    """Fills in modality, question type and the id of the release, and counts the values inferred by exclusion.

    A question is looked up by its content in the release and in the other family of splits. If exactly one value of
    the other axis lacks its train or test file, a question found in neither place must have that value, because both
    families divide the same records. Med-R1's splits lack the train files of Disease Diagnosis and MRI. Exclusion
    assigns these 26,221 and 7,399 questions, and their wording (diseases) and data set (RadImageNet) agree. If several
    values lack files, or the question is in a file named unknown, the axis stays None.
    """
    released = {question.content: question for question in release}
    families = {
        axis: {q.content: q for file in splits if file.axis is axis for q in file.reading.questions}
        for axis in SplitAxis
    }
    files: set[tuple[StrEnum | None, str]] = {(file.value, file.part) for file in splits}
    excluded = {
        SplitAxis.MODALITY: _only_incomplete(Modality, files),
        SplitAxis.QUESTION_TYPE: _only_incomplete(QuestionType, files),
    }
    completed, inferred = [], 0
    for question in questions:
        content = question.content
        changes: dict[str, object] = {"id": released[content].id} if content in released else {}
        for axis in SplitAxis:
            if getattr(question, axis) is None:
                found = [lookup[content] for lookup in (released, families[axis]) if content in lookup]
                changes[axis] = next((value for q in found if (value := getattr(q, axis))), None)
                if not found and excluded[axis]:
                    changes[axis] = excluded[axis]
                    inferred += 1
        completed.append(dataclasses.replace(question, **changes))  # type: ignore[arg-type]
    return completed, inferred


def _only_incomplete(axis: Iterable[StrEnum], files: set[tuple[StrEnum | None, str]]) -> StrEnum | None:
    """The only value of the axis that lacks its train or test file, or None if several or none do."""
    incomplete = [value for value in axis if not {(value, "train"), (value, "test")} <= files]
    return incomplete[0] if len(incomplete) == 1 else None
