"""The table of sampled completions and their images, in the form in which MLflow's interface shows tables.

MLflow's own ``log_table`` would turn a column of texts like "1" into numbers when it appends, and store an image once
for each of the completions that were sampled for it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medr1.tracking.offline_queue import Outbox

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient
    from PIL import Image

COMPLETIONS_FILE = "completions.json"

# MLflow's interface knows by this tag which of a run's files are tables (mlflow.utils.mlflow_tags).
TABLES_TAG = "mlflow.loggedArtifacts"
_IMAGES_FOLDER = "table_images/completions"
_PREVIEW_PIXELS = 256  # the size of the previews that MLflow itself makes


class CompletionsTable:
    """The table of one run; columns are ``step``, ``image`` and whatever the rows have."""

    def __init__(self, outbox: Outbox, rows: list[dict[str, Any]], tables: str) -> None:
        """``rows`` and ``tables`` (a tag) are what MLflow has of a run that is resumed."""
        self._outbox, self._rows, self._tables = outbox, rows, json.loads(tables)
        self._earlier = {int(row["step"]) for row in rows}
        self._images: set[str] = set()

    def append(self, rows: Sequence[Mapping[str, Any]], images: Sequence[Image.Image], step: int) -> None:
        """Adds one row for each image and stores the table; steps from before the run was resumed are skipped.

        Raises:
            ValueError: not as many images as rows.
        """
        if len(rows) != len(images):
            raise ValueError(f"{len(rows)} rows and {len(images)} images")
        table = {"path": COMPLETIONS_FILE, "type": "table"}
        if table not in self._tables:
            self._tables.append(table)
            self._outbox.tags({TABLES_TAG: json.dumps(self._tables)})
        if step in self._earlier:
            return
        for row, image in zip(rows, images, strict=True):
            self._rows.append({"step": step, "image": self._image(image), **row})
        columns = list(dict.fromkeys(key for row in self._rows for key in row))
        content = {"columns": columns, "data": [[row.get(key) for key in columns] for row in self._rows]}
        text = json.dumps(content, ensure_ascii=False)
        self._outbox.made_file(COMPLETIONS_FILE, lambda file: file.write_text(text, encoding="utf-8"))

    def _image(self, image: Image.Image) -> dict[str, str]:
        digest = hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()[:32]
        path = f"{_IMAGES_FOLDER}/{digest}"
        if digest not in self._images:
            preview = image.convert("RGB")
            preview.thumbnail((_PREVIEW_PIXELS, _PREVIEW_PIXELS))
            self._outbox.made_file(f"{path}.png", image.save)
            self._outbox.made_file(f"{path}.webp", preview.save)
            self._images.add(digest)
        return {"type": "image", "filepath": f"{path}.png", "compressed_filepath": f"{path}.webp"}


def stored_rows(client: MlflowClient, run_id: str) -> list[dict[str, Any]]:
    """The rows of a run's table as MLflow has them."""
    if COMPLETIONS_FILE not in {file.path for file in client.list_artifacts(run_id)}:
        return []
    with tempfile.TemporaryDirectory() as folder:
        file = client.download_artifacts(run_id, COMPLETIONS_FILE, folder)
        table = json.loads(Path(file).read_bytes())
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
