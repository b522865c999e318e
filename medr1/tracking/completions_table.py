"""The table of sampled completions with their images, in the format that MLflow's interface shows as a table.

MLflow's own ``log_table`` is not used, because on appending it turns a text column with values such as "1" into
numbers, and because it stores an image once for each completion of the image.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medr1.tracking.gallery import Answer, Card, gallery, preview
from medr1.tracking.offline_queue import OfflineQueue

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient
    from PIL import Image

COMPLETIONS_FILE = "completions.json"

# The tag in which MLflow's interface looks up the tables of a run (mlflow.utils.mlflow_tags).
TABLES_TAG = "mlflow.loggedArtifacts"
_IMAGES_FOLDER = "table_images/completions"


class CompletionsTable:
    """The table of one run, with the columns ``step``, ``image`` (``image 2``, ...) and those of the rows."""

    def __init__(
        self, queue: OfflineQueue, rows: Sequence[dict[str, Any]], tables: str, *, begins_anew: bool = False
    ) -> None:
        """``rows`` and ``tables`` (the value of ``TABLES_TAG``) are those of a resumed run.

        ``begins_anew``: the rows of the run in MLflow are not known and must not be replaced. The file then has the
        first step of its rows in its name.
        """
        self._queue, self._rows, self._tables = queue, list(rows), json.loads(tables)
        self._file: str | None = COMPLETIONS_FILE
        if begins_anew:
            self._file, self._tables = None, [_table(COMPLETIONS_FILE)]
        self._logged_steps = {int(row["step"]) for row in rows}
        self._images: set[str] = set()

    def append(self, rows: Sequence[Mapping[str, Any]], images: Sequence[Sequence[Image.Image]], step: int) -> None:
        """Adds the rows with the images of each and stores the table. Steps that a resumed run has logged are dropped.

        Raises:
            ValueError: there are not images for each row.
        """
        if len(rows) != len(images):
            raise ValueError(f"{len(rows)} rows and images of {len(images)}")
        self._file = self._file or f"completions_from_step_{step}.json"
        table = _table(self._file)
        if table not in self._tables:
            self._tables.append(table)
            self._queue.set_tags({TABLES_TAG: json.dumps(self._tables)})
        if step in self._logged_steps:
            return
        for row, of_row in zip(rows, images, strict=True):
            cells = {_column(i): self._log_image(image) for i, image in enumerate(of_row)}
            self._rows.append({"step": step, **cells, **row})
        columns = list(dict.fromkeys(key for row in self._rows for key in row))
        content = {"columns": columns, "data": [[row.get(key) for key in columns] for row in self._rows]}
        self._queue.log_text(json.dumps(content, ensure_ascii=False), self._file)
        page = gallery(f"Completions of step {step}", "Sampled in training.", _cards(rows, images))
        self._queue.log_text(page, f"completions/step_{step:06}.html")

    def _log_image(self, image: Image.Image) -> dict[str, str]:
        """Stores the image and its preview once. Returns the table cell."""
        digest = hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()[:32]
        path = f"{_IMAGES_FOLDER}/{digest}"
        if digest not in self._images:
            self._queue.log_new_file(f"{path}.png", image.save)
            self._queue.log_new_file(f"{path}.webp", preview(image).save)
            self._images.add(digest)
        return {"type": "image", "filepath": f"{path}.png", "compressed_filepath": f"{path}.webp"}


def _cards(rows: Sequence[Mapping[str, Any]], images: Sequence[Sequence[Image.Image]]) -> list[Card]:
    """A card for each run of rows with one question."""
    cards = []
    for _, group in groupby(range(len(rows)), key=lambda i: (rows[i].get("record"), rows[i].get("question"))):
        own = list(group)
        first = rows[own[0]]
        completions = [
            Answer(
                f"completion {number}",
                str(rows[i].get("completion", "")),
                {name: f"{value:g}" for name, value in rows[i].items() if type(value) in (int, float)},
            )
            for number, i in enumerate(own, 1)
        ]
        record, question, answer = (str(first.get(name, "")) for name in ("record", "question", "answer"))
        cards.append(Card(record, question, answer, images[own[0]], completions))
    return cards


def _table(file: str) -> dict[str, str]:
    return {"path": file, "type": "table"}


def _column(index: int) -> str:
    return "image" if index == 0 else f"image {index + 1}"


def stored_rows(client: MlflowClient, run_id: str) -> list[dict[str, Any]]:
    """The rows of a run's table in MLflow."""
    if COMPLETIONS_FILE not in {file.path for file in client.list_artifacts(run_id)}:
        return []
    with tempfile.TemporaryDirectory() as folder:
        file = client.download_artifacts(run_id, COMPLETIONS_FILE, folder)
        table = json.loads(Path(file).read_bytes())
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
