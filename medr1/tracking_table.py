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

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient
    from PIL import Image

COMPLETIONS_FILE = "completions.json"

# MLflow's interface knows by this tag which of a run's files are tables (mlflow.utils.mlflow_tags).
_TABLES_TAG = "mlflow.loggedArtifacts"
_IMAGES_FOLDER = "table_images/completions"
_PREVIEW_PIXELS = 256  # the size of the previews that MLflow itself makes


class CompletionsTable:
    """The table of one run; columns are ``step``, ``image`` and whatever the rows have."""

    def __init__(self, client: MlflowClient, run_id: str, resumed: bool) -> None:
        self._client, self._run_id, self._resumed = client, run_id, resumed
        self._rows: list[dict[str, Any]] | None = None
        self._earlier: set[int] = set()
        self._images: set[str] = set()

    def append(self, rows: Sequence[Mapping[str, Any]], images: Sequence[Image.Image], step: int) -> None:
        """Adds one row for each image and stores the table; steps from before the run was resumed are skipped.

        Raises:
            ValueError: not as many images as rows.
        """
        if len(rows) != len(images):
            raise ValueError(f"{len(rows)} rows and {len(images)} images")
        if self._rows is None:
            self._rows = self._stored() if self._resumed else []
            self._earlier = {int(row["step"]) for row in self._rows}
            self._register()
        if step in self._earlier:
            return
        for row, image in zip(rows, images, strict=True):
            self._rows.append({"step": step, "image": self._image(image), **row})
        columns = list(dict.fromkeys(key for row in self._rows for key in row))
        table = {"columns": columns, "data": [[row.get(key) for key in columns] for row in self._rows]}
        self._client.log_text(self._run_id, json.dumps(table, ensure_ascii=False), COMPLETIONS_FILE)

    def _stored(self) -> list[dict[str, Any]]:
        if COMPLETIONS_FILE not in {file.path for file in self._client.list_artifacts(self._run_id)}:
            return []
        with tempfile.TemporaryDirectory() as folder:
            file = self._client.download_artifacts(self._run_id, COMPLETIONS_FILE, folder)
            table = json.loads(Path(file).read_bytes())
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]

    def _register(self) -> None:
        known = json.loads(self._client.get_run(self._run_id).data.tags.get(_TABLES_TAG, "[]"))
        table = {"path": COMPLETIONS_FILE, "type": "table"}
        if table not in known:
            self._client.set_tag(self._run_id, _TABLES_TAG, json.dumps([*known, table]))

    def _image(self, image: Image.Image) -> dict[str, str]:
        digest = hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()[:32]
        path = f"{_IMAGES_FOLDER}/{digest}"
        if digest not in self._images:
            preview = image.convert("RGB")
            preview.thumbnail((_PREVIEW_PIXELS, _PREVIEW_PIXELS))
            self._client.log_image(self._run_id, image, f"{path}.png")
            self._client.log_image(self._run_id, preview, f"{path}.webp")
            self._images.add(digest)
        return {"type": "image", "filepath": f"{path}.png", "compressed_filepath": f"{path}.webp"}
