"""Experiment tracking: parameters, curves, completions and files of a run in MLflow. The only file that imports mlflow.

Lightning's own MLFlowLogger cuts parameters at 250 characters, never sets the status of a failed or resumed run back,
and cannot continue a run without repeating its points; hence this one, over ``MlflowClient``. mlflow takes seconds to
import, so it is imported when a tracker starts and not with this module.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from medr1.errors import ConfigError, TrackingError
from medr1.tracking.address import RUN_FILE, StoredRun, absolute_uri, stored_run, without_password
from medr1.tracking.completions_table import TABLES_TAG, CompletionsTable, stored_rows
from medr1.tracking.offline_queue import METRICS_A_BATCH, Outbox, be_brief, is_away, reason

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient
    from PIL import Image

Status = Literal["FINISHED", "FAILED", "KILLED"]

# The tag by which MLflow shows a run under another one: its value is the other's run id.
PARENT_TAG = "mlflow.parentRunId"

_DIRECTORY_TAG = "run_directory"

_VALUE_CHARS = 6000  # MLflow's limits: characters a parameter, parameters a batch
_PARAMS_A_BATCH = 100
_FLUSH_SECONDS = 5.0
_LOCK_SECONDS = 300.0
# Opens the experiment in MLflow's view for model training (runs and charts) rather than the one for chat applications.
_TRAINING = {"mlflow.experimentKind": "custom_model_development"}


class NullTracker:
    """Tracks nothing, for ``tracking=none``; the interface of ``Tracker``."""

    run_id = ""

    def params(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None: ...

    def text(self, content: str, path: str) -> None: ...

    def completions_table(
        self, rows: Sequence[Mapping[str, Any]], images: Sequence[Image.Image], step: int
    ) -> None: ...

    def flush(self) -> None: ...

    def finish(self, status: Status = "FINISHED") -> None: ...

    def ui_command(self) -> str:
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Tracker:
    """One run in MLflow. As a context manager it closes the run: FINISHED, KILLED by a signal, or FAILED."""

    def __init__(self, outbox: Outbox, uri: str, stored: StoredRun, run: Run | None, table: CompletionsTable) -> None:
        """Use ``start``. ``run`` is what MLflow has of a run that is resumed."""
        self.run_id = stored.run_id
        self.uri = uri
        self._outbox, self._completions = outbox, table
        self._experiment_id = stored.experiment_id
        self._buffer: list[tuple[str, float, int, int]] = []
        self._flushed = time.monotonic()
        # The last step of each curve from before the run was resumed: the steps up to it are computed again.
        self._logged = {metric.key: metric.step for metric in run.data.to_proto().metrics} if run else {}
        self._params: dict[str, str] = dict(run.data.params) if run else {}
        self._status: Status | None = None

    @classmethod
    def start(
        cls,
        uri: str,
        experiment: str,
        run_name: str,
        run_dir: Path,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
        *,
        remedy: str = "",
        must_answer: bool = True,
    ) -> Tracker:
        """Begins a run, or continues ``run_id``, and writes its id to ``run_dir``/mlflow.json.

        Any number of processes may start at once on one new SQLite file. A server may go away later: see ``Outbox``;
        ``remedy`` is the command that sends what is left then. With ``must_answer=False`` it may be away already,
        where a run is continued.

        Raises:
            ConfigError: the URI names no database or server, the experiment was deleted, the run does not exist.
            TrackingError: the server does not answer.
        """
        uri, database = absolute_uri(uri)
        place = without_password(uri)
        # A laboratory for medical data reports to nobody, unless its user wants it.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        be_brief()
        try:
            if database is None:
                client, experiment_id = _open(uri, experiment, None)
            else:
                from filelock import FileLock

                database.parent.mkdir(parents=True, exist_ok=True)
                # MLflow creates its schema, and then the experiment, without a lock.
                with FileLock(f"{database}.lock", timeout=_LOCK_SECONDS):
                    client, experiment_id = _open(uri, experiment, (database.parent / "mlartifacts").as_uri())
            tags = {**(tags or {}), _DIRECTORY_TAG: str(run_dir)}
            if run_id is None:
                new = _begun(client, experiment_id, run_dir) or client.create_run(
                    experiment_id, tags=tags, run_name=run_name
                )
                stored, run = StoredRun(place, experiment, new.info.run_id, new.info.experiment_id), None
                outbox = Outbox(client, stored.run_id, run_dir, place, remedy)
                table = CompletionsTable(outbox, [], "[]")
            else:
                run = _existing(client, run_id, uri, run_dir)
                stored = StoredRun(place, experiment, run_id, run.info.experiment_id)
                outbox = Outbox(client, run_id, run_dir, place, remedy)
                if outbox.kept:
                    outbox.deliver()
                    run = client.get_run(run_id)
                table = CompletionsTable(outbox, stored_rows(client, run_id), run.data.tags.get(TABLES_TAG, "[]"))
                client.update_run(run_id, status="RUNNING")
                outbox.tags(tags)
        except ImportError as error:
            raise TrackingError(
                f"tracking.uri={place}: {error}; PostgreSQL needs postgresql+psycopg2://... and psycopg2-binary"
            ) from error
        except Exception as error:
            if database is not None or not is_away(error):
                raise
            known = stored_run(run_dir)
            if must_answer or run_id is None or known is None or not _is_server(uri):
                raise TrackingError(
                    f"MLflow at {place} does not answer ({reason(error)}): start it, correct tracking.uri, or use "
                    "tracking=none"
                ) from error
            return cls._without_server(uri, known, run_dir, remedy, error)
        stored.write(run_dir)
        return cls(outbox, uri, stored, run, table)

    @classmethod
    def _without_server(cls, uri: str, stored: StoredRun, run_dir: Path, remedy: str, error: Exception) -> Tracker:
        from mlflow.tracking import MlflowClient

        outbox = Outbox(MlflowClient(tracking_uri=uri), stored.run_id, run_dir, without_password(uri), remedy)
        outbox.mark_offline(error)
        return cls(outbox, uri, stored, None, CompletionsTable(outbox, [], "[]"))

    def params(self, values: Mapping[str, Any]) -> None:
        """Logs a nested config under dotted names; a value beyond MLflow's limit is cut and marked with its hash.

        MLflow's parameters never change: what differs when a run is resumed stands in the tag ``resumed.<name>``.
        """
        flat, known = _flatten(values), self._params
        if changed := {f"resumed.{key}": value for key, value in flat.items() if known.get(key, value) != value}:
            self.tags(changed)
        items = [(key, value) for key, value in flat.items() if key not in known]
        for start in range(0, len(items), _PARAMS_A_BATCH):
            self._outbox.params(dict(items[start : start + _PARAMS_A_BATCH]))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Adds one point to each curve; sent in batches, at the latest with the first point after five seconds.

        Steps that a resumed run has logged before are dropped. NaN stays NaN; a database stores infinity as the
        largest float.
        """
        now = int(time.time() * 1000)
        for key, value in values.items():
            if key not in self._logged or step > self._logged[key]:
                self._buffer.append((key, float(value), now, step))
        if len(self._buffer) >= METRICS_A_BATCH or time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sends all points; to be called before a checkpoint is relied on, so that no curve has a gap after a kill."""
        self._outbox.metrics(self._buffer)
        self._buffer = []
        self._flushed = time.monotonic()

    def tags(self, values: Mapping[str, str]) -> None:
        self._outbox.tags(values)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Stores a file, or a directory's content, under ``folder``."""
        self._outbox.artifact(path, folder)

    def text(self, content: str, path: str) -> None:
        self._outbox.made_file(path, lambda file: file.write_text(content, encoding="utf-8"))

    def completions_table(self, rows: Sequence[Mapping[str, Any]], images: Sequence[Image.Image], step: int) -> None:
        """Appends sampled completions, each with its image, to the table that MLflow shows as completions.json.

        A resumed run does not repeat a step.
        """
        self._completions.append(rows, images, step)

    def finish(self, status: Status = "FINISHED") -> None:
        """Sends what is buffered and closes the run; the first call decides the status."""
        self.flush()
        if self._status is None:
            self._outbox.end(status)
            self._status = status

    def ui_command(self) -> str:
        """The line that shows this run: the command that opens MLflow on the database, or the page on the server."""
        # Without the query MLflow shows its menu for chat applications.
        page = f"/#/experiments/{self._experiment_id}/runs/{self.run_id}?workflowType=machine_learning"
        if _is_server(self.uri):
            return without_password(self.uri).rstrip("/") + page
        uri = shlex.quote(without_password(self.uri))
        return f"mlflow ui --backend-store-uri {uri} --host 127.0.0.1 --port 5000  # http://127.0.0.1:5000{page}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
            return
        # Signals arrive as KeyboardInterrupt, or as SystemExit where Lightning or the pipeline turned them into it.
        status: Status = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
        try:
            self.finish(status)
        except Exception as problem:
            # The run's own error is the one to show, with this one beside it.
            error.add_note(f"MLflow run {self.run_id} could not be closed as {status}: {problem!r}")


