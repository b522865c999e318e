"""What the tiny base model learns from: a stream of examples made from a seed and a step number alone.

A narrow model from nothing does not learn to bind options to letters from pictures (see the two stages below), so the
stream begins with the words of a picture in the picture's place and adds pictures once binding works. A part of the
targets is careless about the format, as the outputs of a general model are, so that there is a format to learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medr1.data.phantoms import World, ask, make_phantom, make_records
from medr1.reasoning import ReasoningMode, question_text, target_text
from medr1.records import Modality, QuestionType, Record


@dataclass(frozen=True, slots=True)
class BaseExample:
    """One example: a question, whether its picture is given in words, the mode and the target completion."""

    record: Record
    in_words: bool
    mode: ReasoningMode
    target: str


@dataclass(frozen=True, slots=True)
class BaseMixture:
    """Two stages: ``text_steps`` batches of examples in words only, then pictures and words together.

    ``images_per_modality`` pictures stand behind it, of a world that no experiment trains or tests on. ``careless``
    is the share of targets that break the format of their mode; one wording of two question types is careless four
    times out of five, which is a habit that even greedy decoding shows.
    """

    seed: int
    images_per_modality: int
    text_steps: int
    text_batch: int
    pictures: int
    words: int
    careless: float

    def batch(self, step: int) -> list[BaseExample]:
        rng = np.random.default_rng((self.seed, step))
        if step < self.text_steps:
            return [self._example(rng, in_words=True, binding=True) for _ in range(self.text_batch)]
        return [self._example(rng, in_words=i >= self.pictures) for i in range(self.pictures + self.words)]

    def _example(self, rng: np.random.Generator, *, in_words: bool, binding: bool = False) -> BaseExample:
        modality = list(Modality)[int(rng.integers(len(Modality)))]
        phantom = make_phantom(World.BASE, self.seed, modality, int(rng.integers(self.images_per_modality)))
        kind = list(QuestionType)[int(rng.integers(len(QuestionType)))]
        mode = ReasoningMode.NO_THINK if binding else list(ReasoningMode)[int(rng.integers(len(ReasoningMode)))]
        record = ask(phantom, kind, rng)
        target = target_text(mode, record.answer) if binding else self._target(rng, record, mode)
        return BaseExample(record, in_words, mode, target)

    def _target(self, rng: np.random.Generator, record: Record, mode: ReasoningMode) -> str:
        right = target_text(mode, record.answer, record.rationale)
        habit = record.question in ("Where is the finding?", "What is the grade of the abnormality?")
        if rng.random() >= (0.8 if habit and mode is not ReasoningMode.THINK_BEFORE else self.careless):
            return right
        answer = record.answer
        slips = {
            ReasoningMode.THINK_BEFORE: (
                right.replace("</think>", ""),
                f"<think>{record.rationale}</think>{answer}",
                f"<answer>{answer}</answer>",
            ),
            ReasoningMode.NO_THINK: (answer, f"<answer>{answer}", f"{answer}) {record.answer_text}"),
            ReasoningMode.THINK_AFTER: (
                f"<answer>{answer}</answer>{record.rationale}",
                f"<answer>{answer}</answer>",
                f"{answer}<think>{record.rationale}</think>",
            ),
        }[mode]
        return slips[int(rng.integers(len(slips)))]


def corpus(seed: int) -> list[str]:
    """Text from which the tiny model's tokenizer takes its words."""
    return [
        f"user\nassistant\n{question_text(r.question, r.options, mode)}\n{target_text(mode, r.answer, r.rationale)}"
        for r in make_records(World.BASE, seed, images_per_modality=40)
        for mode in ReasoningMode
    ]
