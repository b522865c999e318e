"""Token by token after a prefix. The G rows of a prompt attend to one copy of its keys and values.

transformers' own cache holds G copies, and is concatenated anew for each token: four fifths of a rollout's time. Here
the prefix stays as the prefill left it, and what the rows say goes into buffers that have room for all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache
from transformers.cache_utils import DynamicLayer

from medr1.models.tensors import Prefix

_ATTENTION = "medr1_shared_prefix"


class PreallocatedCacheLayer(DynamicLayer):
    """The rows' own keys and values [R, K, T, D], as views on buffers with room for more."""

    def __init__(self, rows: int, like: Tensor, max_length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device, self.is_initialized = like.dtype, like.device, True
        self.buffers = [like.new_empty(rows, like.shape[1], max_length, like.shape[3]) for _ in range(2)]
        self._show(0)

    def _show(self, length: int) -> None:
        self._length = length
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end = self._length + key_states.shape[2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._length : end] = new
        self._show(end)
        return self.buffers[0][:, :, :end], self.buffers[1][:, :, :end]

    def skip(self, tokens: int) -> None:
        self._show(self._length + tokens)

    def select(self, rows: Tensor) -> None:
        self.buffers = [buffer[rows] for buffer in self.buffers]
        self._show(self._length)


@dataclass(frozen=True, slots=True)
class Shared:
    """The prefix of B prompts, and where each of R rows stands among the rows of its prompt.

    place [R] is prompt * slots + slot; filler [B * slots] is a row for each place, any row where the place is empty.
    Both are None while all places are taken, in order.
    """

    prefix: Prefix
    hidden: Tensor  # [B, 1, 1, P], True at padding
    slots: int
    place: Tensor | None
    filler: Tensor | None

    @classmethod
    def among(cls, prefix: Prefix, prompt: Tensor) -> Shared:
        """``prompt`` [R]: each row's prompt, in ascending order."""
        prompts = prefix.mask.shape[0]
        counts = torch.bincount(prompt, minlength=prompts)
        slots = int(counts.max())
        hidden = ~prefix.mask[:, None, None, :]
        if len(prompt) == prompts * slots:
            return cls(prefix, hidden, slots, None, None)
        first = counts.cumsum(0) - counts
        place = prompt * slots + torch.arange(len(prompt), device=prompt.device) - first[prompt]
        filler = torch.zeros(prompts * slots, dtype=torch.long, device=prompt.device)
        filler[place] = torch.arange(len(prompt), device=prompt.device)
        return cls(prefix, hidden, slots, place, filler)

    def together(self, x: Tensor) -> Tensor:
        """[R, K, N, Z] -> [B, K, slots * N, Z]: the rows of a prompt as queries of one attention."""
        x = x if self.filler is None else x[self.filler]
        rows, heads, queries, size = x.shape
        x = x.view(rows // self.slots, self.slots, heads, queries, size).transpose(1, 2)
        return x.reshape(rows // self.slots, heads, self.slots * queries, size)

    def apart(self, x: Tensor) -> Tensor:
        """The inverse of ``together``."""
        prompts, heads, queries, size = x.shape
        x = x.view(prompts, heads, self.slots, queries // self.slots, size).transpose(1, 2)
        x = x.reshape(prompts * self.slots, heads, queries // self.slots, size)
        return x if self.place is None else x[self.place]


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    shared: Shared,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token a row, query [R, H', 1, D], over its prompt and its own keys and values [R, K, T, D].

    One softmax over both, so it equals attention over their concatenation. As transformers' AttentionInterface wants
    it, the result is [R, 1, H', D].
    """
    rows, heads, _, size = query.shape
    prefix_keys, prefix_values = shared.prefix.layers[module.layer_idx]  # type: ignore[index]
    query = query.view(rows, key.shape[1], -1, size) * scaling  # the queries of a key head beside each other
    on_prompt = shared.together(query) @ prefix_keys.transpose(-1, -2)
    on_prompt = shared.apart(on_prompt.masked_fill(shared.hidden, float("-inf")))
    weights = torch.cat([on_prompt, query @ key.transpose(-1, -2)], dim=-1)
    weights = weights.softmax(-1, dtype=torch.float32).to(query.dtype)
    of_prompt, of_own = torch.split(weights, [prefix_keys.shape[2], key.shape[2]], dim=-1)
    out = shared.apart(shared.together(of_prompt) @ prefix_values) + of_own @ value
    return out.reshape(rows, 1, heads, size), None


AttentionInterface.register(_ATTENTION, shared_prefix_attention)


class PolicyDecoder:
    """R = B*G rows after their prompts, one token a step. Without gradients."""

    def __init__(self, model: Any, prefix: Prefix, num_generations: int, max_length: int) -> None:
        self._model = model  # the ``*ForConditionalGeneration`` inside any adapter
        self._prefix = prefix
        self._prompt = torch.arange(prefix.mask.shape[0], device=prefix.mask.device).repeat_interleave(num_generations)
        self._shared = Shared.among(prefix, self._prompt)
        self._layers = [PreallocatedCacheLayer(len(self._prompt), keys, max_length) for keys, _ in prefix.layers]
        self._position = prefix.next_position[self._prompt]

    @torch.no_grad()
    def step(self, ids: Tensor) -> Tensor:
        """Runs one token [R] of each row; hidden states [R, H] that predict the next."""
        with self._attention():
            out = self._model.model.language_model(
                inputs_embeds=self._model.get_input_embeddings()(ids.unsqueeze(1)),
                attention_mask=None,  # the attention above knows what is padding
                position_ids=self._position.view(1, -1, 1).expand(3, -1, -1),
                past_key_values=Cache(layers=list(self._layers)),
                use_cache=True,
                shared=self._shared,
            )
        self._position = self._position + 1
        return out.last_hidden_state[:, -1]  # type: ignore[no-any-return]

    @property
    def buffers(self) -> list[Tensor]:
        """The rows' own keys and values, with the room that they have."""
        return [buffer for layer in self._layers for buffer in layer.buffers]

    def skip(self, tokens: int) -> None:
        """As if so many tokens had been run: a plan needs the last step, which is the largest, and no other."""
        for layer in self._layers:
            layer.skip(tokens)

    @contextmanager
    def _attention(self) -> Iterator[None]:
        config = self._model.model.language_model.config
        usual = config._attn_implementation
        config._attn_implementation = _ATTENTION
        try:
            yield
        finally:
            config._attn_implementation = usual

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows only (indices in ascending order, or a mask)."""
        for layer in self._layers:
            layer.select(rows)
        self._prompt, self._position = self._prompt[rows], self._position[rows]
        self._shared = Shared.among(self._prefix, self._prompt)
