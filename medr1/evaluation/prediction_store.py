"""Answers of a run on disk, one predictions file for each condition: what is there already is not asked again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medr1.data.image_loader import ImageLoader
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.evaluation.option_prior import OptionPrior, option_prior_predictions
from medr1.evaluation.predictions import Condition, Prediction, read_predictions, write_predictions
from medr1.evaluation.surface_cues import surface_cue_predictions


@dataclass(kw_only=True)
class PredictionStore:
    """Predictions of the test ``records`` under each condition, one file each (``file`` names it). Loads no torch.

    ``load`` gives a record's picture as the model sees it; ``max_completion_length`` is the longest completion.
    """

    records: Sequence[Record]
    mode: ReasoningMode
    load: ImageLoader
    file: Callable[[str], Path]
    max_completion_length: int
    conditions: dict[str, list[Prediction]] = field(default_factory=dict, init=False)

    def run_blind_baselines(self, train: Sequence[Record]) -> None:
        """The controls that see no picture: the option most often right in training, and the cues of typography."""
        if train:
            self.save(Condition.OPTION_PRIOR, option_prior_predictions(OptionPrior.fit(train), self.records, self.mode))
        self.save(Condition.SURFACE_CUES, surface_cue_predictions(self.records, self.mode))

    def load_if_exists(self, condition: str) -> bool:
        """Whether the condition has been answered before; if so, its answers are read."""
        if self.file(condition).is_file():
            self.conditions[condition] = read_predictions(self.file(condition))
        return condition in self.conditions

    def save(self, condition: str, lines: list[Prediction]) -> None:
        write_predictions(self.file(condition), lines)
        self.conditions[condition] = lines
