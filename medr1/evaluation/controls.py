"""Controls: what can be scored without looking at the image. A score means little before it beats these."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from medr1.errors import DataError
from medr1.evaluation.predictions import Condition, Prediction, prediction
from medr1.reasoning import ReasoningMode, target_text
from medr1.records import Record


@dataclass(frozen=True, slots=True)
class OptionPrior:
    """The blind control: for each question the option whose text was most often right in training.

    "Most often" means right / offered, not the bare number of times right: a frequent distractor must not win over a
    rare text that is right whenever it is offered. A text that training never offered counts as never right.
    Texts are compared as ``medr1.records.check_choices`` compares them, without case and closing full stops, so
    that the control reads what an option says and not how the annotator happened to type the right one: with
    typography it scores higher still on OmniMedVQA (ultrasound 1.000 instead of .834), because the right option is
    often the only one in lower case or with a full stop. Neither question nor image is looked at.
    """

    right: Mapping[str, int]
    offered: Mapping[str, int]

    @classmethod
    def fit(cls, train_records: Iterable[Record]) -> OptionPrior:
        """Counts, over the training records, how often each option text is offered and how often it is right.

        Raises:
            DataError: no training records, so that there is nothing to know.
        """
        right: Counter[str] = Counter()
        offered: Counter[str] = Counter()
        for record in train_records:
            offered.update(map(_normal, record.options.values()))
            right[_normal(record.answer_text)] += 1
        if not offered:
            raise DataError("the option prior needs at least one training record")
        return cls(right, offered)

    def score(self, text: str) -> float:
        """Fraction of the training questions offering this text in which it is right; 0 if none offers it."""
        normal = _normal(text)
        offered = self.offered.get(normal, 0)
        return self.right.get(normal, 0) / offered if offered else 0.0

    def predict(self, record: Record) -> str:
        """The letter of the option with the highest score.

        Ties, hence also questions of which nothing is known, go to the text with the largest hash together with the
        record id: reproducible, the same wherever the option stands, and at chance in the long run. "The first one"
        would turn a bias in where the right option stands into a score.
        """
        return max(record.options, key=lambda letter: self._rank(record, letter))

    def _rank(self, record: Record, letter: str) -> tuple[float, bytes]:
        text = record.options[letter]
        return self.score(text), hashlib.sha256(f"{record.id}\n{_normal(text)}".encode()).digest()


def blind_predictions(prior: OptionPrior, records: Iterable[Record], mode: ReasoningMode) -> list[Prediction]:
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


def _normal(text: str) -> str:
    return text.strip().rstrip(".").casefold()
