"""Pass rates: how difficult training records are for a model, their cache, and what a training keeps of the records.

The pass rate of a record is the share of n sampled completions whose answer is correct, read as the accuracy reward
reads it: a correct answer outside an answer block counts as wrong, because training gives no reward for it.
MedVLThinker (arXiv 2508.02669) estimates it from 16 completions at temperature 1.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from medr1.atomic_write import append_lines, atomic_write, drop_torn_line, write_text
from medr1.data.dataset import Dataset
from medr1.domain.reasoning import ReasoningMode, question_text
from medr1.domain.records import LETTERS, ImageSource, Record, in_order
from medr1.errors import DataError
from medr1.evaluation.prediction_store import Generate, Request
from medr1.waiting_lock import waiting_lock

log = logging.getLogger(__name__)

# Upper edges of the bins in which pass rates are shown, each with its name.
_BINS = {0.0: "0", 0.25: "up to 0.25", 0.5: "up to 0.5", 0.75: "up to 0.75", 1 - 1e-9: "below 1", 1.0: "1"}


@dataclass(frozen=True, slots=True)
class PassRate:
    """How many of ``num_generations`` completions of a record were correct, and how many had no readable answer.

    Raises:
        ValueError: counts that contradict each other.
    """

    record: str
    correct: int
    unparsed: int
    num_generations: int

    def __post_init__(self) -> None:
        counts = (self.correct, self.unparsed, self.num_generations)
        if {type(count) for count in counts} != {int} or min(counts) < 0 or not 0 < sum(counts) <= 2 * counts[-1]:
            raise ValueError(f"record {self.record}: {self}")

    @property
    def value(self) -> float:
        return self.correct / self.num_generations


@dataclass(frozen=True, slots=True)
class SampleCache:
    """The answers of sampled completions on disk, one JSON line each, for all runs with the same ``settings``.

    ``settings``: everything that a completion depends on beside its record and its number, in the first line of the
    file and, as a hash, in its name. A line names its record by a hash of id, prompt and image content. The correct
    answer is not part of it: the completion does not depend on it.
    """

    folder: Path
    settings: Mapping[str, Any]
    mode: ReasoningMode

    @property
    def file(self) -> Path:
        header = json.dumps(dict(self.settings), sort_keys=True)
        return self.folder / f"pass_rates-{hashlib.sha256(header.encode()).hexdigest()[:16]}.jsonl"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time may use the file."""
        say = partial(log.info, "waiting for another process, which adds completions to %s", self.file)
        with waiting_lock(self.file.with_suffix(".lock"), say):
            yield

    def key(self, record: Record) -> str:
        """Identifies a record by what its completions depend on."""
        prompt = question_text(record.question, record.options, self.mode)
        content = [record.id, prompt, [_image_hash(image) for image in record.images]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def missing(self, records: Sequence[Record], num_generations: int) -> list[Request]:
        """The requests for the completions that are not stored yet."""
        answers = self._read()
        return [
            Request(record, f"base.sample_{i}", i)
            for record, key in ((record, self.key(record)) for record in records)
            for i in range(num_generations)
            if (key, i) not in answers
        ]

    def add(self, requests: Sequence[Request], generate: Generate) -> None:
        """Generates the completions and stores the answer of each as it comes."""
        numbers = {request.key: (self.key(request.record), request.sample) for request in requests}
        if not self.file.exists():
            write_text(self.file, json.dumps(dict(self.settings), sort_keys=True) + "\n")
        with Progress(console=Console(stderr=True)) as progress, append_lines(self.file) as append:
            bar = progress.add_task("pass rates of the training records", total=len(requests))
            for line in generate(list(requests)):
                key, sample = numbers[line.record, line.condition]
                append({"record": key, "sample": sample, "parsed": line.parsed})
                progress.advance(bar)

    def pass_rates(self, records: Sequence[Record], num_generations: int) -> list[PassRate]:
        """The pass rates of records whose completions are all stored."""
        answers = self._read()
        rates = []
        for record in records:
            key = self.key(record)
            letters = [answers[key, i] for i in range(num_generations)]
            rates.append(PassRate(record.id, letters.count(record.answer), letters.count(None), num_generations))
        return rates

    def _read(self) -> dict[tuple[str, int], str | None]:
        """The stored answers by record and number of the completion.

        Raises:
            DataError: a line is damaged.
        """
        if not self.file.exists():
            return {}
        drop_torn_line(self.file)
        answers: dict[tuple[str, int], str | None] = {}
        with self.file.open("rb") as lines:
            next(lines)  # the settings
            for number, line in enumerate(lines, start=2):
                try:
                    stored = json.loads(line)
                    key, sample, parsed = stored["record"], stored["sample"], stored["parsed"]
                    if type(key) is not str or type(sample) is not int or parsed not in (None, *LETTERS):
                        raise ValueError(f"{stored} is no answer")
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(f"{self.file}, line {number} is damaged ({error}); remove the file") from error
                answers[key, sample] = parsed
        return answers


def _image_hash(image: ImageSource) -> str:
    """The hash of the image file; for an image that is drawn, its key, which identifies its content."""
    return getattr(image, "sha256", "") or image.key


def write_pass_rates(file: Path, rates: Sequence[PassRate]) -> None:
    """Writes one JSON line for each record, atomically."""
    with atomic_write(file) as lines:
        for rate in rates:
            lines.write(json.dumps({**asdict(rate), "pass_rate": rate.value}).encode() + b"\n")


def read_pass_rates(file: Path) -> list[PassRate]:
    """Reads ``write_pass_rates``.

    Raises:
        DataError: a line is damaged.
    """
    names, rates = {item.name for item in dataclasses.fields(PassRate)}, []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            rates.append(PassRate(**{name: value for name, value in json.loads(line).items() if name in names}))
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{file}, line {number} is damaged ({error}); start a new run") from error
    return rates


def with_pass_rates(
    data: Dataset, rates: Sequence[PassRate], interval: Sequence[float] | None, *, curriculum: bool
) -> Dataset:
    """The data with the training records whose pass rate lies in ``interval`` (ends included; None: all of them).

    ``curriculum``: training goes from easy to hard. Facts, messages and fingerprint tell of it.

    Raises:
        DataError: no record is left, or a training record has no pass rate.
    """
    found = {rate.record: rate for rate in rates}
    if unknown := [record.id for record in data.train if record.id not in found]:
        raise DataError(
            f"the data has changed: {len(unknown)} of {len(data.train)} training records have no pass rate, first "
            f"{unknown[0]}; start a new run"
        )
    low, high = interval or (0.0, 1.0)
    chosen = [record for record in data.train if low <= found[record.id].value <= high]
    facts = _facts(data.train, chosen, found, interval)
    messages = describe(facts)
    if not chosen:
        raise DataError(
            f"data.filter.pass_rate={list(interval or ())} leaves no training record; {messages[0]}. Remedy: an "
            "interval with some of these; if most completions have no readable answer, train the model with "
            "algorithm=sft first and continue with model.path=runs/RUN"
        )
    values = [found[record.id].value for record in chosen]
    lines = [data.fingerprint, str(curriculum), *(f"{r.id} {v!r}" for r, v in zip(chosen, values, strict=True))]
    return dataclasses.replace(
        data,
        train=chosen,
        fingerprint=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        facts={**data.facts, "pass_rates": facts},
        messages=[*data.messages, *messages],
        pass_rates=values if curriculum else [],
    )


def _facts(
    records: Sequence[Record], chosen: Sequence[Record], rates: Mapping[str, PassRate], interval: Sequence[float] | None
) -> dict[str, Any]:
    """What environment.json and summary.json say of the pass rates."""
    of_records = [rates[record.id] for record in records]
    completions = sum(rate.num_generations for rate in of_records)
    edges, names = list(_BINS), list(_BINS.values())
    bins = Counter(names[bisect_left(edges, rate.value)] for rate in of_records)
    before, after = (Counter(record.modality for record in part) for part in (records, chosen))
    return {
        "interval": None if interval is None else list(interval),
        "records": len(records),
        "training_records": len(chosen),
        "num_generations": of_records[0].num_generations,
        "mean": sum(rate.correct for rate in of_records) / completions,
        "unparsed_rate": sum(rate.unparsed for rate in of_records) / completions,
        "histogram": {name: bins[name] for name in names},
        "by_modality": {name: [after[name], before[name]] for name in in_order(before)},
    }


def describe(facts: Mapping[str, Any]) -> list[str]:
    """What the log and the results say of the pass rates: their distribution, and which records are trained on."""
    bins = ", ".join(f"{name}: {count}" for name, count in facts["histogram"].items())
    lines = [
        f"pass rates of {facts['records']} training records by {facts['num_generations']} completions of the model "
        f"before training: {bins}; mean {facts['mean']:.3f}, {100 * facts['unparsed_rate']:.1f} % of the completions "
        "have no readable answer"
    ]
    if facts["interval"] is not None:
        low, high = facts["interval"]
        parts = ", ".join(f"{name} {after} of {before}" for name, (after, before) in facts["by_modality"].items())
        lines.append(
            f"trained on the {facts['training_records']} of {facts['records']} training records with a pass rate from "
            f"{low:g} to {high:g}: {parts}"
        )
    return lines
