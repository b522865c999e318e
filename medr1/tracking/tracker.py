"""Experiment tracking: parameters, metrics, completions and files of a run in MLflow.

Lightning's MLFlowLogger is not used: it cuts parameters at 250 characters, never corrects the status of a failed or
resumed run, and repeats metric points when a run is resumed. mlflow takes seconds to import, so it is imported when a
tracker starts and not with this module.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from filelock import FileLock

from medr1.atomic_write import write_text
from medr1.errors import ConfigError, TrackingError
from medr1.tracking.address import RUN_FILE, StoredRun, absolute_uri, is_server, stored_run, without_password
from medr1.tracking.completions_table import TABLES_TAG, CompletionsTable, stored_rows
from medr1.tracking.offline_queue import (
    FOLDER,
    METRICS_PER_BATCH,
    OfflineQueue,
    configure_mlflow,
    has_pending_calls,
    is_connection_error,
    short_reason,
)

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
    from mlflow.tracking import MlflowClient
    from PIL import Image

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

# The tag by which MLflow shows a run below its parent run. Its value is the parent's run id.
PARENT_TAG = "mlflow.parentRunId"

_DIRECTORY_TAG = "run_directory"
_TOKEN_TAG, _TOKEN_FILE = "run_token", ".mlflow-token"
_CHARS_PER_PARAM, _PARAMS_PER_BATCH, _TAG_CHARS, _DIGEST_CHARS = 6000, 100, 8000, 36  # MLflow's limits
_NAME = r"[\w. -]+"  # of the characters that MLflow takes in names, those that mean nothing in paths
_DESCRIPTION_TAG = "mlflow.note.content"
_FLUSH_SECONDS = 5.0
_LOCK_SECONDS = 300.0
# Opens the experiment in MLflow's view for model training (runs and charts), not in the one for chat applications.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


class NullTracker:
    """Tracks nothing, for ``tracking=none``. Has the interface of ``Tracker``."""

    run_id = ""

    def _ignore(self, *args: Any, **kwargs: Any) -> None: ...

    log_params = log_metrics = set_tags = log_artifact = log_text = log_completions = _ignore
    log_dataset = describe = register_model = log_system_metrics = flush = end_run = __exit__ = _ignore

    def ui_command(self) -> str:
        return ""

    def __enter__(self) -> Self:
        return self


class Tracker:
    """One run in MLflow. As a context manager it ends the run: FINISHED, KILLED after a signal, or FAILED."""

    def __init__(
        self,
        queue: OfflineQueue,
        uri: str,
        stored: StoredRun,
        run: Run | None,
        rows: Sequence[dict[str, Any]] = (),
        *,
        last_steps: Mapping[str, int] | None = None,
    ) -> None:
        """Use ``start``. ``run`` and ``rows`` (of the completions table) are those of a resumed run in MLflow.

        ``last_steps``: the last step of each curve of a resumed run that MLflow cannot show, because its server does
        not answer. Its parameters have been logged, and completions get a table of their own.
        """
        self.run_id, self.uri = stored.run_id, uri
        self._queue, self._stored = queue, stored
        self._buffer: list[tuple[str, float, int, int]] = []
        self._flushed = time.monotonic()
        # The last step of each metric before the run was resumed. Steps up to it are computed again, but not logged.
        self._logged = {metric.key: metric.step for metric in run.data.to_proto().metrics} if run else {}
        self._logged |= last_steps or {}
        self._logs_params = last_steps is None
        self._params: dict[str, str] = dict(run.data.params) if run else {}
        tables = run.data.tags.get(TABLES_TAG, "[]") if run else "[]"
        self._completions = CompletionsTable(queue, rows, tables, begins_anew=last_steps is not None)
        self._status: Status | None = None
        self._monitor: SystemMetricsMonitor | None = None

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
        resend_command: str = "",
        require_server: bool = True,
        last_steps: Callable[[], Mapping[str, int]] = dict,
    ) -> Tracker:
        """Starts a run, or resumes ``run_id``, and writes its id to ``run_dir``/mlflow.json.

        If ``run_id`` was tracked in another database or server, as mlflow.json says, it is continued in ``uri`` if it
        is there, as after a move, and else a new run is started.

        Any number of processes may start at once on one new SQLite file. If the server becomes unreachable later, calls
        are queued in ``run_dir``, and ``resend_command`` is named to the user. With ``require_server=False``, the calls
        of a resumed run are queued from the start if its server does not answer. ``last_steps`` then says up to
        which step of each curve it has logged.

        Raises:
            ConfigError: the URI names no database or server, the experiment was deleted, the run does not exist.
            TrackingError: the server does not answer.
        """
        uri, database = absolute_uri(uri)
        server = without_password(uri)
        configure_mlflow(short_timeouts=True)
        from mlflow.tracking import MlflowClient

        before = stored_run(run_dir)
        has_moved = before is not None and before.run_id == run_id and not before.is_in(uri)
        if before and before.run_id == run_id and not has_moved:
            experiment = before.experiment  # a repeated sweep need not name it again
        run: Run | None = None
        rows: list[dict[str, Any]] = []
        try:
            if database is not None:
                if run_id is not None and not has_moved and not database.exists():
                    raise ConfigError(
                        f"there is no {database}, in which {run_dir} was tracked: give its new place, "
                        "tracking.uri=sqlite:////PATH, or tracking.enabled=false"
                    )
                database.parent.mkdir(parents=True, exist_ok=True)
            artifacts = (database.parent / "mlartifacts").as_uri() if database else None
            # MLflow creates the schema of a new database, and then the experiment, without a lock.
            with FileLock(f"{database}.lock", timeout=_LOCK_SECONDS) if database else nullcontext():
                client = MlflowClient(tracking_uri=uri)
                experiment_id = _experiment_id(client, server, experiment, artifacts)
            tags = {**(tags or {}), _DIRECTORY_TAG: str(run_dir)}
            found = None if run_id is None else _find_run(client, run_id)
            if before and has_moved and found is None:
                _log_as_new(before, server, run_dir)
                run_id = None
            if run_id is None:
                tags[_TOKEN_TAG] = token = _token(run_dir)
                new = _unrecorded_run(client, experiment_id, token) or client.create_run(
                    experiment_id, tags=tags, run_name=run_name
                )
                stored = StoredRun(server, experiment, new.info.run_id, new.info.experiment_id)
                queue = OfflineQueue(client, stored.run_id, run_dir, server, resend_command)
            else:
                run = _active_run(found, run_id, server, run_dir)
                if has_moved and database is not None:
                    _check_artifacts(run, run_dir)
                stored = StoredRun(server, experiment, run_id, run.info.experiment_id)
                queue = OfflineQueue(client, run_id, run_dir, server, resend_command)
                if queue.num_pending:
                    queue.replay()
                    run = client.get_run(run_id)
                rows = stored_rows(client, run_id)
                client.update_run(run_id, status="RUNNING")
                queue.set_tags(tags)
        except ImportError as error:
            raise TrackingError(
                f"tracking.uri={server}: {error}; PostgreSQL needs postgresql+psycopg2://... and psycopg2-binary"
            ) from error
        except Exception as error:
            if getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
                raise ConfigError(
                    f"MLflow refuses tracking.uri={server} tracking.experiment={experiment!r}: {short_reason(error)}"
                ) from error
            if database is not None or not is_connection_error(error):
                raise
            if require_server or has_moved or run_id is None or before is None or not is_server(uri):
                raise TrackingError(
                    f"MLflow at {server} does not answer ({short_reason(error)}): start it, correct tracking.uri, or "
                    "use tracking.enabled=false"
                ) from error
            queue = OfflineQueue(MlflowClient(tracking_uri=uri), run_id, run_dir, server, resend_command)
            queue.mark_offline(error)
            return cls(queue, uri, replace(before, uri=server), None, last_steps=last_steps())
        stored.write(run_dir)
        return cls(queue, uri, stored, run, rows)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Logs a nested config under dotted names. A value beyond MLflow's limit is cut and ends with its hash.

        MLflow's parameters cannot change: a value that differs after a resume is logged as the tag ``resumed.NAME``, if
        the server answered when the run was resumed.
        """
        if not self._logs_params:
            return
        flat, logged = _flatten(values), self._params
        if changed := {f"resumed.{key}": value for key, value in flat.items() if logged.get(key, value) != value}:
            self.set_tags(changed)
        items = [(key, value) for key, value in flat.items() if key not in logged]
        for start in range(0, len(items), _PARAMS_PER_BATCH):
            self._queue.log_params(dict(items[start : start + _PARAMS_PER_BATCH]))

    def log_metrics(self, values: Mapping[str, float], step: int, *, replaces: bool = False) -> None:
        """Buffers one point of each metric. The buffer is sent when it is full, or with the first point after 5 s.

        Steps that a resumed run has logged are dropped, unless the new value ``replaces`` the logged one: MLflow shows
        the newest value of the largest step. NaN stays NaN, and a database stores infinity as the largest
        float.
        """
        now = int(time.time() * 1000)
        for key, value in values.items():
            if replaces or key not in self._logged or step > self._logged[key]:
                self._buffer.append((key, float(value), now, step))
        if len(self._buffer) >= METRICS_PER_BATCH or time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sends the buffered points. Called before a checkpoint is written, so that a kill leaves no gap in a curve."""
        self._queue.log_metrics(self._buffer)
        self._buffer = []
        self._flushed = time.monotonic()

    def set_tags(self, values: Mapping[str, str]) -> None:
        self._queue.set_tags(values)

    def log_dataset(self, name: str, digest: str, source: str, profile: Mapping[str, Any], context: str) -> None:
        """Logs the data of the run. ``digest`` is cut to MLflow's limit; ``context`` says what they are used for."""
        described = {"source": json.dumps({"uri": source}), "profile": json.dumps(dict(profile))}
        dataset = {"name": name, "digest": digest[:_DIGEST_CHARS], "source_type": "medr1", **described}
        self._queue.log_input(dataset, context)

    def describe(self, markdown: str) -> None:
        """Sets the text that MLflow shows on top of the run's page. Lines beyond MLflow's limit are left out."""
        while len(markdown) > _TAG_CHARS:
            markdown = markdown.rpartition("\n")[0]
        self.set_tags({_DESCRIPTION_TAG: markdown})

    def register_model(self, name: str, directory: Path) -> None:
        """Logs a directory of weights and makes it the newest version of a registered model."""
        self.log_artifact(directory, directory.name)
        self._queue.register(name, directory.name)

    def log_system_metrics(self) -> None:
        """Logs the use of processor, memory, disk, network and GPU as MLflow's system metrics until the run ends.

        While a server cannot be reached they are lost: MLflow's monitor does not queue them, and it stops.
        """
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        self._monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
            self.run_id, resume_logging=bool(self._logged), tracking_uri=self.uri
        )
        self._monitor.start()  # type: ignore[no-untyped-call]

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Logs a file, or the content of a directory, under ``folder``."""
        self._queue.log_artifact(path, folder)

    def log_text(self, content: str, path: str) -> None:
        self._queue.log_text(content, path)

    def log_completions(
        self, rows: Sequence[Mapping[str, Any]], images: Sequence[Sequence[Image.Image]], step: int
    ) -> None:
        """Appends completions with one image each to the table completions.json, except for steps logged before."""
        self._completions.append(rows, images, step)

    def end_run(self, status: Status = "FINISHED") -> None:
        """Sends the buffer and ends the run. The status of the first call counts."""
        self.flush()
        if self._monitor is not None:
            self._monitor.finish()  # type: ignore[no-untyped-call]
            self._monitor = None
        if self._status is None:
            self._queue.set_terminated(status)
            self._status = status

    def ui_command(self) -> str:
        """The command that opens MLflow on the database and the run's address there, or its address on the server."""
        if is_server(self.uri):
            return self._stored.url
        uri = shlex.quote(without_password(self.uri))
        return f"mlflow ui --backend-store-uri {uri} --host 127.0.0.1 --port 5000  # {self._stored.url}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.end_run()
            return
        # A signal raises KeyboardInterrupt, or SystemExit where Lightning handles it.
        status: Status = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
        try:
            self.end_run(status)
        except Exception as problem:  # must not hide the error of the run
            error.add_note(f"MLflow run {self.run_id} could not be ended as {status}: {problem!r}")


