"""Decoding after a shared prefix: the G rows of a prompt attend to one copy of its keys and values.

transformers' own cache holds G copies of the prompt and concatenates them for every token, which takes four fifths of
a rollout's time. Here the prefix stays as the prefill left it, and the keys and values of completions are written into
preallocated buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache
from transformers.cache_utils import DynamicLayer

from medr1.models.tensors import Prefix
from medr1.models.transformers_compat import cache_argument

_ATTENTION = "medr1_shared_prefix"


class PreallocatedCacheLayer(DynamicLayer):
    """Keys and values [R, K, T, D] of completions, as views of buffers [R, K, max_length, D]."""

    def __init__(self, rows: int, like: Tensor, max_length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device, self.is_initialized = like.dtype, like.device, True
        self.buffers = [like.new_empty(rows, like.shape[1], max_length, like.shape[3]) for _ in range(2)]
        self._set_length(0)

    def _set_length(self, length: int) -> None:
        self._length = length
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end = self._length + key_states.shape[2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._length : end] = new
        self._set_length(end)
        return self.buffers[0][:, :, :end], self.buffers[1][:, :, :end]

    def skip(self, tokens: int) -> None:
        self._set_length(self._length + tokens)

    def select(self, rows: Tensor) -> None:
        self.buffers = [buffer[rows] for buffer in self.buffers]
        self._set_length(self._length)


class StaticCacheLayer(PreallocatedCacheLayer):
    """The same with all ``max_length`` tokens in every step, so that no shape changes: [R, K, max_length, D].

    Tokens that are not decoded yet are zeros, which the attention masks.
    """

    def __init__(self, rows: int, like: Tensor, max_length: int) -> None:
        super().__init__(rows, like, max_length)
        for buffer in self.buffers:
            buffer.zero_()
        self.index: Tensor | None = None  # [1], of the token that is decoded next

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.index is not None
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer.index_copy_(2, self.index, new)
        return self.buffers[0], self.buffers[1]


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """The prefix of B prompts, and the slot of each of R rows among the rows of its prompt.

    Every prompt has ``slots`` slots, as many as the prompt with the most rows has rows. slot_of_row [R]: index into all
    B * slots slots. row_of_slot [B * slots]: an arbitrary row where the slot is empty. Both are None if all slots are
    taken in order. is_padding [B, 1, 1, P]: True at padding.
    """

    prefix: Prefix
    is_padding: Tensor
    slots: int
    slot_of_row: Tensor | None
    row_of_slot: Tensor | None

    @classmethod
    def of_rows(cls, prefix: Prefix, prompt_of_row: Tensor) -> SharedPrefix:
        """``prompt_of_row`` [R] is in ascending order."""
        prompts, device = prefix.mask.shape[0], prompt_of_row.device
        counts = torch.bincount(prompt_of_row, minlength=prompts)
        slots = int(counts.max())
        is_padding = ~prefix.mask[:, None, None, :]
        rows = torch.arange(len(prompt_of_row), device=device)
        if len(rows) == prompts * slots:
            return cls(prefix, is_padding, slots, None, None)
        first = counts.cumsum(0) - counts
        slot_of_row = prompt_of_row * slots + rows - first[prompt_of_row]
        row_of_slot = torch.zeros(prompts * slots, dtype=torch.long, device=device)
        row_of_slot[slot_of_row] = rows
        return cls(prefix, is_padding, slots, slot_of_row, row_of_slot)

    def group(self, x: Tensor) -> Tensor:
        """[R, K, N, Z] -> [B, K, slots * N, Z]: the rows of a prompt become queries of one attention."""
        x = x if self.row_of_slot is None else x[self.row_of_slot]
        rows, heads, queries, size = x.shape
        x = x.view(rows // self.slots, self.slots, heads, queries, size).transpose(1, 2)
        return x.reshape(rows // self.slots, heads, self.slots * queries, size)

    def ungroup(self, x: Tensor) -> Tensor:
        """The inverse of ``group``."""
        prompts, heads, queries, size = x.shape
        x = x.view(prompts, heads, self.slots, queries // self.slots, size).transpose(1, 2)
        x = x.reshape(prompts * self.slots, heads, queries // self.slots, size)
        return x if self.slot_of_row is None else x[self.slot_of_row]


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    shared: SharedPrefix,
    is_future: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token per row, query [R, heads, 1, D], over its prompt and its own keys and values.

    key, value [R, K, T, D]: those of the completion so far. is_future [T]: True at tokens that are not decoded yet.

    One softmax over both, which equals attention over their concatenation. Scores are computed in float32, as in the
    kernels of training: biases of Qwen2's queries and keys make them so large that bfloat16 would change the weights.
    Returns [R, 1, heads, D], as transformers' ``AttentionInterface`` requires.
    """
    rows, heads, _, size = query.shape
    prefix_keys, prefix_values = shared.prefix.layers[module.layer_idx]  # type: ignore[index]
    # The queries that share a key head are adjacent.
    query = query.view(rows, key.shape[1], -1, size).float() * scaling
    prompt_scores = shared.group(query) @ prefix_keys.float().transpose(-1, -2)
    prompt_scores = shared.ungroup(prompt_scores.masked_fill(shared.is_padding, float("-inf")))
    own_scores = query @ key.float().transpose(-1, -2)
    if is_future is not None:
        own_scores = own_scores.masked_fill(is_future, float("-inf"))
    weights = torch.cat([prompt_scores, own_scores], dim=-1)
    weights = weights.softmax(-1).to(value.dtype)
    prompt_weights, own_weights = torch.split(weights, [prefix_keys.shape[2], key.shape[2]], dim=-1)
    out = shared.ungroup(shared.group(prompt_weights) @ prefix_values) + own_weights @ value
    return out.reshape(rows, 1, heads, size), None


