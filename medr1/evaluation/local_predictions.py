"""All answers of a run, condition by condition: what is on disk already is read, not computed again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from medr1.evaluation.generate import predict
from medr1.evaluation.image_ablation import ImageAblation
from medr1.evaluation.prediction_store import PredictionStore
from medr1.evaluation.predictions import read_predictions, write_predictions
from medr1.models.policy import Policy
from medr1.models.processor import Processor


@dataclass(kw_only=True)
class LocalPredictionStore(PredictionStore):
    """Answers of a policy in this process, ``batch_size`` questions at once."""

    batch_size: int

    def generate(
        self, policy: Policy, processor: Processor, condition: str, picture: ImageAblation = ImageAblation.NONE
    ) -> None:
        """Every record is answered greedily under one condition."""
        if self.load_if_exists(condition):
            return
        with Progress(console=Console(stderr=True)) as progress:
            bar = progress.add_task(f"answers: {condition.replace('_', ' ')}", total=len(self.records))
            lines = predict(
                policy,
                processor,
                self.records,
                self.mode,
                condition,
                load=self.load,
                batch_size=self.batch_size,
                max_completion_length=self.max_completion_length,
                picture=picture,
                advance=lambda done: progress.advance(bar, done),
            )
        self.save(condition, lines)

    def generate_or_reuse(self, shared: Path, policy: Policy, processor: Processor, condition: str) -> None:
        """As ``ask``, but answers that another run has left in the file ``shared`` are taken from there."""
        if not self.file(condition).is_file() and shared.is_file():
            self.save(condition, read_predictions(shared))
        self.generate(policy, processor, condition)
        if not shared.is_file():
            write_predictions(shared, self.conditions[condition])
