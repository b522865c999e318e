"""Attention of decoded tokens: its precision. That it equals the model's own is tested by the rollout's tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medr1.models.shared_prefix_cache import SharedPrefix, shared_prefix_attention
from medr1.models.tensors import Prefix

PROMPTS, G, HEADS, KEY_HEADS, P, T, D = 2, 3, 4, 2, 7, 5, 16


@pytest.mark.parametrize("size", [1.0, 20.0, 1000.0])
def test_large_scores_keep_their_differences_in_bfloat16(size: float) -> None:
    """Biases of Qwen2's keys add a large constant to all scores, of which the softmax shows the differences only."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).bfloat16()

    rows = PROMPTS * G
    query = randn(rows, HEADS, 1, D)
    bias = size * torch.ones(D, dtype=torch.float64)
    keys, values = (randn(PROMPTS, KEY_HEADS, P, D).double() + bias).bfloat16(), randn(PROMPTS, KEY_HEADS, P, D)
    own_keys, own_values = (randn(rows, KEY_HEADS, T, D).double() + bias).bfloat16(), randn(rows, KEY_HEADS, T, D)
    mask = torch.ones(PROMPTS, P, dtype=torch.bool)
    prefix = Prefix(((keys, values),), torch.zeros(PROMPTS, 1), mask, torch.zeros(PROMPTS))
    shared = SharedPrefix.of_rows(prefix, torch.arange(PROMPTS).repeat_interleave(G))
    module: Any = SimpleNamespace(layer_idx=0)
    out, _ = shared_prefix_attention(module, query, own_keys, own_values, None, D**-0.5, shared)

    all_keys = torch.cat([keys.repeat_interleave(G, 0), own_keys], 2).double().repeat_interleave(HEADS // KEY_HEADS, 1)
    all_values = torch.cat([values.repeat_interleave(G, 0), own_values], 2).double()
    all_values = all_values.repeat_interleave(HEADS // KEY_HEADS, 1)
    scores = query.double() @ all_keys.transpose(-1, -2) * D**-0.5
    expected = (scores.softmax(-1) @ all_values).transpose(1, 2)
    error = (out.double() - expected).norm() / expected.norm()
    assert out.dtype == torch.bfloat16 and error < 0.01, error
