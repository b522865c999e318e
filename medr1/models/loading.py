"""Loads a checkpoint in the format of Hugging Face. All model families and the tiny model share this path."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil
from transformers.utils.hub import cached_file
from transformers.utils.import_utils import is_flash_attn_2_available

from medr1.config.enums import Quantization, Resize, Tuning
from medr1.config.image_tokens import fitting
from medr1.config.settings import DataConfig, LoraConfig, ModelConfig
from medr1.domain.reasoning import TAGS, ReasoningMode, target_text
from medr1.errors import CheckpointError
from medr1.models.adapters import load_adapter
from medr1.models.policy import Policy
from medr1.models.processor import IMAGE_TOKEN, Processor, control_tokens_of
from medr1.models.quantization import keep_packing, quantization_arguments, quantize_on_meta

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A checkpoint, how it is loaded, and which of its weights are trained.

    path: checkpoint directory or hub id. attn_implementation: as ``resolve_attn_implementation`` returns it.
    image_size: side of square images in pixels, image_token_size: that of images in their own aspect ratio; each is
    checked against the model's image tokens if given. adapter: directory of a trained PEFT adapter.
    freeze_vision_tower, lora: see ``medr1.models.adapters.set_trainable``. is_sharded: the weights will be sharded.
    quantization: of the base, see ``medr1.models.quantization``. dequantize: load the quantized base, and return it in
    full precision.
    """

    path: str
    dtype: str = "float32"
    attn_implementation: str = "sdpa"
    gradient_checkpointing: bool = False
    image_size: int | None = None
    image_token_size: int | None = None
    adapter: Path | None = None
    freeze_vision_tower: bool = False
    lora: LoraConfig | None = None
    is_sharded: bool = False
    quantization: str = "none"
    dequantize: bool = False

    @classmethod
    def from_config(cls, model: ModelConfig, data: DataConfig, device: torch.device) -> ModelSpec:
        """The model of a config, on a device that decides what ``attn_implementation=auto`` means."""
        return cls(
            path=model.path,
            dtype=str(model.dtype),
            attn_implementation=resolve_attn_implementation(str(model.attn_implementation), str(model.dtype), device),
            gradient_checkpointing=model.gradient_checkpointing,
            image_size=data.image_size if data.resize == Resize.square else None,
            image_token_size=model.image_token_size if data.resize == Resize.native else None,
            freeze_vision_tower=model.freeze_vision_tower,
            lora=model.lora if model.tuning == Tuning.lora else None,
            quantization=str(model.quantization),
        )


def resolve_attn_implementation(attn_implementation: str, dtype: str, device: torch.device) -> str:
    """The attention implementation that ``auto`` stands for: the fastest one available. Other names are returned as is.

    FlashAttention 2 needs half precision and an Ampere GPU or newer. All masks are padding masks [rows, length], which
    it supports; decoding has an attention of its own (``medr1.models.shared_prefix_cache``).
    """
    if attn_implementation != "auto":
        return attn_implementation
    if device.type != "cuda" or dtype == "float32" or not is_flash_attn_2_available():
        return "sdpa"
    return "flash_attention_2" if torch.cuda.get_device_capability(device)[0] >= 8 else "sdpa"


