"""The predictions of a run on disk, one file for each condition. Conditions that have a file are not run again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from medr1.atomic_write import append_lines, drop_torn_line
from medr1.data.image_loader import ImageLoader
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.errors import DataError
from medr1.evaluation.circular import rotate
from medr1.evaluation.option_prior import OptionPrior, option_prior_predictions
from medr1.evaluation.predictions import Condition, Measure, Prediction, read_predictions, write_predictions
from medr1.evaluation.surface_cues import surface_cue_predictions


@dataclass(frozen=True, slots=True)
class Request:
    """A completion to generate for a record: greedy, or the sample of this number. ``condition`` is that of its line.

    Records and conditions of the requests of a file are distinct.
    """

    record: Record
    condition: str
    sample: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.record.id, self.condition


# Generates completions in any order. The lines that it yields are stored as they come.
Generate = Callable[[list[Request]], Iterator[Prediction]]


@dataclass(kw_only=True)
class PredictionStore:
    """Predictions of the test ``records`` under each condition. Loads no torch.

    ``load`` returns a record's image at the model's input size, ``file`` the path of a condition's predictions file.
    ``temperature`` and ``seed`` are those of samples. Subclasses run a model: ``generate`` for one condition,
    ``answer`` for samples and rotations.
    """

    records: Sequence[Record]
    mode: ReasoningMode
    load: ImageLoader
    file: Callable[[str], Path]
    max_completion_length: int
    temperature: float = 1.0
    seed: int = 0
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

    def generate_samples(self, condition: str, num_generations: int, generate: Generate) -> None:
        """Generates the file of sampled completions, ``num_generations`` lines for each record in turn."""
        samples = range(num_generations)
        requests = [Request(record, f"{condition}.sample_{i}", i) for record in self.records for i in samples]
        self.complete(Measure.SAMPLES.file(condition), requests, generate)

    def generate_rotations(self, condition: str, generate: Generate) -> None:
        """Generates the file of answers to rotated options, N - 1 lines for each record of N options in turn.

        The rotation by 0 places is the question itself, which the file of the condition has.
        """
        requests = [
            Request(rotate(record, places), f"{condition}.rotation_{places}")
            for record in self.records
            for places in range(1, len(record.options))
        ]
        self.complete(Measure.ROTATIONS.file(condition), requests, generate)

    def complete(self, name: str, requests: Sequence[Request], generate: Generate) -> list[Prediction]:
        """Generates the predictions of the file ``name`` that are not on disk yet; returns all, in order of requests.

        Until all are there, they are in ``partial_file``, in the order in which they arrived. A later process generates
        only the missing ones. One process at a time may write them.

        Raises:
            DataError: the partial file has predictions for other requests.
        """
        file = self.file(name)
        partial = partial_file(file)
        if file.is_file():
            partial.unlink(missing_ok=True)  # left by a kill between the last two steps below
            return read_predictions(file)
        predictions = {(line.record, line.condition): line for line in self._read_partial(partial, requests)}
        missing = [request for request in requests if request.key not in predictions]
        with Progress(console=Console(stderr=True)) as progress, append_lines(partial) as append:
            bar = progress.add_task(f"predictions: {name.replace('_', ' ').replace('.', ' ')}", total=len(requests))
            progress.advance(bar, len(predictions))
            for line in generate(missing):
                append(asdict(line))
                predictions[line.record, line.condition] = line
                progress.advance(bar)
        ordered = [predictions[request.key] for request in requests]
        write_predictions(file, ordered)
        partial.unlink()
        return ordered

    def _read_partial(self, partial: Path, requests: Sequence[Request]) -> list[Prediction]:
        """The predictions of an earlier process; a last line that a kill has cut off is removed from the file."""
        partial.parent.mkdir(parents=True, exist_ok=True)
        if not partial.exists():
            return []
        drop_torn_line(partial)
        lines = read_predictions(partial)
        expected = {(r.record.id, r.record.image_key, r.record.answer, r.condition, self.mode) for r in requests}
        for line in lines:
            if (line.record, line.image, line.answer, line.condition, line.reasoning) not in expected:
                raise DataError(f"{partial}: record {line.record} is not one of this evaluation; remove the file")
        return lines


def sample_seed(seed: int, record: str, sample: int) -> int:
    """The seed of one sample: below 2^63, and independent of all other records and samples."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{sample}\n{record}".encode()).digest()[:8]) >> 1


def partial_file(file: Path) -> Path:
    """Where the predictions of a file are until it is complete."""
    return file.with_name(f"{file.name}.partial")
