"""Training examples of the tiny base model, made from a seed and a step number.

A small model trained from scratch on images does not learn to answer with the letter of the correct option (here:
binding). Training therefore starts with texts in place of images and with image descriptions, and adds questions about
images once the binding is learned.
Some targets may violate the format, as completions of a general model do.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from medr1.data.sources.phantoms.records import NAMES, World, choices, make_phantom, make_record, make_records
from medr1.domain.reasoning import ReasoningMode, question_text, target_text
from medr1.domain.records import LETTERS, Modality, QuestionType, Record
from medr1.training.algorithms.pretrain import PretrainConfig

# The wordings of ``PretrainConfig.careless_wordings``.
CARELESS_WORDINGS = ("Where is the finding?", "What is the grade of the abnormality?")
_WORDS = sorted({value for modality in Modality for kind in QuestionType for value in choices(kind, modality)})


@dataclass(frozen=True, slots=True)
class BaseExample:
    """One example. ``content`` is the user message. ``words``, if not None, replaces the image in the prompt."""

    record: Record
    content: str
    words: str | None
    target: str


@dataclass(frozen=True, slots=True)
class BaseMixture:
    """The batches of pretraining, in three stages.

    1. Up to ``binding_steps``: ``text_batch`` word-matching examples, see ``_matching_example``.
    2. Up to ``text_steps``: ``text_batch`` questions with the phantom's rationale in place of the image.
    3. Over the next ``ramp`` steps: a transition to ``images`` questions about images and ``words`` questions about
       rationales, in all reasoning modes. An abrupt change would make the model forget which option has which letter.

    In stages 1 and 2, ``described`` images with their description as the target are added to each batch: a model that
    learns language first needs several times longer to use images.

    The phantoms, ``images_per_modality`` of each modality, are used in no experiment. ``careless`` is the fraction of
    targets that violate the format; ``careless_wordings``, if larger, is that of two question wordings in No-Think and
    Think-After.
    """

    seed: int
    settings: PretrainConfig

    def batch(self, step: int) -> list[BaseExample]:
        """The examples of one step."""
        s, rng = self.settings, np.random.default_rng((self.seed, step))
        progress = min(1.0, max(0, step - s.text_steps) / s.ramp)
        examples = [self._description(rng) for _ in range(round((1 - progress) * s.described))]
        if step < s.binding_steps:
            return examples + [_matching_example(rng) for _ in range(s.text_batch)]
        images = round(progress * s.images)
        size = images + round(s.text_batch + progress * (s.words - s.text_batch))
        return examples + [self._question(rng, with_image=i < images, progress=progress) for i in range(size)]

    def _description(self, rng: np.random.Generator) -> BaseExample:
        record = self._record(rng)
        return BaseExample(record, "Describe the picture.", None, f"<think>{record.rationale}</think>")

    def _question(self, rng: np.random.Generator, *, with_image: bool, progress: float) -> BaseExample:
        record = self._record(rng)
        if rng.random() < progress:
            mode = list(ReasoningMode)[int(rng.integers(len(ReasoningMode)))]
            target = self._target(rng, record, mode)
        else:
            mode = ReasoningMode.THINK_BEFORE if rng.random() < 1 / 3 else ReasoningMode.NO_THINK
            target = target_text(mode, record.answer, record.rationale)
        content = question_text(record.question, record.options, mode)
        return BaseExample(record, content, None if with_image else record.rationale, target)

    def _record(self, rng: np.random.Generator) -> Record:
        modality = list(Modality)[int(rng.integers(len(Modality)))]
        phantom = make_phantom(World.BASE, self.seed, modality, int(rng.integers(self.settings.images_per_modality)))
        return make_record(phantom, list(QuestionType)[int(rng.integers(len(QuestionType)))], rng)

    def _target(self, rng: np.random.Generator, record: Record, mode: ReasoningMode) -> str:
        """The target completion, or one that violates the format and still has the correct letter."""
        correct = target_text(mode, record.answer, record.rationale)
        careless = self.settings.careless
        if record.question in CARELESS_WORDINGS and mode is not ReasoningMode.THINK_BEFORE:
            careless = max(careless, self.settings.careless_wordings)
        if rng.random() >= careless:
            return correct
        answer, rationale = record.answer, record.rationale
        violations = {
            ReasoningMode.THINK_BEFORE: (
                correct.replace("</think>", ""),
                f"<think>{rationale}</think>{answer}",
                f"<answer>{answer}</answer>",
            ),
            ReasoningMode.NO_THINK: (answer, f"<answer>{answer}", f"{answer}) {record.answer_text}"),
            ReasoningMode.THINK_AFTER: (
                f"<answer>{answer}</answer>{rationale}",
                f"<answer>{answer}</answer>",
                f"{answer}<think>{rationale}</think>",
            ),
        }[mode]
        return violations[int(rng.integers(len(violations)))]


def _matching_example(rng: np.random.Generator) -> BaseExample:
    """Five words in place of the image, exactly one of which is among the four options.

    Options and words are drawn from all attribute values. Only matching solves it: knowledge about single words, which
    a small model would learn first, does not help.
    """
    drawn = [_WORDS[int(i)] for i in rng.choice(len(_WORDS), 8, replace=False)]
    options = dict(zip(LETTERS, drawn[:4], strict=False))
    answer = LETTERS[int(rng.integers(4))]
    words = [drawn[4:][int(i)] for i in rng.permutation(4)]
    words.insert(int(rng.integers(5)), options[answer])
    record = make_record(make_phantom(World.BASE, 0, Modality.CT, 0), QuestionType.DISEASE, rng)
    record = dataclasses.replace(record, options=options, answer=answer)
    content = "\n".join(f"{letter}) {word}" for letter, word in options.items())
    target = target_text(ReasoningMode.NO_THINK, answer)
    return BaseExample(record, content, f"{NAMES[record.modality]} {' '.join(words)}", target)


def corpus(seed: int) -> list[str]:
    """Texts from which the vocabulary of the tiny model's tokenizer is built, in the version of the shipped one."""
    return [
        f"user\nassistant\n{question_text(r.question, r.options, mode)}\n{target_text(mode, r.answer, r.rationale)}"
        for r in make_records(World.BASE, seed, images_per_modality=40, version=1)
        for mode in ReasoningMode
    ]
