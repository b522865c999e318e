"""The tiny model: a Qwen2-VL of 1.6 M parameters in the transformers classes, with its own tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from medr1.domain.reasoning import TAGS
from medr1.models.policy import Policy
from medr1.models.processor import Processor

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Qwen2-VL's template without its system prompt, which would be a quarter of the tiny model's prompt.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(corpus: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which each word of ``corpus`` is one token.

    The reasoning tags are single tokens but not special ones (as <think> in Qwen3): they can be sampled, and decoding
    keeps them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL) - len(TAGS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL),
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_image_processor() -> Qwen2VLImageProcessorPil:
    """Qwen2-VL's image processor, with limits low enough for small images."""
    return Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 256})


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLConfig:
    """The config of the tiny model, with the special token ids of the tokenizer."""
    ids = {token: tokenizer.get_vocab()[token] for token in SPECIAL}
    return Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": ids["<|im_start|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={"depth": 3, "embed_dim": 96, "hidden_size": 128, "num_heads": 4, "mlp_ratio": 3},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


@torch.no_grad()
def initialize(model: Qwen2VLForConditionalGeneration, seed: int) -> None:
    """Initializes the weights of a narrow model for training from scratch.

    Weights are scaled by fan-in. The family's default of 0.02 is meant for widths of thousands: at width 128 the model
    has not learned to bind options to letters after 45,000 samples. The head starts as the embeddings times
    0.5 / sqrt(H), as if they were tied, so that attending to a letter copies it.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.normal_(0, 1.0, generator=generator)
        elif isinstance(module, nn.Linear | nn.Conv3d):
            module.weight.normal_(0, 1 / math.sqrt(module.weight[0].numel()), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
    embeddings = model.model.language_model.embed_tokens.weight
    model.lm_head.weight.copy_(0.5 * embeddings / math.sqrt(embeddings.shape[1]))


def build_tiny_policy(corpus: Iterable[str], vocab_size: int, seed: int) -> tuple[Policy, Processor]:
    """The untrained tiny policy, with a tokenizer trained on the corpus."""
    tokenizer = build_tokenizer(corpus, vocab_size)
    model = Qwen2VLForConditionalGeneration(tiny_config(tokenizer))
    initialize(model, seed)
    return Policy(model), Processor(tokenizer, build_image_processor(), model.model.get_rope_index)
