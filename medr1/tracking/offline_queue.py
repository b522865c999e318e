"""Calls to an MLflow server that may be unreachable for a while.

Calls that cannot be sent are appended to ``unsent/RUN_ID.jsonl`` in the run directory. They are replayed in order by
the first call that reaches the server again, or by a later process. A repeated call has no effect: MLflow ignores a
metric point that it has already, accepts a parameter again with the same value, and replaces tags, files and status.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medr1.atomic_write import atomic_write, drop_torn_line, remove
from medr1.errors import TrackingError
from medr1.tracking.address import StoredRun, absolute_uri, without_password

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

METRICS_PER_BATCH = 1000  # MLflow's limit
FOLDER = "unsent"

_RETRIES, _TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
_CALL_TIMEOUTS = {_RETRIES: "1", _TIMEOUT: "15"}
_PROBE_TIMEOUTS = {_RETRIES: "0", _TIMEOUT: "5"}
_FIRST_WAIT, _LONGEST_WAIT = 10.0, 300.0  # seconds between two attempts to reach the server
_TRANSIENT = (408, 429, 500, 502, 503, 504)  # the status codes that MLflow's client retries

Call = Mapping[str, Any]


class OfflineQueue:
    """Sends the MLflow calls of one run in order, and queues them while the server is unreachable."""

    def __init__(self, client: MlflowClient, run_id: str, run_dir: Path, server: str, resend_command: str = "") -> None:
        """``server`` is the URI in messages, ``resend_command`` the command that replays the queue later."""
        self._client, self._run_id, self._run_dir = client, run_id, run_dir.absolute()
        self._server, self._resend_command = server, resend_command
        self._file = _queue_file(self._run_dir, run_id)
        self._num_pending = len(_queued_lines(self._file))
        self._is_offline, self._next_attempt, self._wait = False, 0.0, _FIRST_WAIT

    @property
    def num_pending(self) -> int:
        """The number of queued calls."""
        return self._num_pending

    def log_metrics(self, points: Sequence[tuple[str, float, int, int]]) -> None:
        """Logs points (name, value, time in ms, step)."""
        for start in range(0, len(points), METRICS_PER_BATCH):
            self._send_or_queue({"do": "metrics", "points": points[start : start + METRICS_PER_BATCH]})

    def log_params(self, values: Mapping[str, str]) -> None:
        """Logs parameters, no more than MLflow takes in one batch."""
        self._send_or_queue({"do": "params", "values": values})

    def set_tags(self, values: Mapping[str, str]) -> None:
        self._send_or_queue({"do": "tags", "values": values})

    def log_input(self, dataset: Mapping[str, str], context: str) -> None:
        """Logs a dataset: the fields of ``mlflow.entities.Dataset``, and what it is used for."""
        self._send_or_queue({"do": "input", "dataset": dict(dataset), "context": context})

    def register(self, name: str, folder: str) -> None:
        """Makes an artifact folder of the run the newest version of a registered model."""
        self._send_or_queue({"do": "register", "name": name, "folder": folder})

    def log_artifact(self, path: Path, folder: str) -> None:
        """Logs a file, or the content of a directory. The queue has its path, not a copy."""
        path = path.absolute()
        if path.is_relative_to(self._run_dir):
            path = path.relative_to(self._run_dir)
        self._send_or_queue({"do": "artifact", "path": str(path), "folder": folder})

    def log_text(self, content: str, path: str) -> None:
        self.log_new_file(path, lambda file: file.write_text(content, encoding="utf-8"))

    def log_new_file(self, path: str, write: Callable[[Path], object]) -> None:
        """Logs a file that ``write`` makes, as ``path`` in MLflow. The queue keeps a copy."""
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as temporary:
            made = Path(temporary, name)
            write(made)
            if self._send({"do": "artifact", "path": str(made), "folder": folder}):
                return
            copy = self._file.parent / "files" / path
            with atomic_write(copy) as file:
                file.write(made.read_bytes())
        self._queue({"do": "artifact", "path": str(copy.relative_to(self._run_dir)), "folder": folder})

    def set_terminated(self, status: str) -> None:
        """Sets the status of the run. Tries to reach the server in any case, and warns if calls stay queued."""
        self._next_attempt = 0.0
        self._send_or_queue({"do": "end", "status": status, "time": int(time.time() * 1000)})
        if self._num_pending:
            command = f"; send them with: {self._resend_command}" if self._resend_command else ""
            waiting = (self._server, self._num_pending, self._file.parent, command)
            log.warning("MLflow at %s is still unreachable: %d calls are queued in %s%s", *waiting)

    def replay(self) -> None:
        """Sends all queued calls.

        Raises:
            TrackingError: MLflow rejects one of them.
            Exception: the connection error of MLflow's client; the calls that were not sent stay queued.
        """
        lines, sent = _queued_lines(self._file), 0
        try:
            for count, call in _merged([json.loads(line) for line in lines]):
                self._execute(call)
                sent += count
        except Exception as error:
            if is_connection_error(error):
                raise
            raise TrackingError(
                f"MLflow at {self._server} rejects a call in {self._file} ({error}); correct the run in MLflow, or "
                "remove the file to drop the queued calls"
            ) from error
        finally:
            self._num_pending = len(lines) - sent
            if sent and self._num_pending:
                with atomic_write(self._file) as file:
                    file.writelines(line + b"\n" for line in lines[sent:])
        self._file.unlink(missing_ok=True)
        remove(self._file.parent / "files")
        if self._file.parent.exists() and not any(self._file.parent.iterdir()):
            self._file.parent.rmdir()

    def mark_offline(self, error: Exception) -> None:
        """Queues all calls until the next attempt to reach the server, and warns at the first time."""
        if not self._is_offline:
            details = (self._server, short_reason(error), self._file.parent)
            log.warning("MLflow at %s does not answer (%s): the run goes on, its calls are queued in %s", *details)
        self._wait = min(2 * self._wait, _LONGEST_WAIT) if self._is_offline else _FIRST_WAIT
        self._is_offline, self._next_attempt = True, time.monotonic() + self._wait

    def _send_or_queue(self, call: Call) -> None:
        if not self._send(call):
            self._queue(call)

    def _send(self, call: Call) -> bool:
        """Replays the queue, then sends the call. False if the server is unreachable, or was so a moment ago."""
        if self._is_offline and time.monotonic() < self._next_attempt:
            return False
        try:
            if self._is_offline:
                with _environment(_PROBE_TIMEOUTS):
                    self._client.get_run(self._run_id)
            if self._num_pending:
                self.replay()
            self._execute(call)
        except Exception as error:
            # A queued call that MLflow rejects is an error of the command that replays the queue, not of the run.
            is_rejected = isinstance(error, TrackingError) or (self._is_offline and hasattr(error, "error_code"))
            if not is_rejected and not is_connection_error(error):
                raise
            self.mark_offline(error)
            return False
        if self._is_offline:
            log.warning("MLflow at %s answers again; the queued calls are sent", self._server)
            self._is_offline = False
        return True

    def _queue(self, call: Call) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(call) + "\n")
        self._num_pending += 1

    def _execute(self, call: Call) -> None:
        from mlflow.entities import Metric, Param, RunTag

        match call["do"]:
            case "metrics":
                self._client.log_batch(self._run_id, metrics=[Metric(*point) for point in call["points"]])
            case "params":
                self._client.log_batch(self._run_id, params=[Param(*item) for item in call["values"].items()])
            case "tags":
                self._client.log_batch(self._run_id, tags=[RunTag(*item) for item in call["values"].items()])
            case "artifact":
                path = self._run_dir / call["path"]
                if not path.exists() and self._num_pending:
                    log.warning("%s was queued for MLflow and no longer exists", path)
                    return
                upload = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
                upload(self._run_id, str(path), call["folder"] or None)
            case "input":
                self._log_input(call["dataset"], call["context"])
            case "register":
                self._register(call["name"], call["folder"])
            case "end":
                self._client.set_terminated(self._run_id, call["status"], call["time"])
            case other:
                raise ValueError(f"unknown call {other!r}")

    def _log_input(self, dataset: Mapping[str, str], context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        inputs = [DatasetInput(Dataset(**dataset), [InputTag(MLFLOW_DATASET_CONTEXT, context)])]
        try:
            self._client.log_inputs(self._run_id, inputs)
        except MlflowException as error:
            # MLflow looks for the dataset, then adds it. If another run adds it in between, MLflow rejects the call
            # with this code; the second call finds the dataset.
            if error.error_code != "BAD_REQUEST":
                raise
            self._client.log_inputs(self._run_id, inputs)

    def _register(self, name: str, folder: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = self._client.search_model_versions(f"run_id='{self._run_id}'")
        if any(version.name == name for version in versions):  # of an earlier call, whose reply was lost, or a resume
            return
        root = self._client.get_run(self._run_id).info.artifact_uri
        self._client.create_model_version(name, f"{root}/{folder}", self._run_id)


def has_pending_calls(run_dir: Path, run: StoredRun | None) -> bool:
    return run is not None and bool(_queued_lines(_queue_file(run_dir, run.run_id)))


def replay_pending_calls(uri: str, run: StoredRun, run_dir: Path) -> int:
    """Sends the queued calls of a run that has ended, with MLflow's own timeouts. Returns their number.

    Raises:
        TrackingError: the server does not answer, does not have the run, or rejects a call.
    """
    configure_mlflow(short_timeouts=False)
    from mlflow.tracking import MlflowClient

    client, server = MlflowClient(tracking_uri=absolute_uri(uri)[0]), without_password(uri)
    queue = OfflineQueue(client, run.run_id, run_dir, server)
    count = queue.num_pending
    try:
        with _environment(_PROBE_TIMEOUTS):
            client.get_run(run.run_id)
        queue.replay()
    except Exception as error:
        if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
            raise TrackingError(
                f"{server} has no run {run.run_id}, for which {queue.num_pending} calls are queued: give the server "
                f"that has it with tracking.uri=, or remove {run_dir / FOLDER} to drop the calls"
            ) from error
        if not is_connection_error(error):
            raise
        raise TrackingError(
            f"MLflow at {server} does not answer ({short_reason(error)}): {queue.num_pending} calls are queued in "
            f"{run_dir / FOLDER}; start the server and repeat this command"
        ) from error
    return count


def configure_mlflow(*, short_timeouts: bool) -> None:
    """Sets MLflow's environment variables, except those that the user has set. To be called before mlflow is imported.

    ``short_timeouts``: calls fail after seconds. MLflow's own timeouts are minutes, for which training would stop.
    """
    settings = {"MLFLOW_LOGGING_LEVEL": "WARNING", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    settings["MLFLOW_DISABLE_TELEMETRY"] = "true"  # medical data: nothing is reported unless the user asks for it
    for name, value in (settings | (_CALL_TIMEOUTS if short_timeouts else {})).items():
        os.environ.setdefault(name, value)
    for name, level in (("mlflow", "WARNING"), ("alembic", "WARNING"), ("urllib3.connectionpool", "ERROR")):
        logging.getLogger(name).setLevel(level)  # the last one would log every attempt


def is_reachable(call: Callable[[], object]) -> bool:
    """Whether the server answers ``call`` within seconds."""
    try:
        with _environment(_PROBE_TIMEOUTS):
            call()
    except Exception as error:
        if not is_connection_error(error):
            raise
        return False
    return True


def is_connection_error(error: BaseException) -> bool:
    """Whether MLflow's client could not reach the server or its database."""
    from requests import RequestException
    from sqlalchemy.exc import OperationalError

    found: BaseException | None = error
    while found is not None:
        if isinstance(found, RequestException):
            return found.response is None or found.response.status_code in _TRANSIENT
        if isinstance(found, OperationalError) or getattr(found, "error_code", "") == "TEMPORARILY_UNAVAILABLE":
            return True
        found = found.__cause__ or found.__context__
    return False


