"""All answers of a run, condition by condition: what is on disk already is read, not computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from medr1.data.pictures import Load
from medr1.evaluation.kept import KeptAnswers
from medr1.evaluation.predict import predict
from medr1.evaluation.predictions import read_predictions, write_predictions
from medr1.evaluation.shown import Picture
from medr1.policy.encoding import Encoder
from medr1.policy.policy import Policy
from medr1.reasoning import ReasoningMode
from medr1.records import Record


class Answers(KeptAnswers):
    """Answers of a policy in this process."""

    def __init__(
        self,
        records: Sequence[Record],
        mode: ReasoningMode,
        *,
        load: Load,
        file: Callable[[str], Path],
        batch_size: int,
        max_new_tokens: int,
    ) -> None:
        super().__init__(records, mode, file)
        self.load, self.batch_size, self.max_new_tokens = load, batch_size, max_new_tokens

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
