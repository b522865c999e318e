"""Names that differ between the supported versions of transformers, in one place."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Cache, Qwen2VLTextModel

# The argument of a text model's forward pass that takes the cache: `cache` since 5.24, `past_key_values` before. The
# three model families changed together.
_CACHE_ARGUMENT = "cache" if "cache" in inspect.signature(Qwen2VLTextModel.forward).parameters else "past_key_values"


def cache_argument(cache: Cache) -> dict[str, Cache]:
    """The keyword argument with which a text model takes a cache."""
    return {_CACHE_ARGUMENT: cache}


@contextmanager
def without_peft_warnings() -> Iterator[None]:
    """Hides the deprecation warning about a name of transformers < 5.23 that peft 0.21 still uses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def is_gradient_checkpointing(model: Any) -> bool:
    """Whether transformers recomputes the activations of a model's layers in the backward pass."""
    since_5_23 = hasattr(type(model), "is_activation_checkpointing")
    return bool(model.is_activation_checkpointing if since_5_23 else model.is_gradient_checkpointing)


def set_gradient_checkpointing(model: Any, enabled: bool) -> None:
    """Switches gradient checkpointing of a model on or off."""
    if enabled == is_gradient_checkpointing(model):
        return
    # `activation_checkpointing_*` since 5.23, `gradient_checkpointing_*` before.
    name = "activation" if hasattr(type(model), "activation_checkpointing_enable") else "gradient"
    if enabled:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{name}_checkpointing_disable")()
