"""Which weights are trained: all of them, all but the vision tower, or LoRA adapters (peft)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peft
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import nn

from medr1.config.settings import LoraConfig
from medr1.errors import CheckpointError
from medr1.models.policy import REFERENCE_ADAPTER, Policy
from medr1.models.transformers_compat import without_peft_warnings

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"

# The linear layers that get an adapter, as regular expressions over module names.
_TARGET_MODULES = {
    "language": r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
    "vision": r".*visual\.blocks.*\.(qkv|proj|fc1|fc2|linear_fc1|linear_fc2|gate_proj|up_proj|down_proj)",
}
_TARGET_MODULES["both"] = rf"({_TARGET_MODULES['language']}|{_TARGET_MODULES['vision']})"


def set_trainable(policy: Policy, *, freeze_vision_tower: bool = False, lora: LoraConfig | None = None) -> None:
    """Adds LoRA adapters if ``lora`` is given, and sets ``requires_grad`` of all weights.

    An adapter that was loaded with the policy goes on training, or without ``lora`` is merged into its base.

    Raises:
        CheckpointError: no weight would be trained.
    """
    if isinstance(policy.model, PeftModel):
        if lora is None:
            policy.model = policy.model.merge_and_unload()
            policy.requires_grad_(True)
        else:
            policy.model.set_adapter(policy.model.active_adapter)  # sets requires_grad
            policy.continues_adapter = True
    elif lora is not None:
        config = peft.LoraConfig(
            r=lora.r, lora_alpha=lora.lora_alpha, target_modules=_TARGET_MODULES[lora.target_modules]
        )
        with without_peft_warnings(), _final_precision(policy):
            policy.model = peft.get_peft_model(policy.model, config)
    if lora is not None:  # adapters are trained in float32, whatever the precision of the base
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if freeze_vision_tower:
        policy.core.model.visual.requires_grad_(False)
    if not any(p.requires_grad for p in policy.parameters()):
        raise CheckpointError(
            "no weights to train: model.freeze_vision_tower=true excludes all of model.lora.target_modules"
        )
    policy.eval()


def is_of_adapter(name: str) -> bool:
    """Whether a weight of this name belongs to a LoRA adapter."""
    return ".lora_" in name


@contextmanager
def _final_precision(policy: Policy) -> Iterator[None]:
    """Gives each weight of a policy that is not sharded yet its final dtype, without values and memory.

    peft rounds a new adapter to the dtype of the weights that it is for, and does not read them.
    """
    weights = [] if policy.dtype is None else [(weight, weight.data) for weight in policy.parameters()]
    for weight, data in weights:
        weight.data = torch.empty(1, dtype=policy.dtype).expand(data.shape)
    try:
        yield
    finally:
        for weight, data in weights:
            weight.data = data


def make_reference(policy: Policy, *, is_sharded: bool = False) -> Policy | None:
    """A frozen copy of the policy. None with LoRA, where ``Policy.as_reference`` is the reference.

    To an adapter that goes on training a frozen copy is added. ``is_sharded``: both will be sharded, which copies the
    weights; until then they have the same ones.
    """
    if isinstance(policy.model, PeftModel):
        if policy.continues_adapter:
            _add_reference_adapter(policy.model)
        return None
    shared = {id(p): nn.Parameter(p.detach()) for p in policy.parameters()} if is_sharded else {}
    reference = Policy(copy.deepcopy(policy.model, shared), gradient_checkpointing=False)
    reference.dtype = policy.dtype
    reference.requires_grad_(False)
    return reference


def _add_reference_adapter(model: PeftModel) -> None:
    trained = model.active_adapter
    with without_peft_warnings():
        model.add_adapter(REFERENCE_ADAPTER, copy.deepcopy(model.peft_config[trained]))
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if f".{REFERENCE_ADAPTER}." in name:
            weight.data = weights[name.replace(f".{REFERENCE_ADAPTER}.", f".{trained}.")].detach().clone()
            weight.requires_grad_(False)


def load_adapter(model: nn.Module, directory: Path) -> PeftModel:
    """The model with a trained adapter on it.

    Reads safetensors only and compares their names with the adapter's; peft alone would also read pickles and ignore
    missing weights.

    Raises:
        CheckpointError: the weights are missing, or are not those that adapter_config.json describes.
    """
    weights = directory / _WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"{directory}: no {_WEIGHTS} there; medr1 reads no other format of weights")
    with without_peft_warnings():
        adapted = PeftModel.from_pretrained(model, directory)
    with safe_open(weights, "pt") as file:
        expected = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
        differing = set(file.keys()) ^ set(expected)
    if differing:
        raise CheckpointError(f"{directory}: its weights are not those of its {_CONFIG}, first {min(differing)}")
    return adapted
