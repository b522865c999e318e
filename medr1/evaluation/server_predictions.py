"""Predictions of a model behind a chat server: several requests at once, each completion on disk when it arrives."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread

from PIL import Image
from rich.console import Console
from rich.progress import Progress

from medr1.atomic_write import drop_torn_line
from medr1.domain.reasoning import content_parts, question_text
from medr1.domain.records import Record
from medr1.errors import DataError
from medr1.evaluation.chat_client import ChatClient
from medr1.evaluation.image_ablation import ImageAblation, ablated_loader
from medr1.evaluation.prediction_store import PredictionStore
from medr1.evaluation.predictions import Prediction, prediction, read_predictions

_SYNC_EVERY = 16  # predictions; a power failure can lose this many
_GRACE_SECONDS = 10.0  # for the requests under way when another one has failed


@dataclass(kw_only=True)
class ServerPredictionStore(PredictionStore):
    """Predictions of a server with at most ``concurrency`` requests at once. Loads no torch.

    Until a condition is complete, its predictions are in ``partial_file``, in the order in which they arrived. A later
    process generates only the missing ones. One process at a time may write them.
    """

    concurrency: int

    def generate(self, client: ChatClient, condition: str, ablation: ImageAblation = ImageAblation.NONE) -> None:
        """Generates the predictions of a condition that are not on disk yet.

        Raises:
            ServerError: of the first request that failed; all predictions that arrived are on disk.
            DataError: the partial file has predictions for other records.
        """
        partial = partial_file(self.file(condition))
        if self.load_if_exists(condition):
            partial.unlink(missing_ok=True)  # left by a kill between the last two steps below
            return
        load = ablated_loader(self.records, ablation, self.load)

        def generate_one(record: Record) -> Prediction:
            images, text = load(record), question_text(record.question, record.options, self.mode)
            parts = [_png(images[part]) if isinstance(part, int) else part for part in content_parts(text, len(images))]
            done = client.complete(parts, self.max_completion_length, record=record.id)
            return prediction(record, condition, self.mode, done.text, done.length, done.truncated)

        predictions = {line.record: line for line in self._read_partial(partial, condition)}
        missing = [record for record in self.records if record.id not in predictions]
        with Progress(console=Console(stderr=True)) as progress, partial.open("ab") as file:
            bar = progress.add_task(f"predictions: {condition.replace('_', ' ')}", total=len(self.records))
            progress.advance(bar, len(predictions))
            try:
                for number, line in enumerate(_map_in_threads(generate_one, missing, self.concurrency), start=1):
                    file.write(json.dumps(asdict(line)).encode() + b"\n")
                    file.flush()
                    if number % _SYNC_EVERY == 0:
                        os.fsync(file.fileno())
                    predictions[line.record] = line
                    progress.advance(bar)
            finally:
                os.fsync(file.fileno())
        self.save(condition, [predictions[record.id] for record in self.records])
        partial.unlink()

    def _read_partial(self, partial: Path, condition: str) -> list[Prediction]:
        """The predictions of an earlier process; a last line that a kill has cut off is removed from the file."""
        partial.parent.mkdir(parents=True, exist_ok=True)
        if not partial.exists():
            return []
        drop_torn_line(partial)
        lines = read_predictions(partial)
        expected = {(r.id, r.image_key, r.answer, condition, self.mode) for r in self.records}
        for line in lines:
            if (line.record, line.image, line.answer, line.condition, line.reasoning) not in expected:
                raise DataError(f"{partial}: record {line.record} is not one of this evaluation; remove the file")
        return lines


def _png(image: Image.Image) -> bytes:
    """The image without loss."""
    stored = BytesIO()
    image.save(stored, "PNG")
    return stored.getvalue()


def partial_file(file: Path) -> Path:
    """Where the predictions of a condition are until it is complete."""
    return file.with_name(f"{file.name}.partial")


def _map_in_threads(
    generate_one: Callable[[Record], Prediction], records: Sequence[Record], concurrency: int
) -> Iterator[Prediction]:
    """The predictions in the order in which they arrive.

    After the first failure no further request is started. Those under way have ``_GRACE_SECONDS`` to arrive, then the
    failure is raised. The threads are daemons, so that Ctrl-C does not wait for a server that does not answer.
    """
    todo: SimpleQueue[Record] = SimpleQueue()
    for record in records:
        todo.put(record)
    outcomes: SimpleQueue[Prediction | BaseException] = SimpleQueue()
    stop = Event()

    def work() -> None:
        while not stop.is_set():
            try:
                outcomes.put(generate_one(todo.get_nowait()))
            except Empty:
                return
            except BaseException as error:  # raised again below
                stop.set()
                outcomes.put(error)

    threads = [Thread(target=work, daemon=True) for _ in range(min(concurrency, len(records)))]
    try:
        for thread in threads:
            thread.start()
        for _ in records:
            outcome = outcomes.get()
            if isinstance(outcome, BaseException):
                break
            yield outcome
        else:
            return
    finally:
        stop.set()
    deadline = time.monotonic() + _GRACE_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    while not outcomes.empty():
        if isinstance(late := outcomes.get(), Prediction):
            yield late
    raise outcome
