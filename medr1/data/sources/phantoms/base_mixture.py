"""What the tiny base model learns from: a stream of examples made from a seed and a step number alone.

A narrow model from nothing does not learn to bind options to letters from pictures (see the two stages below), so the
stream begins with the words of a picture in the picture's place, and with pictures that are only described, and asks
about pictures once binding works. A part of the targets is careless about the format, as the outputs of a general
model are, so that there is a format to learn.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from medr1.data.sources.phantoms.records import NAMES, World, ask, choices, make_phantom, make_records
from medr1.domain.reasoning import ReasoningMode, question_text, target_text
from medr1.domain.records import LETTERS, Modality, QuestionType, Record

_WORDS = sorted({value for modality in Modality for kind in QuestionType for value in choices(kind, modality)})


@dataclass(frozen=True, slots=True)
class BaseExample:
    """One example: the user's text, the words that stand in the picture's place (None: the picture), and a target."""

    record: Record
    content: str
    words: str | None
    target: str


@dataclass(frozen=True, slots=True)
class BaseMixture:
    """Three stages. Up to ``binding_steps``, ``text_batch`` riddles at a step: which of four words was said? Up to
    ``text_steps``, questions with the words of a picture in its place. Beside both, ``described`` pictures to be put
    into words: a language model that has learned its words first is several times slower to see. Then, over ``ramp``
    steps, questions on ``pictures`` pictures and ``words`` questions in words, in all modes, take their place; at once
    they would undo the binding.

    ``images_per_modality`` pictures stand behind it, of a world that no experiment trains or tests on. ``careless``
    is the share of targets that break the format of their mode; one wording of two question types is careless four
    times out of five, which is a habit that even greedy decoding shows.
    """

    seed: int
    images_per_modality: int
    binding_steps: int
    text_steps: int
    ramp: int
    text_batch: int
    described: int
    pictures: int
    words: int
    careless: float

    def batch(self, step: int) -> list[BaseExample]:
        rng = np.random.default_rng((self.seed, step))
        far = min(1.0, max(0, step - self.text_steps) / self.ramp)
        examples = [self._description(rng) for _ in range(round((1 - far) * self.described))]
        if step < self.binding_steps:
            return examples + [_riddle(rng) for _ in range(self.text_batch)]
        pictures = round(far * self.pictures)
        size = pictures + round(self.text_batch + far * (self.words - self.text_batch))
        return examples + [self._example(rng, picture=i < pictures, far=far) for i in range(size)]

    def _description(self, rng: np.random.Generator) -> BaseExample:
        record = self._record(rng)
        return BaseExample(record, "Describe the picture.", None, f"<think>{record.rationale}</think>")

    def _example(self, rng: np.random.Generator, *, picture: bool, far: float) -> BaseExample:
        record = self._record(rng)
        if rng.random() < far:
            mode = list(ReasoningMode)[int(rng.integers(len(ReasoningMode)))]
            target = self._target(rng, record, mode)
        else:
            mode = ReasoningMode.THINK_BEFORE if rng.random() < 1 / 3 else ReasoningMode.NO_THINK
            target = target_text(mode, record.answer, record.rationale)
        content = question_text(record.question, record.options, mode)
        return BaseExample(record, content, None if picture else record.rationale, target)

    def _record(self, rng: np.random.Generator) -> Record:
        modality = list(Modality)[int(rng.integers(len(Modality)))]
        phantom = make_phantom(World.BASE, self.seed, modality, int(rng.integers(self.images_per_modality)))
        return ask(phantom, list(QuestionType)[int(rng.integers(len(QuestionType)))], rng)

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


def _riddle(rng: np.random.Generator) -> BaseExample:
    """Options drawn from all words of the world, and five words with exactly one of them. Only matching answers it,
    and no knowledge of single words, which a narrow model would otherwise learn first, word by word."""
    drawn = [_WORDS[int(i)] for i in rng.choice(len(_WORDS), 8, replace=False)]
    options = dict(zip(LETTERS, drawn[:4], strict=False))
    answer = LETTERS[int(rng.integers(4))]
    said = [drawn[4:][int(i)] for i in rng.permutation(4)]
    said.insert(int(rng.integers(5)), options[answer])
    record = ask(make_phantom(World.BASE, 0, Modality.CT, 0), QuestionType.DISEASE, rng)
    record = dataclasses.replace(record, options=options, answer=answer)
    content = "\n".join(f"{letter}) {word}" for letter, word in options.items())
    target = target_text(ReasoningMode.NO_THINK, answer)
    return BaseExample(record, content, f"{NAMES[record.modality]} {' '.join(said)}", target)


def corpus(seed: int) -> list[str]:
    """Text from which the tiny model's tokenizer takes its words."""
    return [
        f"user\nassistant\n{question_text(r.question, r.options, mode)}\n{target_text(mode, r.answer, r.rationale)}"
        for r in make_records(World.BASE, seed, images_per_modality=40)
        for mode in ReasoningMode
    ]
