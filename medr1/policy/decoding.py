"""Token by token after a prefix: a cache with room for all that will be said, written in place.

transformers' own cache is concatenated anew for each token; at 16 rows of 300 tokens that was four fifths of a rollout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from medr1.tensors import Prefix


class RoomyLayer(DynamicLayer):
    """Keys and values [R, K, T, D] as views on buffers that are ``room`` tokens longer."""

    def __init__(self, keys: Tensor, values: Tensor, group_size: int, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._buffers = [_with_room(x, group_size, room) for x in (keys, values)]
        self._show(keys.shape[2])

    def _show(self, length: int) -> None:
        self._length = length
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end = self._length + key_states.shape[2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._length : end] = new
        self._show(end)
        return self._buffers[0][:, :, :end], self._buffers[1][:, :, :end]

    def select(self, rows: Tensor) -> None:
        self._buffers = [buffer[rows] for buffer in self._buffers]
        self._show(self._length)


def _with_room(x: Tensor, group_size: int, room: int) -> Tensor:
    """[B, K, P, D] -> [B*G, K, P + room, D], the G copies of a row beside each other."""
    rows, heads, length, size = x.shape
    buffer = x.new_empty(rows, group_size, heads, length + room, size)
    buffer[:, :, :, :length] = x.unsqueeze(1)
    return buffer.flatten(0, 1)


class PolicyDecoder:
    """R = B*G rows after their prompts, one token a step. Without gradients."""

    def __init__(self, model: Any, prefix: Prefix, group_size: int, room: int) -> None:
        self._model = model  # the ``*ForConditionalGeneration`` inside any adapter
        self._layers = [RoomyLayer(keys, values, group_size, room) for keys, values in prefix.layers]
        self._mask = torch.nn.functional.pad(prefix.mask.repeat_interleave(group_size, 0), (0, room), value=True)
        self._length = prefix.mask.shape[1]
        self._position = prefix.next_position.repeat_interleave(group_size, 0)

    @torch.no_grad()
    def step(self, ids: Tensor) -> Tensor:
        """Runs one token [R] of each row; hidden states [R, H] that predict the next."""
        self._length += 1
        out = self._model.model.language_model(
            inputs_embeds=self._model.get_input_embeddings()(ids.unsqueeze(1)),
            attention_mask=self._mask[:, : self._length].long(),
            position_ids=self._position.view(1, -1, 1).expand(3, -1, -1),
            past_key_values=Cache(layers=list(self._layers)),
            use_cache=True,
        )
        self._position = self._position + 1
        return out.last_hidden_state[:, -1]  # type: ignore[no-any-return]

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows only."""
        for layer in self._layers:
            layer.select(rows)
        self._mask, self._position = self._mask[rows], self._position[rows]
