"""Results come in order, as if they were made one by one; what is made in advance is bounded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medr1.config.enums import Resize
from medr1.data.image_loader import cached_image_loader
from medr1.data.image_size import ImageSize
from medr1.data.images import FileImage
from medr1.data.prefetch import prefetch
from medr1.data.sources.phantoms.records import World, make_records
from medr1.domain.records import BadRecord, Record


@given(st.lists(st.integers()), st.integers(0, 5))
def test_results_come_in_order(items: list[int], num_workers: int) -> None:
    assert list(prefetch(lambda x: 3 * x, items, num_workers)) == [3 * x for x in items]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_as_many_results_as_threads_are_made_in_advance(num_workers: int) -> None:
    """The next ones are made while the caller has one, and none of those after them."""
    made = [threading.Event() for _ in range(10)]
    results = prefetch(lambda i: made[i].set(), range(10), num_workers)
    for taken in range(9):
        next(results)
        last = min(9, taken + num_workers)
        assert made[last].wait(5)
        assert not any(event.is_set() for event in made[last + 1 :])


def test_threads_work_at_the_same_time() -> None:
    together = threading.Barrier(3)
    assert sorted(prefetch(lambda _: together.wait(5), range(3), 3)) == [0, 1, 2]


def test_nothing_is_made_in_advance_without_threads() -> None:
    made: list[int] = []
    results = prefetch(made.append, range(3), 0)
    next(results)
    assert made == [0]


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_an_error_comes_unchanged_where_its_result_would(num_workers: int, tmp_path: Path) -> None:
    """An image that was damaged after the data had been checked."""
    records = make_records(World.TRAIN, 0, 1)[:3]
    (tmp_path / "scan.png").write_bytes(b"no image")
    broken = Record(
        **{name: getattr(records[1], name) for name in ("modality", "question_type", "question", "options", "answer")},
        id="case/7",
        images=(FileImage(tmp_path, "scan.png"),),
        origin="questions.json",
    )
    load = cached_image_loader(ImageSize(Resize.square, 28, 0, 0, 28))
    results = prefetch(load, [records[0], broken, records[2]], num_workers)
    assert next(results)[0].size == (28, 28)
    with pytest.raises(BadRecord) as caught:
        next(results)
    with pytest.raises(BadRecord) as expected:
        load(broken)
    assert str(caught.value) == str(expected.value)
    assert all(part in str(caught.value) for part in ("scan.png", "questions.json", "case/7"))


def test_threads_end_with_the_results_even_if_not_all_are_taken() -> None:
    def running() -> Iterator[str]:
        return (thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch"))

    results = prefetch(lambda x: x, range(100), 2)
    assert next(results) == 0 and list(running())
    results.close()
    assert not list(running())
