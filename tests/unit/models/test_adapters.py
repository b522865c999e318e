"""Which weights are trained, adapters on disk, and the reference policy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medr1.config.enums import LoraTargets
from medr1.config.settings import AlgorithmConfig, LoraConfig
from medr1.errors import CheckpointError
from medr1.models.adapters import make_reference, set_trainable
from medr1.models.export import save_policy
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.models.transformers_compat import is_gradient_checkpointing
from medr1.training.optimizer import build_optimizer
from tests.unit.models.checkpoints import (
    ADAPTER,
    WEIGHTS,
    Damage,
    as_pickle,
    cut,
    edit_weights,
    load,
    logits,
    remove,
    write,
)


def with_adapter(base: Path, targets: str = "both", freeze_vision_tower: bool = False) -> tuple[Policy, Processor]:
    """A policy with an adapter that is not zero, as after training."""
    policy, processor = load(base)
    set_trainable(policy, freeze_vision_tower=freeze_vision_tower, lora=LoraConfig(2, 4, LoraTargets(targets)))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return policy, processor


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(cut(ADAPTER, -16), "cannot be loaded", id="weights cut"),
        pytest.param(remove(ADAPTER), "no adapter_model.safetensors", id="no weights"),
        pytest.param(as_pickle(ADAPTER, "adapter_model.bin"), "no adapter_model.safetensors", id="pickle"),
        pytest.param(edit_weights(ADAPTER, lambda w: w.pop(min(w))), "not those of", id="lost"),
        pytest.param(edit_weights(ADAPTER, lambda w: w.update(x=torch.ones(1))), "not those of", id="too much"),
        pytest.param(remove("adapter_config.json"), "adapter_config.json", id="no config"),
        pytest.param(write("adapter_config.json", "{}"), "cannot be loaded", id="empty config"),
    ],
)
def test_damaged_adapters_are_refused(base, tmp_path, damage: Damage, message: str) -> None:
    path = tmp_path / "adapter"
    save_policy(*with_adapter(base), path)
    load(base, path)
    damage(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(base, path)
    assert str(path) in str(caught.value)


def test_full_tuning_trains_everything(saved) -> None:
    policy, _ = load(saved[0])
    set_trainable(policy)
    assert all(p.requires_grad for p in policy.parameters())
    assert len(policy.trained_state("policy.")) == len(list(policy.parameters()))


@pytest.mark.parametrize("targets", ["language", "vision", "both"])
def test_lora_trains_adapters_alone_in_the_chosen_half(saved, targets: str) -> None:
    policy, _ = with_adapter(saved[0], targets)
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    halves = {half for half in ("language_model", "visual") if any(half in name for name in trained)}
    assert (
        halves == {"language": {"language_model"}, "vision": {"visual"}, "both": {"language_model", "visual"}}[targets]
    )
    assert set(policy.trained_state("policy.")) == {f"policy.{name}" for name in trained}
    # Every linear layer of the decoder layers and of the blocks of the vision tower, A and B.
    adapted = {name.split(".lora_")[0].split("base_model.model.")[1] for name in trained}
    core = load(saved[0])[0].core
    linear = {name for name, module in core.named_modules() if isinstance(module, torch.nn.Linear)}
    parts = {"language": ("language_model",), "vision": ("visual.blocks",), "both": ("language_model", "visual.blocks")}
    assert adapted == {name for name in linear if any(part in name for part in parts[targets])}
    assert len(trained) == 2 * len(adapted)


@torch.no_grad()
def test_with_the_adapter_off_the_policy_is_the_base(saved, make_prompts) -> None:
    path, before, processor = saved
    policy, _ = with_adapter(path)
    untouched = logits(before, processor, make_prompts)
    assert (logits(policy, processor, make_prompts) - untouched).abs().max() > 0.1
    with policy.as_reference():
        assert torch.equal(logits(policy, processor, make_prompts), untouched)
    assert (logits(policy, processor, make_prompts) - untouched).abs().max() > 0.1
    assert make_reference(policy) is None


@pytest.mark.parametrize("lora", [None, LoraConfig(2, 4, LoraTargets.both)])
def test_no_gradient_reaches_a_frozen_vision_tower(saved, make_prompts, lora) -> None:
    policy, processor = load(saved[0])
    set_trainable(policy, freeze_vision_tower=True, lora=lora)
    logits(policy, processor, make_prompts).square().sum().backward()
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    optimizer, _ = build_optimizer(policy.parameters(), AlgorithmConfig(learning_rate=0.1, weight_decay=0.1), 1)
    optimizer.step()
    changed = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert changed and not any("visual" in name for name in changed)
    reached = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached and not any("visual" in name for name in reached)
    assert {name for name, p in policy.named_parameters() if "visual" in name and p.requires_grad} == set()


def test_the_reference_leaves_frozen_adapters_frozen(saved) -> None:
    policy, _ = load(saved[0])
    set_trainable(policy, freeze_vision_tower=True, lora=LoraConfig(2, 4, LoraTargets.both))
    trained = policy.trained_state("").keys()
    with policy.as_reference():
        pass
    assert policy.trained_state("").keys() == trained


def test_a_choice_that_trains_nothing_is_refused(saved) -> None:
    policy, _ = load(saved[0])
    with pytest.raises(CheckpointError, match="target_modules"):
        set_trainable(policy, freeze_vision_tower=True, lora=LoraConfig(2, 4, LoraTargets.vision))


@torch.no_grad()
def test_a_saved_adapter_comes_back_on_its_base(saved, tmp_path, make_prompts) -> None:
    path, _, _ = saved
    policy, processor = with_adapter(path)
    save_policy(policy, processor, tmp_path)
    assert not (tmp_path / WEIGHTS).exists()
    again, its_processor = load(path, tmp_path)
    assert torch.equal(logits(again, its_processor, make_prompts), logits(policy, processor, make_prompts))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_reference_stays_when_the_policy_is_trained(saved, make_prompts, checkpointing: bool) -> None:
    policy, processor = load(saved[0], checkpointing=checkpointing)
    assert policy.gradient_checkpointing is checkpointing
    set_trainable(policy)
    reference = make_reference(policy)
    assert reference is not None and not any(p.requires_grad for p in reference.parameters())
    before = logits(policy, processor, make_prompts)
    before.square().mean().backward()
    torch.optim.SGD(policy.parameters(), lr=0.1).step()
    with torch.no_grad():
        assert torch.equal(logits(reference, processor, make_prompts), before)
        assert not torch.allclose(logits(policy, processor, make_prompts), before, atol=1e-3)
    assert is_gradient_checkpointing(policy.core) is checkpointing
    assert not reference.gradient_checkpointing and not is_gradient_checkpointing(reference.core)
