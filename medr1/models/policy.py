"""The policy: a Qwen-VL model with the forward passes that training and generation use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache

from medr1.models.shared_prefix_cache import PolicyDecoder, StaticDecoder
from medr1.models.tensors import Prefix, PromptBatch
from medr1.models.transformers_compat import cache_argument, set_gradient_checkpointing

REFERENCE_ADAPTER = "reference"  # the frozen copy of a LoRA adapter that goes on training


class Policy(nn.Module):
    """Wraps a ``*ForConditionalGeneration`` of the Qwen-VL families, with or without a PEFT adapter.

    Positions are always passed explicitly: the model stores ``rope_deltas`` between calls, which has led to wrong
    positions in several public trainers. Dropout is always off, because the scored policy must be the one that sampled.
    """

    model: Any  # transformers' classes have no useful types

    def __init__(self, model: nn.Module, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.model = model
        self.continues_adapter = False  # whether the LoRA adapter was trained before this training
        self.dtype: torch.dtype | None = None  # that of the weights once they are sharded, if it is another than now
        # If set, training uses ``hidden_without_cache``, because transformers disables the KV cache under gradient
        # checkpointing.
        self.gradient_checkpointing = gradient_checkpointing
        set_gradient_checkpointing(self.core, gradient_checkpointing)
        self.eval()

    @property
    def core(self) -> Any:
        """The transformers model. PEFT replaces layers in place, so an adapter is active in it too."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def embed(self, prompts: PromptBatch, num_generations: int = 1) -> dict[str, Any]:
        """The inputs of the language model, G rows for each prompt (R = B*G). Each image is encoded once.

        inputs_embeds [R, P, H] with image features at the image tokens. With DeepStack (Qwen3-VL) also visual_pos_masks
        [R, P], True at image tokens, and deepstack_visual_embeds: [image tokens, H] to add in each of the first layers.
        """
        ids = prompts.ids.repeat_interleave(num_generations, 0)
        embeddings: Tensor = self.core.get_input_embeddings()(ids)
        if prompts.pixel_values is None:
            return {"inputs_embeds": embeddings}
        features = prompts.image_features or self._image_features(prompts)
        rows = [features[i] for images in prompts.image_index for _ in range(num_generations) for i in images]
        first, *deeper = torch.cat(rows, dim=1).to(embeddings.dtype)
        is_image = ids == self.core.config.image_token_id
        inputs = {"inputs_embeds": embeddings.masked_scatter(is_image.unsqueeze(-1), first)}
        return inputs | {"visual_pos_masks": is_image, "deepstack_visual_embeds": deeper} if deeper else inputs

    def precompute_image_features(self, prompts: PromptBatch) -> PromptBatch:
        """The prompts with image features, if the vision tower is frozen; otherwise the prompts as they are.

        Rollout, reference and all updates then share one pass through the vision tower.
        """
        if prompts.pixel_values is None or any(p.requires_grad for p in self.core.model.visual.parameters()):
            return prompts
        with torch.no_grad():
            return replace(prompts, image_features=self._image_features(prompts))

    def _image_features(self, prompts: PromptBatch) -> tuple[Tensor, ...]:
        out = self.core.model.get_image_features(prompts.pixel_values, prompts.image_grid_thw, return_dict=True)
        levels = zip(out.pooler_output, *getattr(out, "deepstack_features", ()), strict=True)
        return tuple(torch.stack(level) for level in levels)

    def prefill(self, prompts: PromptBatch) -> Prefix:
        cache: Any = DynamicCache()
        out = self.core.model.language_model(
            **self.embed(prompts),
            attention_mask=prompts.mask.long(),
            position_ids=prompts.positions,
            use_cache=True,
            **cache_argument(cache),
        )
        layers = tuple((layer.keys, layer.values) for layer in cache.layers)
        return Prefix(layers, out.last_hidden_state[:, -1], prompts.mask, prompts.next_position)

    def extend(self, prefix: Prefix, ids: Tensor, mask: Tensor) -> Tensor:
        """Forward pass over ids [R, L] with the KV cache of the prefix (R rows). Returns hidden states [R, L, H].

        Rows of ``mask`` [R, L] are padded on the right.
        """
        steps = torch.arange(ids.shape[1], device=ids.device)
        positions = prefix.next_position[:, None] + steps
        out = self.core.model.language_model(
            inputs_embeds=self.core.get_input_embeddings()(ids),
            attention_mask=torch.cat([prefix.mask, mask], dim=1).long(),
            position_ids=positions.expand(3, -1, -1),
            use_cache=True,
            **cache_argument(DynamicCache(prefix.layers)),
        )
        return out.last_hidden_state  # type: ignore[no-any-return]

    def decoder(self, prefix: Prefix, num_generations: int, max_length: int) -> PolicyDecoder:
        return PolicyDecoder(self.core, prefix, num_generations, max_length)

    def static_decoder(self, prefix: Prefix, num_generations: int, max_length: int) -> StaticDecoder:
        return StaticDecoder(self.core, prefix, num_generations, max_length)

    def hidden_without_cache(self, prompts: PromptBatch, ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states [R, C, H] that predict each token of completions [R, C], from rows [prompt | completion].

        Used with gradient checkpointing, of the vision tower as well. The language model runs over each prompt G times,
        the vision tower over each image once.
        """
        num_generations = ids.shape[0] // prompts.ids.shape[0]
        with self._checkpointing():
            inputs = self.embed(prompts, num_generations)
        completion = self.core.get_input_embeddings()(ids)
        inputs["inputs_embeds"] = torch.cat([inputs["inputs_embeds"], completion], dim=1)
        if "visual_pos_masks" in inputs:  # no image tokens in completions
            inputs["visual_pos_masks"] = nn.functional.pad(inputs["visual_pos_masks"], (0, ids.shape[1]))
        start = prompts.next_position.repeat_interleave(num_generations, 0)
        after = (start[:, None] + torch.arange(ids.shape[1], device=ids.device)).expand(3, -1, -1)
        with self._checkpointing():
            out = self.core.model.language_model(
                **inputs,
                attention_mask=torch.cat([prompts.mask.repeat_interleave(num_generations, 0), mask], dim=1).long(),
                position_ids=torch.cat([prompts.positions.repeat_interleave(num_generations, 1), after], dim=2),
                use_cache=False,
            )
        return out.last_hidden_state[:, prompts.ids.shape[1] - 1 : -1]  # type: ignore[no-any-return]

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """Switches to train mode, in which alone transformers applies gradient checkpointing."""
        self.train(self.gradient_checkpointing)
        try:
            yield
        finally:
            self.eval()

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Makes it the reference policy. With LoRA: without its adapter, or with the frozen copy of a continued one."""
        if not isinstance(self.model, PeftModel):
            yield
            return
        # peft sets requires_grad of all adapters when it switches, also of those that are not trained.
        trained = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        active = self.model.active_adapter
        try:
            if REFERENCE_ADAPTER in self.model.peft_config:
                self.model.set_adapter(REFERENCE_ADAPTER)
                yield
            else:
                with self.model.disable_adapter():
                    yield
        finally:
            self.model.set_adapter(active)
            for parameter, requires_grad in trained:
                parameter.requires_grad_(requires_grad)

    def trained_state(self, prefix: str) -> dict[str, Tensor]:
        """The trainable weights, keys prefixed with ``prefix``."""
        return {prefix + name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def logits(self, hidden: Tensor) -> Tensor:
        return self.core.lm_head(hidden).float()  # type: ignore[no-any-return]