AttentionInterface.register(_ATTENTION, shared_prefix_attention)


class _Decoder:
    """Decodes R = B*G completions after their prompts, one token a step, without gradients."""

    layer: ClassVar[type[PreallocatedCacheLayer]]

    def __init__(self, model: Any, prefix: Prefix, num_generations: int, max_length: int) -> None:
        self._model = model  # transformers' ``*ForConditionalGeneration``
        self._prefix = prefix
        prompts = torch.arange(prefix.mask.shape[0], device=prefix.mask.device)
        self._prompt_of_row = prompts.repeat_interleave(num_generations)
        self._shared = SharedPrefix.of_rows(prefix, self._prompt_of_row)
        rows = len(self._prompt_of_row)
        self._layers = [self.layer(rows, keys, max_length) for keys, _ in prefix.layers]
        self._position = prefix.next_position[self._prompt_of_row]

    def _forward(self, ids: Tensor, position: Tensor, **arguments: Any) -> Tensor:
        """One token [R] of each row at a position [R]. Returns the hidden states [R, H] that predict the next."""
        with self._attention():
            out = self._model.model.language_model(
                inputs_embeds=self._model.get_input_embeddings()(ids.unsqueeze(1)),
                attention_mask=None,  # shared_prefix_attention masks the padding
                position_ids=position.view(1, -1, 1).expand(3, -1, -1),
                use_cache=True,
                shared=self._shared,
                **cache_argument(Cache(layers=list(self._layers))),
                **arguments,
            )
        return out.last_hidden_state[:, -1]  # type: ignore[no-any-return]

    @contextmanager
    def _attention(self) -> Iterator[None]:
        config = self._model.model.language_model.config
        before = config._attn_implementation
        config._attn_implementation = _ATTENTION
        try:
            yield
        finally:
            config._attn_implementation = before

    @property
    def buffers(self) -> list[Tensor]:
        """The preallocated keys and values of all layers."""
        return [buffer for layer in self._layers for buffer in layer.buffers]


class PolicyDecoder(_Decoder):
    """Reads as many keys and values as there are. Rows can be dropped."""

    layer: ClassVar[type[PreallocatedCacheLayer]] = PreallocatedCacheLayer

    @torch.no_grad()
    def step(self, ids: Tensor) -> Tensor:
        """Runs one token [R] of each row. Returns the hidden states [R, H] that predict the next."""
        hidden = self._forward(ids, self._position)
        self._position = self._position + 1
        return hidden

    def skip(self, tokens: int) -> None:
        """Advances without computing, for memory planning: only the last steps matter there, in which T is largest."""
        for layer in self._layers:
            layer.skip(tokens)

    def select(self, rows: Tensor) -> None:
        """Drops all other rows. ``rows``: indices in ascending order, or a mask."""
        for layer in self._layers:
            layer.select(rows)
        self._prompt_of_row, self._position = self._prompt_of_row[rows], self._position[rows]
        self._shared = SharedPrefix.of_rows(self._prefix, self._prompt_of_row)


class StaticDecoder(_Decoder):
    """Launches the same kernels in every step, so that they can be recorded in a CUDA graph."""

    layer: ClassVar[type[PreallocatedCacheLayer]] = StaticCacheLayer

    def __init__(self, model: Any, prefix: Prefix, num_generations: int, max_length: int) -> None:
        super().__init__(model, prefix, num_generations, max_length)
        self._steps = torch.arange(max_length, device=prefix.mask.device)

    @torch.no_grad()
    def step_at(self, ids: Tensor, index: Tensor) -> Tensor:
        """Runs the tokens [R] at an index [1] of the completions. Returns the hidden states [R, H] that predict the
        next."""
        for layer in self._layers:
            assert isinstance(layer, StaticCacheLayer)
            layer.index = index
        return self._forward(ids, self._position + index, is_future=self._steps > index)
