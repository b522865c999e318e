"""The axis that a split file does not give: each file names a modality or a question type, never both."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TypeVar

from medr1.data.sources.omnimedvqa.files import Question, SplitAxis, SplitFile
from medr1.domain.records import Modality, QuestionType

_Content = tuple[str, str, tuple[str, ...]]
AxisValue = TypeVar("AxisValue", bound=StrEnum)


class AxisFinder:
    """Completes questions of the split layout: from QA_information, from the other family, or by exclusion.

    Questions are joined by content (image, question, options). Exclusion: both families are cut from one set of
    records, so where exactly one value of an axis lacks a train or test file, a question found in no file of that
    family belongs to that value. It is how Med-R1's splits can be used without the train files of Disease Diagnosis
    and of MRI: 26,221 and 7,399 questions, whose wording (diseases) and data set (RadImageNet) agree. With two or more
    values missing, and for a question that stands in a file called unknown, the axis stays unknown.
    """

    def __init__(self, release: Iterable[Question], splits: Sequence[SplitFile]) -> None:
        self.by_exclusion = 0
        self._release = {question.content: question for question in release}
        self._families: dict[SplitAxis, dict[_Content, Question]] = {
            axis: {q.content: q for file in splits if file.axis is axis for q in file.reading.questions}
            for axis in SplitAxis
        }
        present: set[tuple[object, str]] = {(file.value, file.part) for file in splits}
        self._only_modality = _only_incomplete(Modality, present)
        self._only_question_type = _only_incomplete(QuestionType, present)

    def complete(self, question: Question) -> Question:
        """The question with both axes as far as they can be known, and with its id of QA_information if it has one."""
        released = self._release.get(question.content)
        modality, question_type = question.modality, question.question_type
        if modality is None:
            found = self._found(question, SplitAxis.MODALITY)
            modality = next((q.modality for q in found if q.modality), None)
            if not found and self._only_modality:
                modality = self._only_modality
                self.by_exclusion += 1
        if question_type is None:
            found = self._found(question, SplitAxis.QUESTION_TYPE)
            question_type = next((q.question_type for q in found if q.question_type), None)
            if not found and self._only_question_type:
                question_type = self._only_question_type
                self.by_exclusion += 1
        identity = released.id if released else question.id
        return dataclasses.replace(question, id=identity, modality=modality, question_type=question_type)

    def _found(self, question: Question, axis: SplitAxis) -> list[Question]:
        sources = (self._release, self._families[axis])
        return [source[question.content] for source in sources if question.content in source]


def _only_incomplete(axis: type[AxisValue], present: set[tuple[object, str]]) -> AxisValue | None:
    """The one value without a train or test file, if the family is there at all and exactly one lacks a file."""
    incomplete = [value for value in axis if not {(value, "train"), (value, "test")} <= present]
    return incomplete[0] if len(incomplete) == 1 else None
