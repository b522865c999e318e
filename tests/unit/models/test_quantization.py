"""A base in 4 bits: what is quantized, what an adapter on it learns, and what the plan says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medr1.config.settings import LoraConfig
from medr1.generation.logprobs import completion_hidden
from medr1.models.adapters import set_trainable
from medr1.models.loading import ModelSpec, load_on_meta, load_policy
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.models.tensors import PromptBatch

bitsandbytes = pytest.importorskip("bitsandbytes")

SIZES = [(2, 2), None, (3, 2)]
LORA = LoraConfig(4, 8)


@pytest.fixture
def spec(saved: tuple[Path, Policy, Processor]) -> ModelSpec:
    return ModelSpec(str(saved[0]), quantization="nf4")


def adapted(spec: ModelSpec) -> tuple[Policy, Processor]:
    """With an adapter that is not zero, and the same for each base."""
    policy, processor = load_policy(spec)
    set_trainable(policy, lora=LORA)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(policy.named_parameters()):
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1, generator=generator)
    return policy, processor


def hidden_states(policy: Policy, prompts: PromptBatch) -> Tensor:
    ids = torch.arange(10, 10 + 2 * len(prompts.ids)).view(len(prompts.ids), 2)
    return completion_hidden(policy, policy.prefill(prompts), ids, torch.ones_like(ids, dtype=torch.bool))


def test_all_linear_layers_but_the_head_are_quantized(spec: ModelSpec) -> None:
    policy, _ = load_policy(spec)
    layers = {name: m for name, m in policy.core.named_modules() if isinstance(m, nn.Linear)}
    whole = {name for name, m in layers.items() if not isinstance(m, bitsandbytes.nn.Linear4bit)}
    assert whole == {"lm_head"} and len(layers) > 10
    assert all(m.weight.dtype == torch.uint8 for name, m in layers.items() if name not in whole)


def test_the_dequantized_base_gives_the_same_numbers_and_gradients(spec: ModelSpec, make_prompts: Callable) -> None:
    """Not those of the base before it was quantized."""
    quantized, processor = adapted(spec)
    dequantized, _ = adapted(replace(spec, dequantize=True))
    original, _ = adapted(replace(spec, quantization="none"))
    assert not any(isinstance(m, bitsandbytes.nn.Linear4bit) for m in dequantized.modules())
    prompts = processor.encode(make_prompts(processor, SIZES))
    found = []
    for policy in (quantized, dequantized, original):
        hidden = hidden_states(policy, prompts)
        hidden.square().mean().backward()
        trained = [p for p in policy.parameters() if p.requires_grad]
        found.append((hidden.detach(), torch.cat([p.grad.flatten() for p in trained])))
        assert all("lora_" in name for name, p in policy.named_parameters() if p.grad is not None)
    for ours, same, other in zip(*found, strict=True):
        assert torch.allclose(ours, same, rtol=1e-3, atol=1e-5)
        assert not torch.allclose(ours, other, rtol=1e-2, atol=1e-4)


def test_training_goes_on_after_inference(spec: ModelSpec, make_prompts: Callable) -> None:
    """Rollout and update take turns."""
    policy, processor = adapted(spec)
    prompts = processor.encode(make_prompts(processor, SIZES))
    before = hidden_states(policy, prompts)
    with torch.no_grad():
        assert torch.allclose(hidden_states(policy, prompts), before, atol=1e-5)
    hidden = hidden_states(policy, prompts)
    hidden.sum().backward()
    assert torch.equal(hidden, before)


def test_the_reference_is_the_quantized_base(spec: ModelSpec, make_prompts: Callable) -> None:
    policy, processor = adapted(spec)
    base, _ = load_policy(spec)
    prompts = processor.encode(make_prompts(processor, SIZES))
    with torch.no_grad(), policy.as_reference():
        assert torch.equal(hidden_states(policy, prompts), hidden_states(base, prompts))


def test_the_plan_knows_the_bytes_of_the_weights(spec: ModelSpec) -> None:
    policy, _ = load_policy(spec)
    weights = [*policy.parameters(), *policy.buffers()]
    scales = [m.weight.quant_state.absmax for m in policy.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    real = sum(t.numel() * t.element_size() for t in [*weights, *scales])
    planned = load_on_meta(spec)
    assert sum(t.numel() * t.element_size() for t in [*planned.parameters(), *planned.buffers()]) == pytest.approx(
        real, rel=0.01
    )
