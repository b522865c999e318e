"""The tensors that pass between policy, rl and training, and the legend of symbols used in all docstrings.

B prompts, G completions per prompt, P prompt length, C completion length, T packed length, V vocabulary, H hidden,
D dimension of a head, K heads of keys and values. Masks: True = real token. Prompts are padded on the left,
completions on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """B encoded prompts with at most one picture each.

    ids [B, P] and mask [B, P]; positions [3, B, P], explicit M-RoPE; next_position [B], the position of the first
    completion token; pixels [patches, patch size], all pictures in a row, or None; grids [pictures, 3]; shown, the
    index of each prompt's picture, or None: prompts on one picture share its encoding. features, one
    [levels, tokens, H] for each picture once a vision tower that nobody trains has seen it: whoever has it need not
    look again. The first level goes into the embeddings, any others into the first layers (DeepStack).
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    next_position: Tensor
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None
    image_index: tuple[int | None, ...]
    features: tuple[Tensor, ...] | None = None

    def to(self, device: torch.device) -> PromptBatch:
        return PromptBatch(
            self.ids.to(device),
            self.mask.to(device),
            self.positions.to(device),
            self.next_position.to(device),
            None if self.pixel_values is None else self.pixel_values.to(device),
            None if self.image_grid_thw is None else self.image_grid_thw.to(device),
            self.image_index,
            None if self.features is None else tuple(f.to(device) for f in self.features),
        )

    def select(self, rows: Sequence[int]) -> PromptBatch:
        """The given prompts with their pictures, without the padding that only the others needed. All of them, in
        order, are the batch itself."""
        if list(rows) == list(range(len(self.image_index))):
            return self
        mask = self.mask[list(rows)]
        start = int(mask.any(0).int().argmax())
        pictures = sorted({picture for row in rows if (picture := self.image_index[row]) is not None})
        pixel_values = image_grid_thw = None
        if self.pixel_values is not None and self.image_grid_thw is not None and pictures:
            patches = torch.split(self.pixel_values, self.image_grid_thw.prod(-1).tolist())
            pixel_values, image_grid_thw = (
                torch.cat([patches[picture] for picture in pictures]),
                self.image_grid_thw[pictures],
            )
        return PromptBatch(
            self.ids[list(rows), start:],
            mask[:, start:],
            self.positions[:, list(rows), start:],
            self.next_position[list(rows)],
            pixel_values,
            image_grid_thw,
            tuple(None if (picture := self.image_index[row]) is None else pictures.index(picture) for row in rows),
            None if self.features is None else tuple(self.features[picture] for picture in pictures),
        )


@dataclass(frozen=True, slots=True)
class Prefix:
    """B prompts after their one encoding: all that completions need of them.

    layers: keys and values [B, K, P, D] of every layer, still carrying gradients when encoded with them;
    hidden [B, H], the state that predicts the first completion token.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    hidden: Tensor
    mask: Tensor
    next_position: Tensor

    def repeat(self, num_generations: int) -> Prefix:
        """B*G rows, the G copies of a prompt beside each other. Gradients of the copies add up in the original."""
        if num_generations == 1:
            return self
        return Prefix(
            tuple(
                (k.repeat_interleave(num_generations, 0), v.repeat_interleave(num_generations, 0))
                for k, v in self.layers
            ),
            self.hidden.repeat_interleave(num_generations, 0),
            self.mask.repeat_interleave(num_generations, 0),
            self.next_position.repeat_interleave(num_generations, 0),
        )

    def select(self, rows: Tensor) -> Prefix:
        """The given rows (indices or a mask), in that order."""
        return Prefix(
            tuple((k[rows], v[rows]) for k, v in self.layers),
            self.hidden[rows],
            self.mask[rows],
            self.next_position[rows],
        )


@dataclass(frozen=True, slots=True)
class Completions:
    """R = B*G sampled rows, the G of a prompt beside each other.

    ids [R, C]; mask [R, C], the end token included; logprobs [R, C] under the distribution that was really sampled
    (temperature, top-k, top-p and banned tokens applied), 0 at padding; truncated [R]: no end token within C.
    """

    ids: Tensor
    mask: Tensor
    logprobs: Tensor
    truncated: Tensor

    def select(self, rows: Tensor) -> Completions:
        """The given rows (indices or a mask)."""
        return Completions(self.ids[rows], self.mask[rows], self.logprobs[rows], self.truncated[rows])


class Decoder(Protocol):
    """R rows that grow by a token at a time."""

    def step(self, ids: Tensor) -> Tensor:
        """Runs one token [R] of each row; hidden states [R, H] that predict the next."""

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows only."""


class SequenceModel(Protocol):
    """What rl needs of a policy. Implemented by ``medr1.models.policy.Policy``."""

    def prefill(self, prompts: PromptBatch) -> Prefix:
        """Encodes every prompt and picture once."""

    def extend(self, prefix: Prefix, ids: Tensor, mask: Tensor) -> Tensor:
        """Runs tokens [R, L] after their prefix, one row each; hidden states [R, L, H]."""

    def decoder(self, prefix: Prefix, num_generations: int, max_length: int) -> Decoder:
        """Each prompt ``num_generations`` times, ready for up to ``room`` tokens. Without gradients."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., V], in float32."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Given completions [R, C] for supervised training: ids, mask, and the weight of each token in the loss."""

    ids: Tensor
    mask: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Targets:
        return Targets(self.ids.to(device), self.mask.to(device), self.weights.to(device))

    def select(self, rows: Sequence[int]) -> Targets:
        """The given completions, as wide as the longest of them."""
        mask = self.mask[list(rows)]
        width = int(mask.sum(1).max())
        return Targets(self.ids[list(rows), :width], mask[:, :width], self.weights[list(rows), :width])
