"""How queued calls are combined before they are replayed, and how long a server without an answer is waited for."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient

from medr1.errors import TrackingError
from medr1.tracking import offline_queue
from medr1.tracking.offline_queue import METRICS_PER_BATCH, OfflineQueue, _merged, configure_mlflow, is_reachable
from medr1.tracking.tracker import Tracker

RETRIES, TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"


def metrics(*values: int) -> dict[str, Any]:
    return {"do": "metrics", "points": [["loss", value, 0, value] for value in values]}


def upload(path: str) -> dict[str, Any]:
    return {"do": "artifact", "path": path, "folder": ""}


TAG = {"do": "tags", "values": {"a": "b"}}


def test_consecutive_metrics_are_one_call_and_the_last_upload_of_a_file_replaces_the_earlier_ones() -> None:
    calls = [upload("a"), metrics(1), metrics(2, 3), TAG, upload("b"), upload("a"), metrics(4)]
    assert list(_merged(calls)) == [
        (3, metrics(1, 2, 3)),
        (1, TAG),
        (1, upload("b")),
        (1, upload("a")),
        (1, metrics(4)),
    ]


CALLS = st.one_of(
    st.integers(1, METRICS_PER_BATCH).map(lambda count: metrics(*range(count))),
    st.sampled_from(["a", "b"]).map(upload),
    st.just(TAG),
)


@given(st.lists(CALLS, max_size=12))
def test_every_call_is_counted_once_and_no_point_is_lost(calls: list[dict[str, Any]]) -> None:
    merged = list(_merged(calls))
    assert sum(count for count, _ in merged) == len(calls)

    def points(some: Any) -> list[Any]:
        return [point for call in some if call["do"] == "metrics" for point in call["points"]]

    sent = [call for _, call in merged]
    assert points(sent) == points(calls)
    assert all(len(points([call])) <= METRICS_PER_BATCH for call in sent)
    assert {call["path"] for call in sent if call["do"] == "artifact"} == {
        call["path"] for call in calls if call["do"] == "artifact"
    }


class Silent:
    """A server that accepts connections and never answers, and a queue of calls to it with a clock of its own."""

    def __init__(self, listening: socket.socket, run_dir: Path, patch: pytest.MonkeyPatch) -> None:
        self.listening, self.seconds = listening, 0.0
        listening.setblocking(False)
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        patch.setattr(offline_queue, "time", SimpleNamespace(monotonic=lambda: self.seconds, time=time.time))
        self.queue = OfflineQueue(MlflowClient(tracking_uri=self.url), "0" * 32, run_dir, self.url)

    def connections(self) -> int:
        """The number of connections since the last call. They are closed."""
        count = 0
        while True:
            try:
                self.listening.accept()[0].close()
            except BlockingIOError:
                return count
            count += 1


@pytest.fixture
def silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Silent]:
    """Calls end after a second, so that they take seconds together."""
    monkeypatch.setenv(TIMEOUT, "1")
    monkeypatch.setitem(offline_queue._PROBE_TIMEOUTS, TIMEOUT, "1")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield Silent(listening, tmp_path, monkeypatch)


def test_a_server_that_accepts_connections_and_never_answers_delays_one_call(
    silent: Silent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(RETRIES, "1")
    queue = silent.queue
    queue.set_tags({"a": "1"})
    assert (silent.connections(), queue.num_pending) == (2, 1), "tried again once, then queued"
    silent.seconds = 9.9
    queue.log_metrics([("loss", 1.0, 0, 0)])
    queue.log_params({"seed": "1"})
    assert (silent.connections(), queue.num_pending) == (0, 3), "queued at once"
    silent.seconds = 10.0
    queue.set_tags({"b": "1"})
    assert (silent.connections(), queue.num_pending) == (1, 4)
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("medr1")]
    assert f"MLflow at {silent.url} does not answer (Read timed out" in said and "the run goes on" in said


def test_at_the_start_of_a_run_a_server_that_never_answers_is_an_error(
    silent: Silent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RETRIES, "0")
    with pytest.raises(TrackingError, match=f"MLflow at {silent.url} does not answer .*timed out"):
        Tracker.start(silent.url, "tests", "a run", tmp_path)


def test_the_waits_between_two_attempts_double_up_to_five_minutes(
    silent: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent.listening.close()  # refuses connections, which takes no time
    attempts: list[float] = []
    send = MlflowClient.get_run

    def probe(client: MlflowClient, run_id: str) -> object:
        attempts.append(silent.seconds)
        return send(client, run_id)

    monkeypatch.setattr(MlflowClient, "get_run", probe)
    monkeypatch.setenv(RETRIES, "0")
    for seconds in range(0, 1500, 5):
        silent.seconds = seconds
        silent.queue.set_tags({"a": "1"})
    assert [b - a for a, b in pairwise([0, *attempts])] == [10, 20, 40, 80, 160, 300, 300, 300]
    assert silent.queue.num_pending == 300
    silent.queue.set_terminated("FINISHED")
    assert attempts[-1] == silent.seconds, "the last call does not wait"


def test_calls_fail_after_seconds_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (RETRIES, TIMEOUT):
        monkeypatch.setenv(name, "")  # so that what is set below does not stay
        monkeypatch.delenv(name)
    configure_mlflow(short_timeouts=False)
    assert RETRIES not in os.environ and TIMEOUT not in os.environ
    configure_mlflow(short_timeouts=True)
    assert (1 + int(os.environ[RETRIES])) * int(os.environ[TIMEOUT]) == 30
    probed: list[str] = []
    assert is_reachable(lambda: probed.extend((os.environ[RETRIES], os.environ[TIMEOUT]))) and probed == ["0", "5"]
    monkeypatch.setenv(TIMEOUT, "120")
    configure_mlflow(short_timeouts=True)
    assert os.environ[TIMEOUT] == "120"
