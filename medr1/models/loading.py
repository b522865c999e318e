"""From a checkpoint in Hugging Face's format to a policy: one path for every family and for the tiny model."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    Qwen2VLImageProcessorPil,
)
from transformers.utils.hub import cached_file
from transformers.utils.import_utils import is_flash_attn_2_available

from medr1.config.image_tokens import fitting
from medr1.errors import CheckpointError
from medr1.models.policy import Policy
from medr1.models.processor import IMAGE_TOKEN, Processor

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"

_LORA_TARGETS = {
    "language": r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
    "vision": r".*visual\.blocks.*\.(qkv|proj|fc1|fc2|linear_fc1|linear_fc2|gate_proj|up_proj|down_proj)",
}
_LORA_TARGETS["both"] = rf"({_LORA_TARGETS['language']}|{_LORA_TARGETS['vision']})"


def load_policy(
    path: str,
    *,
    dtype: str,
    attn_implementation: str,
    gradient_checkpointing: bool,
    adapter: Path | None = None,
    image_size: int | None = None,
) -> tuple[Policy, Processor]:
    """A checkpoint (directory or hub id), with a trained adapter on it if one is given.

    ``attention`` as ``attention_for`` gives it; ``image_size``: the side of the pictures that it will be shown.

    Only safetensors are read and no code from the checkpoint is run. The generation settings that checkpoints ship
    (Qwen2.5-VL: top_k = 1) have no effect: medr1 decodes by itself.

    Raises:
        CheckpointError: missing, damaged, of another family, without safetensors, or not made for such pictures.
    """
    config = _read_config(path)
    patches = (config.vision_config.patch_size, config.vision_config.spatial_merge_size)
    token = patches[0] * patches[1]
    if image_size is not None and image_size % token:
        raise CheckpointError(
            f"model.path={path} cuts pictures into {token} x {token} pixel tokens, and {image_size} is no multiple; "
            f"use an image_size of {fitting(image_size, token)} (and model.image_token_size={token})"
        )
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            path,
            output_loading_info=True,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
        )
        model, report = loaded  # as output_loading_info asks for
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, padding_side="left")
        if tokenizer.chat_template is None:
            tokenizer.chat_template = _processors_chat_template(path)
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(path)
        whole: nn.Module = model if adapter is None else _adapted(model, adapter)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{adapter or path}: the checkpoint cannot be loaded: {error}") from error
    if lost := sorted(report["missing_keys"]):  # transformers would train on with random weights in their place
        raise CheckpointError(f"model.path={path}: the checkpoint lacks {len(lost)} weights, first {lost[0]}")
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) != config.image_token_id or tokenizer.chat_template is None:
        raise CheckpointError(f"model.path={path}: its tokenizer has no {IMAGE_TOKEN} or no chat template")
    if (image_processor.patch_size, image_processor.merge_size) != patches:
        raise CheckpointError(
            f"model.path={path}: its image processor makes patches of {image_processor.patch_size} pixels, merged by "
            f"{image_processor.merge_size}, but its config.json says {patches[0]} and {patches[1]}; take the "
            "preprocessor_config.json of the model it was made from"
        )
    if gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    policy = Policy(whole, gradient_checkpointing=gradient_checkpointing)
    kinds = set(getattr(model.model.language_model.config, "layer_types", None) or []) - {"full_attention"}
    if kinds:  # a decoded token attends to its whole prompt
        raise CheckpointError(
            f"model.path={path} has layers of {', '.join(sorted(kinds))}; set use_sliding_window to false in its "
            "config.json, as Qwen's own checkpoints have it, or take another checkpoint"
        )
    processor = Processor(tokenizer, image_processor, policy.core.model.get_rope_index)
    if processor.chat("").rstrip().endswith("<think>"):
        raise CheckpointError(
            f"model.path={path}: its chat template begins every answer with <think>, which leaves no choice of where "
            "to reason; take the Instruct checkpoint and not the Thinking one"
        )
    return policy, processor


def resolve_attn_implementation(attn_implementation: str, dtype: str, device: torch.device) -> str:
    """transformers' name of an attention implementation; ``auto`` becomes the fastest that is there.

    FlashAttention 2 wants half precision and an Ampere GPU or newer. It takes all masks that medr1 makes: they say
    what is padding, [rows, length], and transformers leaves that out; the decoder has an attention of its own.
    """
    if attn_implementation != "auto":
        return attn_implementation
    if device.type != "cuda" or dtype == "float32" or not is_flash_attn_2_available():
        return "sdpa"
    return "flash_attention_2" if torch.cuda.get_device_capability(device)[0] >= 8 else "sdpa"


def _processors_chat_template(path: str) -> str | None:
    """Checkpoints saved by older versions keep the template beside the tokenizer, in the processor's own file."""
    file = cached_file(path, "chat_template.json", _raise_exceptions_for_missing_entries=False)
    return None if file is None else str(json.loads(Path(file).read_text(encoding="utf-8"))["chat_template"])


