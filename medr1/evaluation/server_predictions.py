"""Answers of a model behind a chat server: several at once, and each on disk as soon as it is there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread

from PIL import Image
from rich.console import Console
from rich.progress import Progress

from medr1.domain.reasoning import question_text
from medr1.domain.records import Record
from medr1.errors import DataError
from medr1.evaluation.chat_client import ChatServer, Stopped
from medr1.evaluation.image_ablation import ImageAblation, ablated_loader
from medr1.evaluation.prediction_store import PredictionStore
from medr1.evaluation.predictions import Prediction, prediction, read_predictions

_SYNC_EVERY = 16  # answers; what a power failure can cost


@dataclass(kw_only=True)
class ServerPredictionStore(PredictionStore):
    """Answers of a server, ``concurrency`` questions at once. Loads no torch.

    What has come stands in a file beside the predictions file (``partial_of``), in the order of arrival, until the
    condition is complete; a later process asks only what is missing there. One process at a time.
    """

    concurrency: int

    def generate(self, server: ChatServer, condition: str, picture: ImageAblation = ImageAblation.NONE) -> None:
        """Every record that has no answer yet is asked.

        Raises:
            ServerError: from the first request that failed for good; all answers that came before are on disk.
            DataError: a partial file that belongs to other questions.
        """
        partial = partial_of(self.file(condition))
        if self.load_if_exists(condition):
            partial.unlink(missing_ok=True)  # a kill between the last two steps below
            return
        show = ablated_loader(self.records, picture, self.load)

        def answer(record: Record, stop: Event) -> Prediction:
            text = question_text(record.question, record.options, self.mode)
            reply = server.complete(text, _png(show(record)), self.max_completion_length, record=record.id, stop=stop)
            return prediction(record, condition, self.mode, reply.text, reply.length, reply.truncated)

        answers = {line.record: line for line in self._begun(partial, condition)}
        missing = [record for record in self.records if record.id not in answers]
        with Progress(console=Console(stderr=True)) as progress, partial.open("ab") as file:
            bar = progress.add_task(f"answers: {condition.replace('_', ' ')}", total=len(self.records))
            progress.advance(bar, len(answers))
            try:
                for number, line in enumerate(_at_once(answer, missing, self.concurrency), start=1):
                    file.write(json.dumps(asdict(line)).encode() + b"\n")
                    file.flush()
                    if number % _SYNC_EVERY == 0:
                        os.fsync(file.fileno())
                    answers[line.record] = line
                    progress.advance(bar)
            finally:
                os.fsync(file.fileno())
        self.save(condition, [answers[record.id] for record in self.records])
        partial.unlink()

    def _begun(self, partial: Path, condition: str) -> list[Prediction]:
        """The answers of a process before this one. A last line that a kill has cut off is dropped from the file."""
        partial.parent.mkdir(parents=True, exist_ok=True)
        if not partial.exists():
            return []
        raw = partial.read_bytes()
        with partial.open("r+b") as file:
            file.truncate(raw.rfind(b"\n") + 1)
        lines = read_predictions(partial)
        expected = {record.id: (record.image.key, record.answer) for record in self.records}
        for line in lines:
            if (line.condition, line.reasoning) != (condition, self.mode) or expected.get(line.record) != (
                line.image,
                line.answer,
            ):
                raise DataError(f"{partial}: record {line.record} is none of these questions; remove the file")
        return lines


def partial_of(file: Path) -> Path:
    """Where the answers of a condition stand until all are there."""
    return file.with_name(f"{file.name}.partial")


def _at_once(
    answer: Callable[[Record, Event], Prediction], records: Sequence[Record], concurrency: int
) -> Iterator[Prediction]:
    """The answers as they come. The first failure is raised, after those that were under way at that time.

    The threads are daemons: Ctrl-C does not wait for a server that is silent.
    """
    todo, lock, stop = iter(records), Lock(), Event()
    done: SimpleQueue[Prediction | BaseException | None] = SimpleQueue()

    def work() -> None:
        try:
            while not stop.is_set():
                with lock:
                    record = next(todo, None)
                if record is None:
                    break
                done.put(answer(record, stop))
        except Stopped:
            pass  # another thread has put its failure into the queue
        except BaseException as error:  # raised again by the reader
            stop.set()
            done.put(error)
        finally:
            done.put(None)

    threads = [Thread(target=work, daemon=True) for _ in range(min(concurrency, len(records)))]
    failure: BaseException | None = None
    try:
        for thread in threads:
            thread.start()
        running = len(threads)
        while running:
            got = done.get()
            if got is None:
                running -= 1
            elif isinstance(got, BaseException):
                failure = failure or got
            else:
                yield got
    finally:
        stop.set()
    if failure is not None:
        raise failure


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
