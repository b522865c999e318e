"""All answers of a run, condition by condition: what is on disk already is read, not computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from medr1.data.pictures import Load
from medr1.evaluation.controls import OptionPrior, blind_predictions
from medr1.evaluation.cues import cue_predictions
from medr1.evaluation.predict import Picture, predict
from medr1.evaluation.predictions import Condition, Prediction, read_predictions, write_predictions
from medr1.policy.encoding import Encoder
from medr1.policy.policy import Policy
from medr1.reasoning import ReasoningMode
from medr1.records import Record


class Answers:
    """Predictions of the test ``records`` under each condition, one file each (``file`` names it)."""

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
        self.records, self.mode, self.load, self.file = records, mode, load, file
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.conditions: dict[str, list[Prediction]] = {}

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
        self._keep(condition, lines)

    def ask_once(self, shared: Path, policy: Policy, encoder: Encoder, condition: str) -> None:
        """As ``ask``, but answers that another run has left in the file ``shared`` are taken from there."""
        if not self.file(condition).is_file() and shared.is_file():
            self._keep(condition, read_predictions(shared))
        self.ask(policy, encoder, condition)
        if not shared.is_file():
            write_predictions(shared, self.conditions[condition])

    def ask_blind(self, train: Sequence[Record]) -> None:
        """The controls that see no picture: the option most often right in training, and the cues of typography."""
        if train:
            self._keep(Condition.OPTION_PRIOR, blind_predictions(OptionPrior.fit(train), self.records, self.mode))
        self._keep(Condition.SURFACE_CUES, cue_predictions(self.records, self.mode))

    def known(self, condition: str) -> bool:
        """Whether the condition has been answered before; if so, its answers are read."""
        if self.file(condition).is_file():
            self.conditions[condition] = read_predictions(self.file(condition))
        return condition in self.conditions

    def _keep(self, condition: str, lines: list[Prediction]) -> None:
        write_predictions(self.file(condition), lines)
        self.conditions[condition] = lines
