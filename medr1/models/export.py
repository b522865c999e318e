"""Writes a policy as a checkpoint that transformers and peft read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


def save_merged_weights(policy: Policy, file: Path) -> None:
    """Writes the weights as safetensors with any adapter merged. The policy stays as it is.

    They are collected in main memory, because a device need not have room for both.

    ``save_pretrained`` writes in one process of a distributed training only.
    """
    state = {name: weight.cpu().contiguous() for name, weight in merged_weights(policy)}
    save_file(state, file, metadata={"format": "pt"})


@torch.no_grad()
def merged_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """The weights of ``checkpoint_state`` in its order, with any adapter merged. Merged ones are copies.

    peft merges and unmerges in place, which would change the weights by rounding errors.
    """
    adapted: dict[str, Linear] = {}
    if isinstance(policy.model, PeftModel):
        adapted = {f"{name}.weight": m for name, m in policy.core.named_modules() if isinstance(m, Linear)}
    for name, weight in checkpoint_state(policy).items():
        if name in adapted:
            delta = adapted[name].get_delta_weight(policy.model.active_adapter)
            yield name, (weight.to(delta.dtype) + delta).to(weight.dtype)
        else:
            yield name, weight


def checkpoint_state(policy: Policy) -> dict[str, Tensor]:
    """The weights without adapters, under the names of a checkpoint. Tied weights stand there once."""
    state = {
        name.replace(".base_layer.", "."): value
        for name, value in policy.core.state_dict().items()
        if not is_of_adapter(name)
    }
    if policy.core.get_output_embeddings().weight is policy.core.get_input_embeddings().weight:
        del state["lm_head.weight"]
    return state
