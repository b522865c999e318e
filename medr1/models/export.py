"""Writes a policy as a checkpoint that transformers and peft read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from medr1.models.adapters import is_of_adapter
from medr1.models.policy import Policy
from medr1.models.processor import Processor


def save_policy(
    policy: Policy, processor: Processor, directory: Path, state: Mapping[str, Tensor] | None = None
) -> None:
    """Writes a Hugging Face checkpoint, or with LoRA the PEFT adapter alone.

    ``state``: the weights, if the policy itself holds shards of them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if isinstance(policy.model, PeftModel):
        adapters = [policy.model.active_adapter]  # not the frozen copy of one that went on training
        policy.model.save_pretrained(str(directory), state_dict=state, selected_adapters=adapters)
    else:
        policy.model.save_pretrained(directory, state_dict=state)
        processor.tokenizer.save_pretrained(directory)
        processor.image_processor.save_pretrained(directory)


def export_policy(policy: Policy, processor: Processor, directory: Path, max_completion_length: int) -> None:
    """Writes a Hugging Face checkpoint with any adapter merged into its base.

    Its generation config decodes as medr1 does: greedily, up to the EOS token, without special tokens. The policy
    cannot be used afterwards.
    """
    if isinstance(policy.model, PeftModel):
        policy.model = policy.model.merge_and_unload()
    policy.model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_completion_length,
        eos_token_id=processor.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=processor.suppressed_token_ids(),
    )
    save_policy(policy, processor, directory)


@torch.no_grad()
def save_merged_weights(policy: Policy, file: Path) -> None:
    """Writes the weights as safetensors with any adapter merged. The policy stays as it is.

    Merged weights are collected in main memory, because a device need not have room for both.

    peft merges and unmerges in place, which would change the weights by rounding errors. ``save_pretrained`` writes in
    one process of a distributed training only.
    """
    state = {
        name.replace(".base_layer.", "."): value
        for name, value in policy.core.state_dict().items()
        if not is_of_adapter(name)
    }
    if isinstance(policy.model, PeftModel):
        for name, layer in policy.core.named_modules():
            if isinstance(layer, Linear):
                delta = layer.get_delta_weight(policy.model.active_adapter)
                weight = state[f"{name}.weight"]
                state[f"{name}.weight"] = (weight.to(delta.dtype) + delta).to(weight.dtype).cpu()
    if policy.core.get_output_embeddings().weight is policy.core.get_input_embeddings().weight:
        del state["lm_head.weight"]
    save_file({name: value.contiguous() for name, value in state.items()}, file, metadata={"format": "pt"})
