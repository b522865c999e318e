"""What is on its way to MLflow. A server that goes away in the middle of a run costs neither the run nor its record.

What cannot be sent is kept in the run directory, in ``unsent/``, and sent in order by the first call that finds the
server again, or by a later process. Sending twice changes nothing: MLflow drops a point of a curve that it has with
the same step, time and value, takes a parameter again with its own value, and replaces tags, files and the status.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medr1.atomic_write import atomic_write
from medr1.errors import TrackingError
from medr1.tracking.address import StoredRun, without_password

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

METRICS_A_BATCH = 1000  # MLflow's limit
FOLDER = "unsent"

_RETRIES, _TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
# MLflow's own are minutes for a call, in which training would stand still. What the environment says goes before.
_LIMITS = {_RETRIES: "1", _TIMEOUT: "15"}
_LOOK = {_RETRIES: "0", _TIMEOUT: "5"}
_FIRST_WAIT, _LONGEST_WAIT = 10.0, 300.0  # seconds between two looks for a server that is away
_TRANSIENT = (408, 429, 500, 502, 503, 504)  # status codes: what MLflow's client itself takes for worth another try

Call = Mapping[str, Any]


class Outbox:
    """Sends the calls of one run, in order, and keeps what cannot be sent."""

    def __init__(self, client: MlflowClient, run_id: str, run_dir: Path, place: str, remedy: str = "") -> None:
        """``place`` is the server as it is named to the user, ``remedy`` the command that sends the rest later."""
        self._client, self._run_id, self._run_dir = client, run_id, run_dir.absolute()
        self._place, self._remedy = place, remedy
        self._folder, self._file = self._run_dir / FOLDER, _kept_file(self._run_dir, run_id)
        self._files = self._folder / "files"
        self._count = len(_whole_lines(self._file))
        self._away, self._look_at, self._wait = False, 0.0, _FIRST_WAIT

    @property
    def kept(self) -> int:
        """How many calls wait for the server."""
        return self._count

    def metrics(self, points: Sequence[tuple[str, float, int, int]]) -> None:
        """(name, value, time in ms, step) each."""
        for start in range(0, len(points), METRICS_A_BATCH):
            self._send({"do": "metrics", "points": points[start : start + METRICS_A_BATCH]})

    def params(self, values: Mapping[str, str]) -> None:
        """At most as many as MLflow takes in one batch."""
        self._send({"do": "params", "values": values})

    def tags(self, values: Mapping[str, str]) -> None:
        self._send({"do": "tags", "values": values})

    def artifact(self, path: Path, folder: str) -> None:
        """A file, or a directory's content. What is kept is its place: it is read when it is sent."""
        inside = path.absolute().is_relative_to(self._run_dir)
        place = path.absolute().relative_to(self._run_dir) if inside else path.absolute()
        self._send({"do": "artifact", "path": str(place), "folder": folder})

    def made_file(self, path: str, write: Callable[[Path], object]) -> None:
        """A file that stands nowhere else, as ``path`` in MLflow; ``write`` makes it."""
        name, folder = Path(path).name, str(Path(path).parent) if "/" in path else ""
        with tempfile.TemporaryDirectory() as place:
            made = Path(place) / name
            write(made)
            if self._try({"do": "artifact", "path": str(made), "folder": folder}):
                return
            kept = self._files / path
            with atomic_write(kept) as file:
                file.write(made.read_bytes())
        self._keep({"do": "artifact", "path": str(kept.relative_to(self._run_dir)), "folder": folder})

    def end(self, status: str) -> None:
        """The run's status. Looks for the server in any case, and says what is left."""
        self._look_at = 0.0
        self._send({"do": "end", "status": status, "time": int(time.time() * 1000)})
        if self._count:
            log.warning(
                "MLflow at %s is still away: %d calls wait in %s%s",
                *(self._place, self._count, self._folder, f"; send them with: {self._remedy}" if self._remedy else ""),
            )

    def deliver(self) -> None:
        """Sends all that waits.

        Raises:
            TrackingError: MLflow refuses it. Whatever MLflow raises when it does not answer: see ``is_away``.
        """
        waiting = _whole_lines(self._file)
        done = 0
        try:
            for count, call in _together([json.loads(line) for line in waiting]):
                self._perform(call)
                done += count
        except Exception as error:
            if is_away(error):
                raise
            raise TrackingError(
                f"MLflow at {self._place} refuses what {self._file} holds ({error}); mend it there, or remove the "
                "file to go on without"
            ) from error
        finally:
            self._count = len(waiting) - done
            if done and self._count:
                with atomic_write(self._file) as file:
                    file.writelines(line + b"\n" for line in waiting[done:])
        self._clear()

    def mark_offline(self, error: Exception) -> None:
        """Notes that the server is away, says so once, and lets some time pass before the next look."""
        if not self._away:
            log.warning(
                "MLflow at %s does not answer (%s): the run goes on, and what is to be logged waits in %s",
                *(self._place, reason(error), self._folder),
            )
        self._wait = min(2 * self._wait, _LONGEST_WAIT) if self._away else _FIRST_WAIT
        self._away, self._look_at = True, time.monotonic() + self._wait

    def _send(self, call: Call) -> None:
        if not self._try(call):
            self._keep(call)

    def _try(self, call: Call) -> bool:
        """Sends what waits and then the call; False where the server is away, or was lately."""
        if self._away and time.monotonic() < self._look_at:
            return False
        try:
            if self._away:
                with _environment(_LOOK):
                    self._client.get_run(self._run_id)
            if self._count:
                self.deliver()
            self._perform(call)
        except Exception as error:
            # A refusal of what waited, which is safe on disk, ends no run: only the command that sends it later.
            refused = isinstance(error, TrackingError) or (self._away and hasattr(error, "error_code"))
            if not refused and not is_away(error):
                raise
            self.mark_offline(error)
            return False
        if self._away:
            log.warning("MLflow at %s answers again; what waited is sent", self._place)
            self._away = False
        return True

    def _keep(self, call: Call) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(call) + "\n")
        self._count += 1

    def _clear(self) -> None:
        self._file.unlink(missing_ok=True)
        if self._files.exists():
            shutil.rmtree(self._files)
        if self._folder.exists() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _perform(self, call: Call) -> None:
        from mlflow.entities import Metric, Param, RunTag

        match call["do"]:
            case "metrics":
                self._client.log_batch(self._run_id, metrics=[Metric(*point) for point in call["points"]])
            case "params":
                self._client.log_batch(self._run_id, params=[Param(*item) for item in call["values"].items()])
            case "tags":
                self._client.log_batch(self._run_id, tags=[RunTag(*item) for item in call["values"].items()])
            case "artifact":
                self._upload(self._run_dir / call["path"], call["folder"])
            case "end":
                self._client.set_terminated(self._run_id, call["status"], call["time"])
            case other:
                raise ValueError(f"no call {other!r}")

    def _upload(self, path: Path, folder: str) -> None:
        if not path.exists() and self._count:
            log.warning("%s was to be sent to MLflow and is no longer there", path)
            return
        upload = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        upload(self._run_id, str(path), folder or None)


