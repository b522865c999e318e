"""The order of records is a function of seed and step, whatever the number of processes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medr1.training.steps import StepStream, local_share, step_indices

RECORDS, PROMPTS, SEEDS = st.integers(1, 30), st.integers(1, 12), st.integers(0, 3)


@given(RECORDS, PROMPTS, SEEDS)
def test_every_epoch_has_each_record_once(records: int, prompts: int, seed: int) -> None:
    steps = -(-3 * records // prompts)
    seen = [i for step in range(steps) for i in step_indices(records, prompts, seed, step)]
    assert len(seen) == steps * prompts
    for epoch in range(3):
        assert sorted(seen[epoch * records : (epoch + 1) * records]) == list(range(records))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [tuple(step_indices(50, 50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert tuple(range(50)) not in orders


RATES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=30)


@given(RATES, PROMPTS, SEEDS)
def test_a_curriculum_goes_from_easy_to_hard_in_every_epoch(rates: list[float], prompts: int, seed: int) -> None:
    records = len(rates)
    steps = -(-2 * records // prompts)
    seen = [i for step in range(steps) for i in step_indices(records, prompts, seed, step, rates)]
    shuffled = [i for step in range(steps) for i in step_indices(records, prompts, seed, step)]
    for start in (0, records):
        epoch, before = seen[start : start + records], shuffled[start : start + records]
        assert sorted(epoch) == list(range(records))
        assert [rates[i] for i in epoch] == sorted(rates, reverse=True)
        for rate in set(rates):  # records of the same pass rate stay in the shuffled order
            assert [i for i in epoch if rates[i] == rate] == [i for i in before if rates[i] == rate]


def test_a_step_does_not_depend_on_the_steps_before_it() -> None:
    forward = [step_indices(17, 5, 3, step) for step in range(10)]
    backward = [step_indices(17, 5, 3, step) for step in reversed(range(10))]
    assert forward == backward[::-1]
    assert all(type(i) is int for i in forward[0])


@given(st.lists(st.integers(), max_size=12), st.integers(1, 4))
def test_the_shares_of_all_processes_are_the_batch_in_its_order(indices: list[int], world_size: int) -> None:
    indices = indices[: len(indices) // world_size * world_size]
    parts = [local_share(indices, rank, world_size) for rank in range(world_size)]
    assert [i for part, _ in parts for i in part] == indices
    assert len({len(part) for part, _ in parts}) == 1
    for part, first in parts:
        assert part == indices[first : first + len(part)]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_stream_resumes_where_it_stopped(num_workers: int) -> None:
    uninterrupted = list(StepStream(lambda step: step_indices(9, 4, 0, step), 0, 7))
    assert list(StepStream(lambda step: step_indices(9, 4, 0, step), 3, 7, num_workers)) == uninterrupted[3:]
    assert len(uninterrupted) == 7


def test_a_stream_counts_the_seconds_for_which_its_caller_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("medr1.training.steps.time.perf_counter", lambda: clock[0])

    def make(step: int) -> int:
        clock[0] += 2
        return step

    stream, waited = StepStream(make, 0, 3), []
    for _ in stream:
        waited.append(stream.seconds_waited)
        clock[0] += 100  # the step itself
    assert waited == [2, 4, 6]