def load_on_meta(path: str, *, dtype: str, attn_implementation: str, gradient_checkpointing: bool) -> Policy:
    """The policy of a checkpoint without its weights: the real class on the meta device. Of its files, only config.json
    is read.

    Raises:
        CheckpointError: no configuration there, or one of another family.
    """
    config = _read_config(path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation=attn_implementation, trust_remote_code=False
        )
    if gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return Policy(model, gradient_checkpointing=gradient_checkpointing)


def local_tokenizer(path: str) -> Any | None:
    """The tokenizer of a checkpoint, if its files are on this machine."""
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False, padding_side="left", local_files_only=True)
    except (OSError, ValueError):
        return None


def has_weights(path: str) -> bool:
    """Whether a checkpoint's weights are on this machine, so that to load it downloads nothing."""
    names = ("model.safetensors", "model.safetensors.index.json")
    if Path(path).is_dir():
        return any((Path(path) / name).is_file() for name in names)
    return any(isinstance(try_to_load_from_cache(path, name), str) for name in names)


def _read_config(path: str) -> Any:
    if (Path(path).is_absolute() or path.startswith(".")) and not (Path(path) / "config.json").is_file():
        raise CheckpointError(f"model.path={path}: no config.json there; give a checkpoint directory or a hub id")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise CheckpointError(f"model.path={path}: its configuration cannot be read: {error}") from error
    if config.model_type not in FAMILIES:
        what = f"model.path={path} is a {config.model_type!r} checkpoint"
        dense = "a mixture of experts; medr1 knows only the dense models of its family, such as Qwen3-VL-8B-Instruct"
        others = f"medr1 trains {', '.join(FAMILIES)}"
        raise CheckpointError(f"{what}, {dense}" if "moe" in config.model_type else f"{what}; {others}")
    return config


def _adapted(model: nn.Module, directory: Path) -> PeftModel:
    """The model with a trained adapter on it; peft itself would also read pickles, and go on without lost weights."""
    weights = directory / _ADAPTER_WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"{directory}: no {_ADAPTER_WEIGHTS} there; medr1 reads no other kind of weights")
    adapted = PeftModel.from_pretrained(model, directory)
    with safe_open(weights, "pt") as file:
        odd = set(file.keys()) ^ set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if odd:
        raise CheckpointError(f"{directory}: its weights are not those of its {_ADAPTER_CONFIG}, first {min(odd)}")
    return adapted


def set_trainable(policy: Policy, *, freeze_vision_tower: bool, lora: tuple[int, int, str] | None) -> None:
    """Decides which weights training changes: all, all but the vision tower, or new adapters.

    ``lora`` is (rank, alpha, targets: language, vision or both).
    """
    if lora is not None:
        rank, alpha, targets = lora
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=_LORA_TARGETS[targets])
        policy.model = get_peft_model(policy.model, config)
        # Adapters are trained in full precision whatever the base has.
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if freeze_vision_tower:
        policy.core.model.visual.requires_grad_(False)
    if not any(p.requires_grad for p in policy.parameters()):
        raise CheckpointError(
            "nothing is left to train: model.freeze_vision_tower and model.lora.target_modules exclude everything"
        )
    policy.eval()


def make_reference(policy: Policy) -> Policy | None:
    """The frozen copy that stays as the policy was; None under LoRA, where the adapter is switched off instead."""
    if isinstance(policy.model, PeftModel):
        return None
    frozen = Policy(copy.deepcopy(policy.model), gradient_checkpointing=False)
    frozen.requires_grad_(False)
    if frozen.model.is_activation_checkpointing:
        frozen.model.activation_checkpointing_disable()
    return frozen


def save_policy(
    policy: Policy, processor: Processor, directory: Path, state: Mapping[str, Tensor] | None = None
) -> None:
    """Writes what was trained as Hugging Face or PEFT reads it: a whole checkpoint, or an adapter alone.

    ``state``: the weights of the model inside, where the policy itself holds shards.
    """
    directory.mkdir(parents=True, exist_ok=True)
    policy.model.save_pretrained(directory, state_dict=state)
    if not isinstance(policy.model, PeftModel):
        processor.tokenizer.save_pretrained(directory)
        processor.image_processor.save_pretrained(directory)


def export_policy(policy: Policy, processor: Processor, directory: Path, max_completion_length: int) -> None:
    """Writes a plain checkpoint, with any adapter merged into the base, whose own generation settings decode as medr1
    does: greedily, to the end token, and never a token of pictures or turns. The policy is used up."""
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
