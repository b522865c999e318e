"""Controls: what can be scored without looking at the image. A score means little before it beats these."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from medr1.domain.reasoning import ReasoningMode, target_text
from medr1.domain.records import Record, option_meaning
from medr1.errors import DataError
from medr1.evaluation.predictions import Condition, Prediction, prediction


@dataclass(frozen=True, slots=True)
class OptionPrior:
    """The blind control: for each question the option whose text was most often right in training.

    "Most often" means right / (offered + 1), not the bare number of times right: a frequent distractor must not win
    over a rarer text that is right whenever it is offered, nor a text seen once over one right in 90 of 91 questions.
    A text that training never offered counts as never right. Texts are compared by
    ``medr1.domain.records.option_meaning``, without case and closing full stops, so that the control reads what an option
    says and not how the annotator happened to type the right one: with typography it scores higher still on OmniMedVQA
    (ultrasound 1.000 instead of .834), because the right option is often the only one in lower case or with a full
    stop. Neither question nor image is looked at.
    """

    correct: Mapping[str, int]
    offered: Mapping[str, int]

    @classmethod
    def fit(cls, train_records: Iterable[Record]) -> OptionPrior:
        """Counts, over the training records, how often each option text is offered and how often it is right.

        Raises:
            DataError: no training records, so that there is nothing to know.
        """
        return cls.count((record.options, record.answer) for record in train_records)

    @classmethod
    def count(cls, questions: Iterable[tuple[Mapping[str, str], str]]) -> OptionPrior:
        """As ``fit``, from the options and the right letter of each question."""
        correct: Counter[str] = Counter()
        offered: Counter[str] = Counter()
        for options, answer in questions:
            offered.update(map(option_meaning, options.values()))
            correct[option_meaning(options[answer])] += 1
        if not offered:
            raise DataError("the option prior needs at least one training record")
        return cls(correct, offered)

    def score(self, text: str) -> float:
        """How often the text was right among the training questions offering it, with one more that it lost."""
        meaning = option_meaning(text)
        return self.correct.get(meaning, 0) / (self.offered.get(meaning, 0) + 1)

    def predict(self, record: Record) -> str:
        """The letter of the option with the highest score.

        Ties, hence also questions of which nothing is known, go to the text with the largest hash together with the
        record id: reproducible, the same wherever the option stands, and at chance in the long run. "The first one"
        would turn a bias in where the right option stands into a score.
        """
        return max(record.options, key=lambda letter: self._rank(record, letter))

    def _rank(self, record: Record, letter: str) -> tuple[float, bytes]:
        text = record.options[letter]
        return self.score(text), hashlib.sha256(f"{record.id}\n{option_meaning(text)}".encode()).digest()


def option_prior_predictions(prior: OptionPrior, records: Iterable[Record], mode: ReasoningMode) -> list[Prediction]:
    """The control's answers as lines of a predictions file. Well-formed by construction, and no token is generated."""
    return [
        prediction(
            record,
            condition=Condition.OPTION_PRIOR,
            reasoning=mode,
            text=target_text(mode, prior.predict(record)),
            length=0,
            truncated=False,
        )
        for record in records
    ]
