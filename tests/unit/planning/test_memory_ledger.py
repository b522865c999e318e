"""The ledger counts the bytes of living tensors."""

from __future__ import annotations

import torch

from medr1.planning.memory_ledger import ACTIVATIONS, LOGITS, WEIGHTS, MemoryLedger, peak_bytes


def test_a_storage_is_counted_once_and_removed_when_it_is_freed() -> None:
    ledger = MemoryLedger(vocab_size=7)
    weight = torch.zeros(10, 10)
    ledger.name(WEIGHTS, [weight])
    with ledger, ledger.phase("a"):
        one = torch.empty(100)
        view = one.view(10, 10)
        del one
        result = view + 1
        del view
        logits = torch.empty(5, 7)
        del logits
    assert ledger.peaks["a"] == {WEIGHTS: 400, ACTIVATIONS: 800}
    assert peak_bytes(ledger.peaks) == 400 + 800
    with ledger, ledger.phase("b"):
        torch.empty(5, 7)
    assert ledger.peaks["b"] == {WEIGHTS: 400, ACTIVATIONS: 400, LOGITS: 140}
    del result
    with ledger, ledger.phase("c"):
        pass
    assert sum(ledger.peaks["c"].values()) == 400


def test_a_tensor_can_move_to_another_part() -> None:
    ledger = MemoryLedger()
    with ledger, ledger.phase("a"):
        tensor = torch.empty(10)
        ledger.name("caches", [tensor])
        torch.empty(1)
    assert ledger.peaks["a"] == {"caches": 40, ACTIVATIONS: 4}


def test_an_inner_phase_does_not_count_in_the_outer_one() -> None:
    ledger = MemoryLedger()
    with ledger, ledger.phase("outer"):
        tensor = torch.empty(10)
        with ledger.phase("inner"):
            torch.empty(100)
        del tensor
    assert {name: sum(parts.values()) for name, parts in ledger.peaks.items()} == {"outer": 40, "inner": 440}
