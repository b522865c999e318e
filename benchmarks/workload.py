"""The workload of medr1 and TRL: a checkpoint with random weights in hub format, prompts and images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from medr1.data.sources.phantoms.records import World, make_records
from medr1.domain.reasoning import ReasoningMode, question_text
from medr1.domain.records import Record
from medr1.models.export import save_policy
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.models.tensors import PromptBatch
from medr1.models.tiny import build_image_processor, build_tokenizer, initialize, tiny_config
from medr1.training.base_mixture import corpus


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Qwen2-VL. ``vocab_size`` 0: that of the tokenizer."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vision_depth: int
    vision_width: int
    vision_heads: int
    vocab_size: int = 0
    tied: bool = False


SHAPES: dict[str, Shape | None] = {
    "tiny": None,  # model=tiny
    "reference": Shape(384, 8, 6, 6, 1024, 6, 192, 6),
    "100m": Shape(768, 12, 12, 12, 2048, 12, 384, 6),
    "2b": Shape(1536, 28, 12, 2, 8960, 32, 1280, 16, 151_936, True),
    "7b": Shape(3584, 28, 28, 4, 18_944, 32, 1280, 16, 152_064),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """One optimizer step: ``prompts`` questions with one image each, and their completions."""

    shape: str
    prompts: int
    num_generations: int
    max_completion_length: int
    image_size: int
    beta: float
    dtype: torch.dtype
    device: torch.device

    def records(self) -> list[Record]:
        return make_records(World.TRAIN, 0, self.prompts)[::5][: self.prompts]

    def images(self) -> list[Image.Image]:
        return [record.images[0].load(self.image_size) for record in self.records()]

    def contents(self) -> list[str]:
        return [question_text(r.question, r.options, ReasoningMode.THINK_AFTER) for r in self.records()]


def save_checkpoint(
    shape: str | Shape, folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> None:
    """Writes a checkpoint with random weights, drawn on ``device``. ``shape``: sizes, or their name in ``SHAPES``."""
    tokenizer = build_tokenizer(corpus(0), 768)
    sizes = SHAPES[shape] if isinstance(shape, str) else shape
    config = tiny_config(tokenizer) if sizes is None else _config(sizes, tokenizer)
    with torch.device(device):
        model = Qwen2VLForConditionalGeneration(config)
    initialize(model, 0)
    if config.tie_word_embeddings:
        model.tie_weights()
    processor = Processor(tokenizer, build_image_processor(), model.model.get_rope_index)
    save_policy(Policy(model.to(dtype)), processor, folder)


@contextmanager
def checkpoint_of(
    shape: str, given: Path | None, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Iterator[Path]:
    """The directory ``given``, or a temporary one, with a checkpoint, which is made if there is none."""
    if given is None:
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(shape, Path(folder), dtype, device)
            yield Path(folder)
        return
    if not given.exists():
        unfinished = given.with_name(f"{given.name}.unfinished")
        save_checkpoint(shape, unfinished, dtype, device)
        unfinished.rename(given)
    sizes, own = SHAPES[shape], Qwen2VLConfig.from_pretrained(given).text_config
    if sizes is not None and (own.hidden_size, own.num_hidden_layers) != (sizes.hidden, sizes.layers):
        raise SystemExit(f"{given}: another shape than --shape {shape}; use another --checkpoint")
    yield given


@torch.no_grad()
def generate_by_transformers(policy: Policy, prompts: PromptBatch, config: GenerationConfig) -> Tensor:
    """The token ids of completions [B, T] by ``generate`` of transformers."""
    ids: Tensor = policy.core.generate(
        input_ids=prompts.ids,
        attention_mask=prompts.mask.long(),
        pixel_values=prompts.pixel_values,
        image_grid_thw=prompts.image_grid_thw,
        mm_token_type_ids=(prompts.ids == policy.core.config.image_token_id).int(),
        generation_config=config,
    )
    return ids[:, prompts.ids.shape[1] :]


def _config(s: Shape, tokenizer: PreTrainedTokenizerFast) -> Qwen2VLConfig:
    """The tiny model's configuration in another size."""
    config = tiny_config(tokenizer).to_dict()
    quarter = s.hidden // s.heads // 8
    config["text_config"] |= {
        "vocab_size": s.vocab_size or len(tokenizer),
        "hidden_size": s.hidden,
        "intermediate_size": s.mlp,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "max_window_layers": s.layers,
        "layer_types": ["full_attention"] * s.layers,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [quarter, 3 * quarter // 2, 3 * quarter // 2],
        },
    }
    config["vision_config"] |= {
        "depth": s.vision_depth,
        "embed_dim": s.vision_width,
        "hidden_size": s.hidden,
        "num_heads": s.vision_heads,
        "mlp_ratio": 4,
    }
    return Qwen2VLConfig(**(config | {"tie_word_embeddings": s.tied}))
