"""How queued calls are combined before they are replayed."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from medr1.tracking.offline_queue import METRICS_PER_BATCH, _merged


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
