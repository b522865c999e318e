"""The predictions of a run on disk, one file for each condition. Conditions that have a file are not run again."""

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
    """Predictions of the test ``records`` under each condition. Loads no torch.

    ``load`` returns a record's image at the model's input size, ``file`` the path of a condition's predictions file.
    Subclasses add ``generate``, which runs a model.
    """

    records: Sequence[Record]
    mode: ReasoningMode
    load: ImageLoader
    file: Callable[[str], Path]
    max_completion_length: int
    conditions: dict[str, list[Prediction]] = field(default_factory=dict, init=False)

    def load_if_exists(self, condition: str) -> bool:
        """Reads the predictions of a condition if its file exists. Returns whether they are in ``conditions``."""
        if self.file(condition).is_file():
            self.conditions[condition] = read_predictions(self.file(condition))
        return condition in self.conditions

    def save(self, condition: str, predictions: list[Prediction]) -> None:
        write_predictions(self.file(condition), predictions)
        self.conditions[condition] = predictions

    def run_blind_baselines(self, train: Sequence[Record]) -> None:
        """Saves the baselines that see no image: surface cues and, if there are ``train`` records, the option prior."""
        if train:
            prior = OptionPrior.fit(train)
            self.save(Condition.OPTION_PRIOR, option_prior_predictions(prior, self.records, self.mode))
        self.save(Condition.SURFACE_CUES, surface_cue_predictions(self.records, self.mode))