AnyTracker = Tracker | NullTracker


def _experiment_id(client: MlflowClient, server: str, experiment: str, artifacts: str | None) -> str:
    """The id of the experiment, which is created if there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(experiment)
    if found is None:
        try:
            return client.create_experiment(experiment, artifact_location=artifacts, tags=_EXPERIMENT_TAGS)
        except MlflowException as error:
            # Another process on the same server may have created it in the meantime.
            found = client.get_experiment_by_name(experiment)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f"the experiment {experiment!r} was deleted in {server}: choose another name, or "
            f"MLFLOW_TRACKING_URI=... mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return str(found.experiment_id)


def _token(run_dir: Path) -> str:
    """Identifies the run before it has an id. The path does not: a directory can be removed and made again, and another
    machine may have one of the same path. Used for one run alone: with mlflow.json there is a new one."""
    file = run_dir / _TOKEN_FILE
    if not file.is_file() or (run_dir / RUN_FILE).exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        write_text(file, uuid4().hex)
    return file.read_text(encoding="utf-8")


def _unrecorded_run(client: MlflowClient, experiment_id: str, token: str) -> Run | None:
    """The run of a process that was killed after it had created the run and before it wrote mlflow.json."""
    query = f'tags.{_TOKEN_TAG} = "{token}" and attributes.status = "RUNNING"'
    found: list[Run] = client.search_runs([experiment_id], query, max_results=1)
    return found[0] if found else None


def _check_artifacts(run: Run, run_dir: Path) -> None:
    """A database has the absolute path of the files of its runs, which therefore cannot be moved with it."""
    files = Path(unquote(urlsplit(run.info.artifact_uri).path))
    if len(files.parents) > 1 and not files.parents[1].is_dir():
        raise ConfigError(
            f"the database of {run_dir} has moved, and expects the files of its runs in {files.parents[1]}: move them "
            f"back there, or remove {run_dir / RUN_FILE} to track it as a new run"
        )


def _find_run(client: MlflowClient, run_id: str) -> Run | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _log_as_new(before: StoredRun, server: str, run_dir: Path) -> None:
    waiting = f"; calls that {before.uri} never got stay in {run_dir / FOLDER}"
    log.warning(
        "%s was tracked in %s as %s; %s does not have this run and gets a new one%s",
        *(run_dir, before.uri, before.run_id, server),
        waiting if has_pending_calls(run_dir, before) else "",
    )


def _active_run(run: Run | None, run_id: str, server: str, run_dir: Path) -> Run:
    remedy = f"remove {run_dir / RUN_FILE} to track it as a new run"
    if run is None:
        raise ConfigError(f"{server} has no run {run_id}: correct the tracking URI, or {remedy}")
    if run.info.lifecycle_stage != "active":
        raise ConfigError(f"run {run_id} was deleted in {server}: restore it there, or {remedy}")
    return run


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted names, and the values as in JSON (null, true, 1e-06, [1, 2]) except that text has no quotes.

    A mapping with keys that MLflow does not take in names, such as values of the user's data, is one value.
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and all(re.fullmatch(_NAME, str(part)) for part in value):
            flat |= _flatten(value, f"{name}.")
        else:
            plain = value.value if isinstance(value, Enum) else value
            text = plain if isinstance(plain, str) else json.dumps(plain, default=str, ensure_ascii=False)
            if len(text) > _CHARS_PER_PARAM:
                digest = hashlib.sha256(text.encode()).hexdigest()[:16]
                mark = f" ... [cut: {len(text)} characters, sha256 {digest}]"
                text = text[: _CHARS_PER_PARAM - len(mark)] + mark
            flat[name] = text
    return flat
