"""Code runs on the meta device, beside small tensors that keep their values."""

from __future__ import annotations

import torch

from medr1.planning.memory_ledger import peak_bytes
from medr1.planning.meta_tracer import MetaTracer, fused_attention


def test_small_tensors_keep_their_values() -> None:
    mask = torch.tensor([[True, False, True], [False, False, True]])
    with MetaTracer() as tracer:
        hidden = torch.empty(2, 3, 8, device="meta")
        chosen = hidden[mask]
        assert chosen.shape == (3, 8) and chosen.is_meta
        assert torch.arange(3, device="meta").tolist() == [0, 1, 2]
        assert mask.to("meta").sum().item() == 3
        assert (chosen * torch.ones(8)).is_meta
    assert peak_bytes(tracer.peaks) > 0


def test_a_choice_without_values_is_zero() -> None:
    with MetaTracer():
        logits = torch.empty(2, 5, device="meta")
        assert logits.argmax(-1).tolist() == [0, 0]
        assert torch.searchsorted(logits.cumsum(-1), torch.zeros(2, 1)).tolist() == [[0], [0]]


def test_a_remembered_layout_does_not_change_the_count() -> None:
    """The second of two equal operations is not run again. Views never become tensors of their own."""
    totals = []
    for _ in range(2):
        with MetaTracer() as tracer:
            x = torch.empty(4, 6, device="meta")
            for _ in range(3):
                x = torch.matmul(x.view(2, 2, 6), torch.empty(6, 6, device="meta")).reshape(4, 6)
            totals.append(peak_bytes(tracer.peaks))
    # At most x, the weight and the product live at once: 96 + 144 + 96 bytes.
    assert totals == [336, 336]


def test_fused_attention_keeps_no_weights() -> None:
    peaks = []
    for length in (64, 128):
        with fused_attention(), MetaTracer() as tracer:
            q = torch.empty(1, 2, length, 16, device="meta", requires_grad=True)
            torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
        peaks.append(peak_bytes(tracer.peaks))
    assert peaks[1] <= 2 * peaks[0]  # the weights alone would be four times as many


def test_a_mask_of_long_prompts_takes_no_memory_of_this_machine() -> None:
    with MetaTracer():
        positions = torch.arange(2**15)
        mask = positions[None, :] <= positions[:, None]
        assert mask.is_meta and (torch.ones((), dtype=torch.bool) & mask.to("cpu")).shape == (2**15, 2**15)
        assert (positions <= positions).all().item()