def short_reason(error: BaseException) -> str:
    """The last part of a long connection error, which is the message of the operating system."""
    reason = str(error).rstrip("\n').\"").rsplit(": ", 1)[-1]
    return reason + ")" * (reason.count("(") - reason.count(")"))


def _merged(calls: Sequence[Call]) -> Iterator[tuple[int, Call]]:
    """Yields ``(n, call)`` with one call in place of ``n`` queued ones.

    Consecutive metrics are combined up to the batch limit. Of several uploads of one file, only the last is sent.
    """
    last_upload = {(call["path"], call["folder"]): i for i, call in enumerate(calls) if call["do"] == "artifact"}
    points: list[Any] = []
    count = 0
    for i, call in enumerate(calls):
        count += 1
        if call["do"] == "artifact" and last_upload[call["path"], call["folder"]] != i:
            continue
        if call["do"] == "metrics":
            points += call["points"]
            following = calls[i + 1] if i + 1 < len(calls) else {"do": ""}
            if following["do"] == "metrics" and len(points) + len(following["points"]) <= METRICS_PER_BATCH:
                continue
            call, points = {"do": "metrics", "points": points}, []
        yield count, call
        count = 0


def _queue_file(run_dir: Path, run_id: str) -> Path:
    return run_dir / FOLDER / f"{run_id}.jsonl"


def _queued_lines(file: Path) -> list[bytes]:
    if not file.is_file():
        return []
    drop_torn_line(file)
    return file.read_bytes().splitlines()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for the length of the block."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
        os.environ.update(before)
