"""Predictions of a model behind a chat server: several requests at once, each completion on disk when it arrives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from queue import Empty, SimpleQueue
from threading import Event, Thread

from PIL import Image

from medr1.data.image_loader import ImageLoader
from medr1.domain.reasoning import content_parts, question_text
from medr1.evaluation.chat_client import ChatClient
from medr1.evaluation.image_ablation import ImageAblation, ablated_loader
from medr1.evaluation.prediction_store import PredictionStore, Request, sample_seed
from medr1.evaluation.predictions import Prediction, prediction

_GRACE_SECONDS = 10.0  # for the requests under way when another one has failed


@dataclass(kw_only=True)
class ServerPredictionStore(PredictionStore):
    """Predictions of a server with at most ``concurrency`` requests at once. Loads no torch."""

    concurrency: int

    def generate(self, client: ChatClient, condition: str, ablation: ImageAblation = ImageAblation.NONE) -> None:
        """Generates the predictions of a condition that are not on disk yet.

        Raises:
            ServerError: of the first request that failed; all predictions that arrived are on disk.
            DataError: the partial file has predictions for other records.
        """
        load = ablated_loader(self.records, ablation, self.load)
        requests = [Request(record, condition) for record in self.records]
        answer = partial(self.answer, client, load=load)
        self.conditions[condition] = self.complete(condition, requests, answer)

    def answer(
        self, client: ChatClient, requests: list[Request], load: ImageLoader | None = None
    ) -> Iterator[Prediction]:
        """Sends the requests. ``load``: another loader of images than that of the store."""

        def generate_one(request: Request) -> Prediction:
            record, sample = request.record, request.sample
            images, text = (load or self.load)(record), question_text(record.question, record.options, self.mode)
            parts = [_png(images[part]) if isinstance(part, int) else part for part in content_parts(text, len(images))]
            done = client.complete(
                parts,
                self.max_completion_length,
                record=record.id,
                temperature=0 if sample is None else self.temperature,
                seed=None if sample is None else sample_seed(self.seed, record.id, sample),
            )
            return prediction(record, request.condition, self.mode, done.text, done.length, done.truncated)

        return _map_in_threads(generate_one, requests, self.concurrency)


def _png(image: Image.Image) -> bytes:
    """The image without loss."""
    stored = BytesIO()
    image.save(stored, "PNG")
    return stored.getvalue()


def _map_in_threads(
    generate_one: Callable[[Request], Prediction], requests: Sequence[Request], concurrency: int
) -> Iterator[Prediction]:
    """The predictions in the order in which they arrive.

    After the first failure no further request is started. Those under way have ``_GRACE_SECONDS`` to arrive, then the
    failure is raised. The threads are daemons, so that Ctrl-C does not wait for a server that does not answer.
    """
    todo: SimpleQueue[Request] = SimpleQueue()
    for request in requests:
        todo.put(request)
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

    threads = [Thread(target=work, daemon=True) for _ in range(min(concurrency, len(requests)))]
    try:
        for thread in threads:
            thread.start()
        for _ in requests:
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
