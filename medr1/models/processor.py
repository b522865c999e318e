"""From records to tensors: chat template, picture patches, image tokens and explicit M-RoPE positions.

The processors of transformers want torchvision for their video half; pairing the image processor with the tokenizer
here needs neither, and is the only place where a prompt is built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from medr1.domain.reasoning import ReasoningMode, question_text
from medr1.domain.records import Record
from medr1.errors import DataError
from medr1.models.tensors import PromptBatch

IMAGE_TOKEN = "<|image_pad|>"
# (ids [B, P], token types [B, P], grids, mask [B, P]) -> (positions [3, B, P], deltas [B, 1])
RopeIndex = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as chat text with at most one image token, and its picture."""

    text: str
    image: Image.Image | None


@dataclass(frozen=True, slots=True)
class Processor:
    """Tokenizer and image processor of a model family, used together."""

    tokenizer: Any
    image_processor: Any
    rope_index: RopeIndex

    @property
    def eos_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def image_token(self) -> int:
        """Pixels of the side of one image token."""
        return int(self.image_processor.patch_size) * int(self.image_processor.merge_size)

    def chat(self, content: str, with_image: bool = True) -> str:
        """The chat text of one user turn up to where the assistant begins."""
        parts: list[dict[str, str]] = [{"type": "image"}] if with_image else []
        parts.append({"type": "text", "text": content})
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
        )
        return str(text)

    def prompt(self, record: Record, mode: ReasoningMode, image: Image.Image) -> Prompt:
        return Prompt(self.chat(question_text(record.question, record.options, mode)), image)

    def encode(self, prompts: Sequence[Prompt]) -> PromptBatch:
        """Pads on the left to the longest prompt; every picture becomes grid / merge^2 image tokens.

        The same image object in several prompts is one picture, made into patches and encoded once.

        Raises:
            DataError: a text that has not exactly one place for its picture. Unnoticed, the picture of one prompt
                would move into the place of the next. Or a picture that is no whole number of image tokens.
        """
        images = {id(p.image): p.image for p in prompts if p.image is not None}
        place = {key: index for index, key in enumerate(images)}
        image_index = tuple(None if p.image is None else place[id(p.image)] for p in prompts)
        pixel_values = image_grid_thw = None
        if images:
            for image in images.values():
                if image.width % self.image_token or image.height % self.image_token:
                    raise DataError(
                        f"a picture of {image.width} x {image.height} pixels cannot be cut into tokens of "
                        f"{self.image_token} x {self.image_token}; choose another image_size"
                    )
            # As large as it was made: the limits of some checkpoints (Qwen3-VL: at least 256 x 256) would change it.
            features = self.image_processor(images=list(images.values()), do_resize=False, return_tensors="pt")
            pixel_values, image_grid_thw = features["pixel_values"], features["image_grid_thw"]
        texts = []
        for prompt in prompts:
            text, places = prompt.text, prompt.text.count(IMAGE_TOKEN)
            if places != int(prompt.image is not None):
                pictures = "no picture" if prompt.image is None else "a picture"
                raise DataError(
                    f"a prompt with {pictures} has {places} times {IMAGE_TOKEN} in its text: {text[:300]!r}"
                )
            if prompt.image is not None and image_grid_thw is not None:
                tokens = int(image_grid_thw[place[id(prompt.image)]].prod()) // self.image_processor.merge_size**2
                text = text.replace(IMAGE_TOKEN, IMAGE_TOKEN * tokens)
            texts.append(text)
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
        types = (ids == self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)).int()
        shown_grids = None if image_grid_thw is None else image_grid_thw[[i for i in image_index if i is not None]]
        positions, _ = self.rope_index(ids, types, image_grid_thw=shown_grids, attention_mask=mask)
        return PromptBatch(
            ids, mask, positions, positions.amax(dim=(0, 2)) + 1, pixel_values, image_grid_thw, image_index
        )

    def completion_ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask [R, C] of given completions, each closed by the end token, padded on the right."""
        rows = [[*row, self.eos_token_id] for row in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
        width = max(map(len, rows))
        ids = torch.tensor([row + [self.eos_token_id] * (width - len(row)) for row in rows])
        mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
        return ids, mask

    def decode(self, ids: Tensor, mask: Tensor) -> list[str]:
        """The text of each completion row, without padding and special tokens."""
        rows = [row[keep].tolist() for row, keep in zip(ids.cpu(), mask.cpu(), strict=True)]
        return [str(t) for t in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def suppressed_token_ids(self) -> list[int]:
        """Special tokens that must never be sampled: all but the end token. A sampled image token would make the
        next forward pass look for a picture."""
        return sorted(set(self.tokenizer.all_special_ids) - {self.eos_token_id})
