"""The option prior: a baseline that uses only the texts of the options, not the image or the question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.domain.texts import option_meaning
from medr1.errors import DataError
from medr1.evaluation.predictions import Condition, MultipleChoice, Prediction, baseline_prediction, hash_rank


@dataclass(frozen=True, slots=True)
class OptionPrior:
    """Predicts, for each question, the option whose text has the highest score.

    The score of a text is correct / (offered + 1), counted over the training questions that offer it. It ranks frequent
    distractors below rarer texts that are always correct, and a text that was offered and correct once below one that
    was correct in 90 of 91 questions. Texts that no training question offers score 0.

    Texts are compared by ``option_meaning``, which ignores case and closing punctuation. If these counted, the accuracy
    on OmniMedVQA would be higher still (ultrasound 1.000 instead of .834), because the correct option is often the only
    one in lower case or with a full stop; ``surface_cues`` measures that separately.
    """

    correct: Mapping[str, int]
    offered: Mapping[str, int]

    @classmethod
    def fit(cls, questions: Iterable[MultipleChoice]) -> OptionPrior:
        """Counts how often each option text is offered and correct in the training questions.

        Raises:
            DataError: no training questions.
        """
        correct: Counter[str] = Counter()
        offered: Counter[str] = Counter()
        for question in questions:
            offered.update(map(option_meaning, question.options.values()))
            correct[option_meaning(question.options[question.answer])] += 1
        if not offered:
            raise DataError("the option prior needs at least one training record")
        return cls(correct, offered)

    def score(self, text: str) -> float:
        meaning = option_meaning(text)
        return self.correct.get(meaning, 0) / (self.offered.get(meaning, 0) + 1)

    def predict(self, record: Record) -> str:
        """The letter of the option with the highest score.

        Ties are broken by ``hash_rank``, also those between options that no training question offers. Taking the first
        option instead would count a bias in the position of the correct option as accuracy.
        """
        return max(
            record.options,
            key=lambda letter: (
                self.score(record.options[letter]),
                hash_rank(record, option_meaning(record.options[letter])),
            ),
        )

    def expected_accuracy(self, questions: Sequence[MultipleChoice]) -> float:
        """Accuracy with a uniform guess between ties."""
        total = 0.0
        for question in questions:
            scores = {letter: self.score(text) for letter, text in question.options.items()}
            best = [letter for letter, score in scores.items() if score == max(scores.values())]
            total += (question.answer in best) / len(best)
        return total / len(questions)


def option_prior_predictions(prior: OptionPrior, records: Iterable[Record], mode: ReasoningMode) -> list[Prediction]:
    return [baseline_prediction(r, Condition.OPTION_PRIOR, mode, prior.predict(r)) for r in records]
