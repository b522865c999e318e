"""The policy: what RL and evaluation need of a Qwen-VL model: ``prefill``, ``extend`` and ``decoder``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache

from medr1.models.shared_prefix_cache import PolicyDecoder
from medr1.models.tensors import Prefix, PromptBatch


class Policy(nn.Module):
    """Wraps a ``*ForConditionalGeneration`` of the Qwen-VL families, bare or with a PEFT adapter.

    Positions are always passed explicitly: the model's own ``rope_deltas`` survive from one call to the next and
    have given wrong positions in several public trainers.
    """

    model: Any  # a transformers model: its classes say too little to a type checker

    def __init__(self, model: nn.Module, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.model = model
        # With gradient checkpointing, transformers drops the cache that completions are scored against.
        self.gradient_checkpointing = gradient_checkpointing
        # No dropout anywhere: what is scored must be the policy that sampled.
        self.eval()

    @property
    def core(self) -> Any:
        """The model inside any adapter. PEFT replaces layers in place, so its adapters act here too."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def embed(self, prompts: PromptBatch, num_generations: int = 1) -> dict[str, Any]:
        """What the language model takes of the prompts, each ``num_generations`` times in R = B*G rows, its pictures once.

        inputs_embeds [R, P, H], with the picture features in their places. With DeepStack (Qwen3-VL) also these places,
        visual_pos_masks [R, P], and deepstack_visual_embeds: what its first layers add there, [places, H] for each.
        """
        ids = prompts.ids.repeat_interleave(num_generations, 0)
        embeddings: Tensor = self.core.get_input_embeddings()(ids)
        if prompts.pixel_values is None:
            return {"inputs_embeds": embeddings}
        features = prompts.features or self._features(prompts)
        each = [features[i] for i in prompts.image_index if i is not None for _ in range(num_generations)]
        image_index, *deeper = torch.cat(each, dim=1).to(embeddings.dtype)
        places = ids == self.core.config.image_token_id
        inputs = {"inputs_embeds": embeddings.masked_scatter(places.unsqueeze(-1), image_index)}
        return inputs | {"visual_pos_masks": places, "deepstack_visual_embeds": deeper} if deeper else inputs

    def precompute_image_features(self, prompts: PromptBatch) -> PromptBatch:
        """Where training leaves the vision tower as it is: the prompts with their pictures seen, once for rollout,
        reference and every update. Otherwise the prompts as they are."""
        if prompts.pixel_values is None or any(p.requires_grad for p in self.core.model.visual.parameters()):
            return prompts
        with torch.no_grad():
            return replace(prompts, features=self._features(prompts))

    def _features(self, prompts: PromptBatch) -> tuple[Tensor, ...]:
        seen = self.core.model.get_image_features(prompts.pixel_values, prompts.image_grid_thw, return_dict=True)
        levels = zip(seen.pooler_output, *getattr(seen, "deepstack_features", ()), strict=True)
        return tuple(torch.stack(level) for level in levels)

    def prefill(self, prompts: PromptBatch) -> Prefix:
        out = self.core.model.language_model(
            **self.embed(prompts),
            attention_mask=prompts.mask.long(),
            position_ids=prompts.positions,
            past_key_values=DynamicCache(),
            use_cache=True,
        )
        layers = tuple((layer.keys, layer.values) for layer in out.past_key_values.layers)
        return Prefix(layers, out.last_hidden_state[:, -1], prompts.mask, prompts.next_position)

    def extend(self, prefix: Prefix, ids: Tensor, mask: Tensor) -> Tensor:
        """Runs ids [R, L] after their prefix; hidden states [R, L, H]. Rows of ``mask`` are True before False."""
        steps = torch.arange(ids.shape[1], device=ids.device)
        positions = prefix.next_position[:, None] + steps
        out = self.core.model.language_model(
            inputs_embeds=self.core.get_input_embeddings()(ids),
            attention_mask=torch.cat([prefix.mask, mask], dim=1).long(),
            position_ids=positions.expand(3, -1, -1),
            past_key_values=DynamicCache(prefix.layers),
            use_cache=True,
        )
        return out.last_hidden_state  # type: ignore[no-any-return]

    def decoder(self, prefix: Prefix, num_generations: int, max_length: int) -> PolicyDecoder:
        return PolicyDecoder(self.core, prefix, num_generations, max_length)

    def hidden_without_cache(self, prompts: PromptBatch, ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states [R, C, H] that predict each completion token, from whole rows [prompt | completion].

        The way for gradient checkpointing: the language model runs over the prompt G times, the picture still once.
        """
        num_generations = ids.shape[0] // prompts.ids.shape[0]
        inputs = self.embed(prompts, num_generations)
        completion = self.core.get_input_embeddings()(ids)
        inputs["inputs_embeds"] = torch.cat([inputs["inputs_embeds"], completion], dim=1)
        if "visual_pos_masks" in inputs:  # no picture in a completion
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
        """transformers checkpoints only modules in training mode."""
        self.train(self.gradient_checkpointing)
        try:
            yield
        finally:
            self.eval()

    def without_adapter(self) -> AbstractContextManager[Any]:
        """The policy before any training: under LoRA, the same network with its adapter switched off."""
        return self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext()

    def trained_state(self, prefix: str) -> dict[str, Tensor]:
        """The weights that training changes, by name: all of them, or the adapter alone."""
        return {prefix + name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def logits(self, hidden: Tensor) -> Tensor:
        return self.core.lm_head(hidden).float()  # type: ignore[no-any-return]