def load_policy(spec: ModelSpec) -> tuple[Policy, Processor]:
    """Loads a checkpoint, with its adapter if one is given, into the memory of the CPU.

    Weights that have the dtype of the checkpoint are mapped from its file, so that they take no memory before they are
    read. If they will be sharded, they have this dtype until then.

    Only safetensors are read, and no code from the checkpoint is run. The generation config of the checkpoint
    (Qwen2.5-VL: top_k = 1) has no effect.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of another family, does not fit the image size, or has a
            tokenizer that loses the reasoning tags.
    """
    path, config = spec.path, _read_config(spec.path)
    patch_size, merge_size = config.vision_config.patch_size, config.vision_config.spatial_merge_size
    token = patch_size * merge_size
    if spec.image_token_size not in (None, token):
        raise CheckpointError(
            f"model.path={path}: model.image_token_size={spec.image_token_size}, and its image tokens have {token} x "
            f"{token} pixels; use model.image_token_size={token}"
        )
    if spec.image_size is not None and spec.image_size % token:
        raise CheckpointError(
            f"model.path={path}: image_size={spec.image_size} is no multiple of its image token size of {token} "
            f"pixels; use image_size={fitting(spec.image_size, token)} and model.image_token_size={token}"
        )
    # An adapter that will be merged needs its base in the final precision.
    is_mapped = spec.is_sharded and (spec.adapter is None or spec.lora is not None)
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            path,
            output_loading_info=True,
            dtype="auto" if is_mapped else getattr(torch, spec.dtype),
            attn_implementation=spec.attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
            **quantization_arguments(spec.quantization, getattr(torch, spec.dtype)),
        )
        model, loading_info = loaded
        keep_packing(model)
        if spec.dequantize and spec.quantization != Quantization.none:
            model = model.dequantize(getattr(torch, spec.dtype))
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, padding_side="left")
        if tokenizer.chat_template is None:
            tokenizer.chat_template = _legacy_chat_template(path)
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(path)
        adapted: nn.Module = model if spec.adapter is None else load_adapter(model, spec.adapter)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{spec.adapter or path}: the checkpoint cannot be loaded: {error}") from error
    if missing := sorted(loading_info["missing_keys"]):  # transformers would initialize them at random
        raise CheckpointError(f"model.path={path}: {len(missing)} weights are missing, first {missing[0]}")
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) != config.image_token_id or tokenizer.chat_template is None:
        raise CheckpointError(f"model.path={path}: its tokenizer has no {IMAGE_TOKEN} or no chat template")
    if (image_processor.patch_size, image_processor.merge_size) != (patch_size, merge_size):
        raise CheckpointError(
            f"model.path={path}: preprocessor_config.json has patches of {image_processor.patch_size} pixels and "
            f"merge_size={image_processor.merge_size}, but config.json has {patch_size} and {merge_size}; use the "
            "preprocessor_config.json of the model's base"
        )
    # A completion token attends to its whole prompt.
    layer_types = set(getattr(model.model.language_model.config, "layer_types", None) or [])
    if unsupported := sorted(layer_types - {"full_attention"}):
        raise CheckpointError(
            f"model.path={path} has layers of {', '.join(unsupported)}; set use_sliding_window to false in its "
            "config.json, as in Qwen's own checkpoints, or use another checkpoint"
        )
    policy = Policy(adapted, spec.gradient_checkpointing)
    policy.dtype = getattr(torch, spec.dtype) if is_mapped else None
    processor = Processor(tokenizer, image_processor, model.model.get_rope_index)
    if processor.chat("").rstrip().endswith("<think>"):
        raise CheckpointError(
            f"model.path={path}: its chat template begins every completion with <think>, so that the reasoning mode "
            "cannot be chosen; use the Instruct checkpoint instead of the Thinking one"
        )
    for mode in ReasoningMode:
        target = target_text(mode, "A", "of all")
        ids, mask = processor.completion_ids([target])
        if (decoded := processor.decode(ids, mask)[0]) != target:
            raise CheckpointError(
                f"model.path={path}: its tokenizer turns {target!r} into {decoded!r}, so that completions lose their "
                f"format; {', '.join(TAGS)} must be ordinary text or added tokens, and none of them the EOS token"
            )
    return policy, processor


def load_on_meta(spec: ModelSpec) -> Policy:
    """The policy without its weights, on the meta device. Only config.json of the checkpoint is read.

    Raises:
        CheckpointError: there is no config.json, or it is of another family.
    """
    config = _read_config(spec.path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            config,
            dtype=getattr(torch, spec.dtype),
            attn_implementation=spec.attn_implementation,
            trust_remote_code=False,
        )
        if spec.quantization != Quantization.none:
            quantize_on_meta(model)
    return Policy(model, spec.gradient_checkpointing)


def local_tokenizer(path: str) -> Any | None:
    """The tokenizer of a checkpoint, or None if its files are not on this machine."""
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False, padding_side="left", local_files_only=True)
    except (OSError, ValueError):
        return None


def control_tokens(path: str) -> frozenset[str]:
    """The control tokens of a checkpoint's tokenizer. Empty if its files are not on this machine yet."""
    tokenizer = local_tokenizer(path)
    return frozenset() if tokenizer is None else control_tokens_of(tokenizer)


def has_local_weights(path: str) -> bool:
    """Whether the weights of a checkpoint are on this machine, so that nothing has to be downloaded."""
    names = ("model.safetensors", "model.safetensors.index.json")
    if Path(path).is_dir():
        return any((Path(path) / name).is_file() for name in names)
    return any(isinstance(try_to_load_from_cache(path, name), str) for name in names)


def _legacy_chat_template(path: str) -> str | None:
    """The chat template in the file in which older versions of transformers stored it."""
    file = cached_file(path, "chat_template.json", _raise_exceptions_for_missing_entries=False)
    return None if file is None else str(json.loads(Path(file).read_text(encoding="utf-8"))["chat_template"])


def _read_config(path: str) -> Any:
    if (Path(path).is_absolute() or path.startswith(".")) and not (Path(path) / "config.json").is_file():
        raise CheckpointError(f"model.path={path}: no config.json there; give a checkpoint directory or a hub id")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise CheckpointError(f"model.path={path}: its configuration cannot be read: {error}") from error
    if config.model_type not in FAMILIES:
        supported = f"medr1 supports dense models of {', '.join(FAMILIES)}, such as Qwen3-VL-8B-Instruct"
        raise CheckpointError(f"model.path={path} is a {config.model_type!r} checkpoint; {supported}")
    return config