def unsent(run_dir: Path, run: StoredRun | None) -> bool:
    """Whether something in a run directory waits to be sent."""
    return run is not None and bool(_whole_lines(_kept_file(run_dir, run.run_id)))


def send_unsent(uri: str, run: StoredRun, run_dir: Path) -> int:
    """Sends what waits in the directory of a run that has ended; how many calls. Takes as long as MLflow allows.

    Raises:
        TrackingError: the server does not answer, or refuses it.
    """
    _quieten()
    from mlflow.tracking import MlflowClient

    client, place = MlflowClient(tracking_uri=uri), without_password(uri)
    outbox = Outbox(client, run.run_id, run_dir, place)
    count = outbox.kept
    try:
        with _environment(_LOOK):
            client.get_run(run.run_id)
        outbox.deliver()
    except Exception as error:
        if not is_away(error):
            raise
        raise TrackingError(
            f"MLflow at {place} does not answer ({reason(error)}): {outbox.kept} calls wait in {run_dir / FOLDER}; "
            "start it and give the same command again"
        ) from error
    return count


def be_brief() -> None:
    """Sets how long MLflow's client waits for a server, where the environment does not."""
    for name, value in _LIMITS.items():
        os.environ.setdefault(name, value)
    _quieten()


def _quieten() -> None:
    """Of MLflow, its database and its connections, only what goes wrong. MLflow reads it when it is imported."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    for name, level in (("mlflow", "WARNING"), ("alembic", "WARNING"), ("urllib3.connectionpool", "ERROR")):
        logging.getLogger(name).setLevel(level)  # the last would have a line for each attempt


def answers(ask: Callable[[], object]) -> bool:
    """Whether the server answers one short question."""
    try:
        with _environment(_LOOK):
            ask()
    except Exception as error:
        if not is_away(error):
            raise
        return False
    return True


def is_away(error: BaseException) -> bool:
    """Whether an error of MLflow's client says that the server, or its database, cannot be reached just now."""
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


def reason(error: BaseException) -> str:
    """The last words of a long message, which are the operating system's."""
    return str(error).rstrip("\n').\"").rsplit(": ", 1)[-1]


def _together(calls: Sequence[Call]) -> Iterator[tuple[int, Call]]:
    """The calls with their number; points that were kept in many small batches go in large ones, and of a file that was
    kept several times only the last, which is the one that is there."""
    last = {(call["path"], call["folder"]): i for i, call in enumerate(calls) if call["do"] == "artifact"}
    points: list[Any] = []
    count = 0
    for i, call in enumerate(calls):
        count += 1
        if call["do"] == "metrics":
            points += call["points"]
            following = calls[i + 1] if i + 1 < len(calls) else None
            if (
                following is None
                or following["do"] != "metrics"
                or len(points) + len(following["points"]) > METRICS_A_BATCH
            ):
                yield count, {"do": "metrics", "points": points}
                points, count = [], 0
        elif call["do"] != "artifact" or last[call["path"], call["folder"]] == i:
            yield count, call
            count = 0


def _kept_file(run_dir: Path, run_id: str) -> Path:
    return run_dir / FOLDER / f"{run_id}.jsonl"


def _whole_lines(file: Path) -> list[bytes]:
    """The lines of a file; one that a kill has left half written is cut off."""
    if not file.is_file():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with file.open("r+b") as torn:
            torn.truncate(len(whole))
    return whole.splitlines()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
