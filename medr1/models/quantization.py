"""The linear layers of a base model in 4 bits: NF4 (QLoRA, arXiv 2305.14314), by bitsandbytes.

A layer stores packed weights and a scale for each block of 64. In each pass its weights are dequantized for this pass
alone. Embeddings, norms, the output head and adapters keep the precision of the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers.base import HfQuantizer

from medr1.config.enums import Quantization

_BLOCK = 64  # weights with one scale, in float32


def quantization_arguments(quantization: str, dtype: torch.dtype) -> dict[str, Any]:
    """The arguments with which ``from_pretrained`` quantizes a checkpoint while it loads it, on the CPU."""
    if quantization == Quantization.none:
        return {}
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=quantization, bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": config, "device_map": {"": "cpu"}}


def keep_packing(model: nn.Module) -> None:
    """Keeps bitsandbytes from packing weights in another way for inference on some CPUs.

    It cannot train with them, and the rollout, which is inference, takes turns with the update.
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False


def quantize_on_meta(model: PreTrainedModel) -> None:
    """Replaces the layers that ``from_pretrained`` would quantize by layers of the same sizes without values."""
    skipped = set(HfQuantizer.get_modules_to_not_convert(model))
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name not in skipped:
            model.set_submodule(name, _MetaLinear4bit(module))


class _MetaLinear4bit(nn.Linear):
    """A quantized layer on the meta device. peft takes it for a linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, "meta", layer.weight.dtype)
        count = layer.weight.numel()
        packed = torch.empty(count // 2, 1, dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("absmax", torch.empty(count // _BLOCK, device="meta"))
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Dequantized.apply(x, self.out_features)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias


class _Dequantized(torch.autograd.Function):
    """A product with weights that exist during the pass alone, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, out_features: int) -> Tensor:
        ctx.in_features = x.shape[-1]
        return nn.functional.linear(x, x.new_empty(out_features, x.shape[-1]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ grad.new_empty(grad.shape[-1], ctx.in_features), None
