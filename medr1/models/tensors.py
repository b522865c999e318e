"""The tensors that pass between models, generation, rl and training, and the symbols used in all docstrings.

B prompts, G generations per prompt, R = B*G completions, P prompt length, C completion length, T length of a
completion so far, V vocabulary, H hidden, D dimension of an attention head, K heads of keys and values. Masks: True =
non-padding token. Prompts are padded on the left, completions on the right. The G completions of a prompt are adjacent
rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

T = TypeVar("T")


def map_tensors(function: Callable[[Tensor], Tensor], value: T) -> T:
    """Applies a function to all tensors of a dataclass, also to those in tuples."""
    if isinstance(value, Tensor):
        return function(value)  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(map_tensors(function, item) for item in value)  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: map_tensors(function, getattr(value, f.name)) for f in fields(value)})
    return value


def unpadded(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """The ids of each row [R, C] where the mask is True."""
    return [row[keep].tolist() for row, keep in zip(ids.cpu(), mask.cpu(), strict=True)]


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """B encoded prompts, each with any number of images.

    ids, mask [B, P]. positions [3, B, P]: explicit M-RoPE positions. next_position [B]: that of the first completion
    token. pixel_values [patches, patch size]: the patches of all images, or None. image_grid_thw [images, 3].
    image_index: for each prompt the indices of its images, in the order of the prompt; prompts may share images.
    image_features: [levels, image tokens, H] for each image. If set, the vision tower is skipped. The first level
    replaces embeddings, the others are added in the first layers (DeepStack).
    parts: for each prompt the texts and images of its user turn, for engines that encode it elsewhere.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    next_position: Tensor
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None
    image_index: tuple[tuple[int, ...], ...]
    image_features: tuple[Tensor, ...] | None = None
    parts: tuple[tuple[str | Image.Image, ...], ...] = ()

    def to(self, device: torch.device) -> PromptBatch:
        return map_tensors(lambda x: x.to(device), self)

    def select(self, rows: Sequence[int]) -> PromptBatch:
        """The given prompts with their images, without columns that are padding in all of them.

        If ``rows`` are all prompts in order, the batch itself.
        """
        rows = list(rows)
        if rows == list(range(len(self.image_index))):
            return self
        mask = self.mask[rows]
        start = int(mask.any(0).int().argmax())
        images = sorted({image for row in rows for image in self.image_index[row]})
        pixel_values = image_grid_thw = None
        if self.pixel_values is not None and self.image_grid_thw is not None and images:
            patches = torch.split(self.pixel_values, self.image_grid_thw.prod(-1).tolist())
            pixel_values = torch.cat([patches[image] for image in images])
            image_grid_thw = self.image_grid_thw[images]
        return PromptBatch(
            self.ids[rows, start:],
            mask[:, start:],
            self.positions[:, rows, start:],
            self.next_position[rows],
            pixel_values,
            image_grid_thw,
            tuple(tuple(images.index(image) for image in self.image_index[row]) for row in rows),
            None if self.image_features is None else tuple(self.image_features[image] for image in images),
            tuple(self.parts[row] for row in rows if self.parts),
        )


@dataclass(frozen=True, slots=True)
class Prefix:
    """B prompts after prefill.

    layers: keys and values [B, K, P, D] of each layer, with gradients if prefill had them. hidden [B, H]: predicts the
    first completion token. mask [B, P], next_position [B]: as in ``PromptBatch``.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    hidden: Tensor
    mask: Tensor
    next_position: Tensor

    def repeat(self, num_generations: int) -> Prefix:
        """R = B*G rows. Gradients of the copies of a prompt add up."""
        return self if num_generations == 1 else map_tensors(lambda x: x.repeat_interleave(num_generations, 0), self)

    def select(self, rows: Tensor) -> Prefix:
        """The given rows (indices or a mask)."""
        return map_tensors(lambda x: x[rows], self)


@dataclass(frozen=True, slots=True)
class Completions:
    """R sampled completions.

    ids [R, C]. mask [R, C]: includes the EOS token. logprobs [R, C]: under the distribution that was sampled (after
    temperature, top-k, top-p and suppressed tokens), 0 at padding. truncated [R]: no EOS token within the maximum
    completion length.
    """

    ids: Tensor
    mask: Tensor
    logprobs: Tensor
    truncated: Tensor

    def select(self, rows: Tensor) -> Completions:
        """The given rows (indices or a mask)."""
        return map_tensors(lambda x: x[rows], self)

    def trimmed(self, rows: slice) -> Completions:
        """The given rows, padded to the longest of them, but to two tokens at least, as in ``rollout``."""
        width = max(2, int(self.mask[rows].sum(1).max()))
        return map_tensors(lambda x: x[rows, :width] if x.ndim == 2 else x[rows], self)

    def interleave(self, other: Completions, prompts: int) -> Completions:
        """The completions of each of ``prompts`` prompts, followed by those that ``other`` has of it."""
        width = max(self.ids.shape[1], other.ids.shape[1])

        def grouped(x: Tensor) -> Tensor:
            padded = torch.nn.functional.pad(x, (0, width - x.shape[1])) if x.ndim == 2 else x
            return padded.reshape(prompts, -1, *padded.shape[1:])

        pairs = [(grouped(getattr(self, f.name)), grouped(getattr(other, f.name))) for f in fields(self)]
        return Completions(*(torch.cat(pair, 1).flatten(0, 1) for pair in pairs))

    def token_ids(self) -> list[list[int]]:
        """The ids of each completion without padding."""
        return unpadded(self.ids, self.mask)


@dataclass(frozen=True, slots=True)
class Targets:
    """Target completions [R, C] of supervised training: ids, mask, and the weight of each token in the loss."""

    ids: Tensor
    mask: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Targets:
        return map_tensors(lambda x: x.to(device), self)

    def select(self, rows: Sequence[int]) -> Targets:
        """The given rows, padded to the longest of them."""
        rows = list(rows)
        mask = self.mask[rows]
        width = int(mask.sum(1).max())
        return Targets(self.ids[rows, :width], mask[:, :width], self.weights[rows, :width])
