"""All answers of a run, condition by condition: what is on disk already is read, not computed again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from medr1.evaluation.generate import predict
from medr1.evaluation.image_ablation import Picture
from medr1.evaluation.prediction_store import KeptAnswers
from medr1.evaluation.predictions import read_predictions, write_predictions
from medr1.models.policy import Policy
from medr1.models.processor import Encoder


@dataclass(kw_only=True)
class Answers(KeptAnswers):
    """Answers of a policy in this process, ``batch_size`` questions at once."""

    batch_size: int

    def ask(self, policy: Policy, encoder: Encoder, condition: str, picture: Picture = Picture.OWN) -> None:
        """Every record is answered greedily under one condition."""
        if self.known(condition):
            return
        with Progress(console=Console(stderr=True)) as progress:
            bar = progress.add_task(f"answers: {condition.replace('_', ' ')}", total=len(self.records))
            lines = predict(
                policy,
                encoder,
                self.records,
                self.mode,
                condition,
                load=self.load,
                batch_size=self.batch_size,
                max_new_tokens=self.max_new_tokens,
                picture=picture,
                advance=lambda done: progress.advance(bar, done),
            )
        self.keep(condition, lines)

    def ask_once(self, shared: Path, policy: Policy, encoder: Encoder, condition: str) -> None:
        """As ``ask``, but answers that another run has left in the file ``shared`` are taken from there."""
        if not self.file(condition).is_file() and shared.is_file():
            self.keep(condition, read_predictions(shared))
        self.ask(policy, encoder, condition)
        if not shared.is_file():
            write_predictions(shared, self.conditions[condition])