AnyTracker = Tracker | NullTracker


def _is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in ("http", "https")


def _open(uri: str, experiment: str, artifacts: str | None) -> tuple[MlflowClient, str]:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        try:
            return client, client.create_experiment(experiment, artifact_location=artifacts, tags=_TRAINING)
        except MlflowException as error:
            # Another process on the same server was first.
            found = client.get_experiment_by_name(experiment)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f"the experiment {experiment!r} was deleted in {without_password(uri)}: choose another name, or "
            f"MLFLOW_TRACKING_URI=... mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return client, str(found.experiment_id)


def _begun(client: MlflowClient, experiment_id: str, run_dir: Path) -> Run | None:
    """The run of a process that was killed after it had begun it here and before it could note its id."""
    quoted = str(run_dir).replace("\\", "\\\\").replace('"', '\\"')
    query = f'tags.{_DIRECTORY_TAG} = "{quoted}" and attributes.status = "RUNNING"'
    found: list[Run] = client.search_runs([experiment_id], query, max_results=1)
    return found[0] if found and not (run_dir / RUN_FILE).exists() else None


def _existing(client: MlflowClient, run_id: str, uri: str, run_dir: Path) -> Run:
    from mlflow.exceptions import MlflowException

    remedy = f"remove {run_dir / RUN_FILE} to track it as a new run"
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise ConfigError(
            f"{without_password(uri)} has no run {run_id}: correct the tracking URI, or {remedy}"
        ) from error
    if run.info.lifecycle_stage != "active":
        raise ConfigError(f"run {run_id} was deleted in {without_password(uri)}: restore it there, or {remedy}")
    return run


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted names and the values as YAML and JSON write them: null, true, 1e-06, [1, 2]; text as it is."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{name}.")
        else:
            plain = value.value if isinstance(value, Enum) else value
            text = plain if isinstance(plain, str) else json.dumps(plain, default=str, ensure_ascii=False)
            if len(text) > _VALUE_CHARS:
                digest = hashlib.sha256(text.encode()).hexdigest()[:16]
                mark = f" ... [cut: {len(text)} characters, sha256 {digest}]"
                text = text[: _VALUE_CHARS - len(mark)] + mark
            flat[name] = text
    return flat
