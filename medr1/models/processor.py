"""From records to tensors: chat template, image patches, image tokens and explicit M-RoPE positions.

transformers' own processors need torchvision for videos; pairing the image processor with the tokenizer does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from medr1.domain.reasoning import TAGS, ReasoningMode, content_parts, question_text
from medr1.domain.records import Record
from medr1.errors import DataError
from medr1.models.tensors import PromptBatch, unpadded

IMAGE_TOKEN = "<|image_pad|>"
# (ids [B, P], token types [B, P], image_grid_thw, attention_mask) -> (positions [3, B, P], deltas [B, 1])
RopeIndex = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as chat text, and its images in the order of the text, which has one image token for each.

    ``parts``: texts and images of the user turn in order, from which a chat server makes the same prompt.
    """

    text: str
    images: tuple[Image.Image, ...] = ()
    parts: tuple[str | Image.Image, ...] = ()


@dataclass(frozen=True)
class Processor:
    """The tokenizer and the image processor of a model."""

    tokenizer: Any
    image_processor: Any
    rope_index: RopeIndex

    @property
    def eos_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def image_token_size(self) -> int:
        """Side of an image token in pixels."""
        return int(self.image_processor.patch_size) * int(self.image_processor.merge_size)

    def chat(self, content: str, images: int = 1) -> str:
        """The chat text of one user turn with images, up to the beginning of the assistant's turn.

        The images stand where ``content_parts`` puts them.
        """
        parts = [
            {"type": "image"} if isinstance(part, int) else {"type": "text", "text": part}
            for part in content_parts(content, images)
        ]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
        )
        return str(text)

    def prompt(self, record: Record, mode: ReasoningMode, images: Sequence[Image.Image]) -> Prompt:
        """The prompt of a record with its images, which are given in the order of the record."""
        return self.user_prompt(question_text(record.question, record.options, mode), images)

    def user_prompt(self, content: str, images: Sequence[Image.Image]) -> Prompt:
        """The prompt of one user turn."""
        parts = content_parts(content, len(images))
        order = [part for part in parts if isinstance(part, int)]
        return Prompt(
            self.chat(content, len(images)),
            tuple(images[i] for i in order),
            tuple(images[part] if isinstance(part, int) else part for part in parts),
        )

    def encode(self, prompts: Sequence[Prompt]) -> PromptBatch:
        """Tokenizes prompts, padded on the left, and cuts their images into patches.

        An image of h x w patches becomes h w / merge_size^2 image tokens. Prompts that share an image object share its
        patches.

        Raises:
            DataError: a text without exactly one image token for each of its images (the images of one prompt would
                silently be used for the next), or an image whose sides are no multiple of ``image_token_size``.
        """
        images = {id(image): image for prompt in prompts for image in prompt.images}
        index = {key: i for i, key in enumerate(images)}
        image_index = tuple(tuple(index[id(image)] for image in prompt.images) for prompt in prompts)
        pixel_values: Tensor | None = None
        image_grid_thw: Tensor | None = None
        size, merge = self.image_token_size, self.image_processor.merge_size
        if images:
            for image in images.values():
                if image.width % size or image.height % size:
                    raise DataError(
                        f"an image of {image.width} x {image.height} pixels is no multiple of the image token's "
                        f"{size} x {size}; choose another image_size"
                    )
            # Without resizing: some checkpoints have limits (Qwen3-VL: at least 256 x 256) that would change the size.
            features = self.image_processor(images=list(images.values()), do_resize=False, return_tensors="pt")
            pixel_values, image_grid_thw = features["pixel_values"], features["image_grid_thw"]
        texts = []
        tokens = [] if image_grid_thw is None else (image_grid_thw.prod(1) // merge**2).tolist()
        for prompt, of_prompt in zip(prompts, image_index, strict=True):
            first, *others = prompt.text.split(IMAGE_TOKEN)
            if len(others) != len(of_prompt):
                raise DataError(
                    f"a prompt with {len(of_prompt)} image(s) has {len(others)} times {IMAGE_TOKEN} in its text: "
                    f"{prompt.text[:300]!r}"
                )
            expanded = (IMAGE_TOKEN * tokens[i] + text for i, text in zip(of_prompt, others, strict=True))
            texts.append(first + "".join(expanded))
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
        types = (ids == self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)).int()
        grid_thw = (
            None if image_grid_thw is None else image_grid_thw[[i for of_prompt in image_index for i in of_prompt]]
        )
        positions, _ = self.rope_index(ids, types, image_grid_thw=grid_thw, attention_mask=mask)
        return PromptBatch(
            ids,
            mask,
            positions,
            positions.amax(dim=(0, 2)) + 1,
            pixel_values,
            image_grid_thw,
            image_index,
            parts=tuple(p.parts for p in prompts),
        )

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, without special ones."""
        rows: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return rows

    def completion_ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask [R, C] of given completions, each followed by the EOS token, padded on the right."""
        rows = [[*row, self.eos_token_id] for row in self.token_ids(texts)]
        width = max(map(len, rows))
        ids = torch.tensor([row + [self.eos_token_id] * (width - len(row)) for row in rows])
        mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
        return ids, mask

    def decode(self, ids: Tensor, mask: Tensor) -> list[str]:
        """The text of each completion [R, C], without padding and control tokens."""
        return [self.text(row) for row in unpadded(ids, mask)]

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens, without control tokens."""
        plain = [i for i in ids if i not in self.control_token_ids]
        return str(self.tokenizer.decode(plain, skip_special_tokens=False))

    @cached_property
    def control_token_ids(self) -> frozenset[int]:
        """The special tokens but for the reasoning tags, which some checkpoints declare as special.

        Without its tags no completion would have the format.
        """
        special = _special_tokens(self.tokenizer).items()
        return frozenset(i for i, token in special if not any(tag in token for tag in TAGS))

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """The id of each token as the tokenizer spells it. The tokenizer itself builds this dictionary in each call."""
        return dict(self.tokenizer.get_vocab())

    def suppressed_token_ids(self) -> list[int]:
        """Tokens that must not be sampled: all control tokens but the EOS token.

        A sampled image token would make the next forward pass look for an image.
        """
        return sorted(self.control_token_ids - {self.eos_token_id})


def control_tokens_of(tokenizer: Any) -> frozenset[str]:
    """The special tokens of a tokenizer, which it does not read as text.

    Tokens of one or two characters are left out: some tokenizers pad with "!", which is text as well.
    """
    return frozenset(token for token in _special_tokens(tokenizer).values() if len(token) > 2)


def _special_tokens(tokenizer: Any) -> dict[int, str]:
    """The special tokens by id: those that have a role, such as the EOS token, and added ones."""
    added = {int(i): str(token.content) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(map(int, tokenizer.all_special_ids), tokenizer.all_special_tokens, strict=True))
