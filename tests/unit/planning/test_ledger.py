"""The ledger counts what lives, and the stage runs the real code without numbers."""

from __future__ import annotations

import torch

from medr1.planning.memory_ledger import ACTIVATIONS, LOGITS, WEIGHTS, Ledger
from medr1.planning.meta_tracer import MetaTracer, fused_attention


def test_what_lives_is_counted_once_and_what_is_gone_is_struck_out() -> None:
    ledger = Ledger(vocabulary=7)
    weight = torch.zeros(10, 10)
    ledger.name(WEIGHTS, [weight])
    with ledger, ledger.phase("a"):
        one = torch.empty(100)
        view = one.view(10, 10)
        del one
        kept = view + 1
        del view
        logits = torch.empty(5, 7)
        del logits
    assert ledger.peaks["a"] == {WEIGHTS: 400, ACTIVATIONS: 800, LOGITS: 0} or ledger.peak == 400 + 800
    with ledger, ledger.phase("b"):
        torch.empty(5, 7)
    assert ledger.peaks["b"] == {WEIGHTS: 400, ACTIVATIONS: 400, LOGITS: 140}
    del kept
    with ledger, ledger.phase("c"):
        pass
    assert sum(ledger.peaks["c"].values()) == 400


def test_a_tensor_can_move_to_another_part() -> None:
    ledger = Ledger()
    with ledger, ledger.phase("a"):
        tensor = torch.empty(10)
        ledger.name("caches", [tensor])
        torch.empty(1)
    assert ledger.peaks["a"] == {"caches": 40, ACTIVATIONS: 4}


def test_the_stage_keeps_values_where_there_are_some() -> None:
    mask = torch.tensor([[True, False, True], [False, False, True]])
    with MetaTracer() as stage:
        hidden = torch.empty(2, 3, 8, device="meta")
        chosen = hidden[mask]
        assert chosen.shape == (3, 8) and chosen.is_meta
        assert torch.arange(3, device="meta").tolist() == [0, 1, 2]
        assert mask.to("meta").sum().item() == 3
        assert (chosen * torch.ones(8)).is_meta
    assert stage.peak > 0


def test_what_is_remembered_of_an_operation_does_not_change_the_count() -> None:
    """The second of two equal operations is not worked out again; views never become tensors of their own."""
    totals = []
    for _ in range(2):
        with MetaTracer() as stage:
            x = torch.empty(4, 6, device="meta")
            for _ in range(3):
                x = torch.matmul(x.view(2, 2, 6), torch.empty(6, 6, device="meta")).reshape(4, 6)
            totals.append(stage.peak)
    # At most three of x, the weight and the product live at once: 96 + 144 + 96 bytes.
    assert totals == [336, 336]


def test_attention_on_the_stage_keeps_no_weights() -> None:
    peaks = []
    for length in (64, 128):
        with fused_attention(), MetaTracer() as stage:
            q = torch.empty(1, 2, length, 16, device="meta", requires_grad=True)
            torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
        peaks.append(stage.peak)
    assert peaks[1] <= 2 * peaks[0]  # the weights alone would be four times as many
