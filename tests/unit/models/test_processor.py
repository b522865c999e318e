"""Encoding of prompts and images, and completions that decode to the text they were made from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from medr1.domain.reasoning import TAGS, ReasoningMode, instruction, target_text
from medr1.domain.records import Modality, QuestionType, Record
from medr1.errors import DataError
from medr1.models.processor import IMAGE_TOKEN, Processor, Prompt
from medr1.models.tiny import SPECIAL, build_image_processor, build_tokenizer
from tests.conftest import FAMILIES

SIZES = [(2, 2), None, (5, 3), (1, 3)]
TOKENIZER = build_tokenizer(["lung liver knee"], 320)
TEXTS = st.text(max_size=60).filter(lambda text: not any(token in text for token in SPECIAL))


class NoImage:
    key = "none"

    def load(self, side: int) -> Image.Image:
        raise AssertionError("not to be read")


def no_rope(*_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError("not to be called")


PROCESSOR = Processor(TOKENIZER, build_image_processor(), no_rope)


@pytest.fixture(params=FAMILIES)
def pair(request, tiny):
    return tiny(request.param)


def test_prompts_are_padded_on_the_left(pair, make_prompts) -> None:
    _, processor = pair
    prompts = make_prompts(processor, SIZES)
    batch = processor.encode(prompts)
    assert batch.ids.shape == batch.mask.shape == batch.positions.shape[1:]
    lengths = batch.mask.sum(1).tolist()
    assert len(set(lengths)) == len(SIZES) and max(lengths) == batch.ids.shape[1]
    for row, prompt in enumerate(prompts):
        padding = batch.ids.shape[1] - lengths[row]
        assert batch.mask[row].tolist() == [False] * padding + [True] * lengths[row]
        assert (batch.ids[row, :padding] == processor.tokenizer.pad_token_id).all()
        text = processor.tokenizer.decode(batch.ids[row, padding:])
        image_tokens = text.count(IMAGE_TOKEN)
        assert text == prompt.text.replace(IMAGE_TOKEN, IMAGE_TOKEN * max(1, image_tokens))


def test_every_image_becomes_as_many_image_tokens_as_merged_patches(pair, make_prompts) -> None:
    policy, processor = pair
    batch = processor.encode(make_prompts(processor, SIZES))
    assert batch.image_grid_thw is not None and batch.pixel_values is not None
    found = (batch.ids == policy.core.config.image_token_id).sum(1).tolist()
    assert found == [4, 0, 15, 3]
    assert found == [0 if size is None else size[0] * size[1] for size in SIZES]
    assert (batch.image_grid_thw.prod(1) // 4).tolist() == [n for n in found if n]
    assert batch.pixel_values.shape[0] == 4 * sum(found)


def test_positions_are_the_models_own_for_each_row_alone(pair, make_prompts) -> None:
    policy, processor = pair
    batch = processor.encode(make_prompts(processor, SIZES))
    assert batch.image_grid_thw is not None
    image_grid_thw = iter(batch.image_grid_thw.split(1))
    for row, size in enumerate(SIZES):
        ids = batch.ids[row, batch.mask[row]].unsqueeze(0)
        types = (ids == policy.core.config.image_token_id).int()
        grid = None if size is None else next(image_grid_thw)
        own, deltas = policy.core.model.get_rope_index(ids, types, image_grid_thw=grid)
        found = batch.positions[:, row, batch.mask[row]]
        assert torch.equal(found, own[:, 0])
        assert int(batch.next_position[row]) == int(own.max()) + 1 == ids.shape[1] + int(deltas)
        if size is None:
            assert found[0].tolist() == list(range(ids.shape[1]))
        else:
            assert len({tuple(p) for p in found[:, types[0].bool()].T.tolist()}) == size[0] * size[1]


def test_a_prompt_is_encoded_alike_alone_and_in_a_batch(pair, make_prompts) -> None:
    _, processor = pair
    prompts = make_prompts(processor, SIZES)
    together, used = processor.encode(prompts), 0
    for row, prompt in enumerate(prompts):
        alone, keep = processor.encode([prompt]), together.mask[row]
        assert torch.equal(alone.ids[0], together.ids[row, keep])
        assert torch.equal(alone.positions[:, 0], together.positions[:, row, keep])
        if alone.pixel_values is not None and together.pixel_values is not None:
            assert torch.equal(alone.pixel_values, together.pixel_values[used : used + len(alone.pixel_values)])
            used += len(alone.pixel_values)


@pytest.mark.parametrize("mode", ReasoningMode)
def test_a_record_becomes_one_user_turn_with_one_image_token(mode: ReasoningMode) -> None:
    record = Record(
        "r", (NoImage(),), Modality.CT, QuestionType.ANATOMY, "Which organ?", {"B": "lung", "A": "CT, PET"}, "A"
    )
    image = Image.fromarray(np.zeros((28, 28, 3), dtype=np.uint8))
    prompt = PROCESSOR.prompt(record, mode, [image])
    assert prompt.images == (image,) and prompt.images[0] is image
    assert prompt.text == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        f"Which organ?\nB) lung\nA) CT, PET\n{instruction(mode)}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert IMAGE_TOKEN not in PROCESSOR.chat("Which organ?", images=0)


def test_an_image_without_exactly_one_image_token_is_refused(tiny) -> None:
    """Otherwise the features of one image would silently be used for the next prompt."""
    _, processor = tiny("qwen2_vl")
    image = Image.fromarray(np.zeros((28, 28, 3), dtype=np.uint8))
    for text in (processor.chat("none", images=0), processor.chat(f"two {IMAGE_TOKEN}")):
        with pytest.raises(DataError, match="image_pad"):
            processor.encode([Prompt(text, (image,)), Prompt(processor.chat("one"), (image,))])
    with pytest.raises(DataError, match="image_pad"):
        processor.encode([Prompt(processor.chat("one"))])


@given(TEXTS)
def test_any_text_encodes_and_decodes_with_the_tiny_tokenizer(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text
    assert not set(ids) & set(TOKENIZER.all_special_ids)


@given(st.lists(TEXTS, min_size=1, max_size=4), st.sampled_from(ReasoningMode))
def test_completions_decode_to_their_texts(rationales: list[str], mode: ReasoningMode) -> None:
    texts = [target_text(mode, "C", rationale) for rationale in rationales]
    ids, mask = PROCESSOR.completion_ids(texts)
    assert PROCESSOR.decode(ids, mask) == texts
    for row, keep in zip(ids, mask, strict=True):
        length = int(keep.sum())
        assert keep.tolist() == [True] * length + [False] * (len(row) - length)
        assert (row == PROCESSOR.eos_token_id).nonzero()[
            0
        ].item() == length - 1  # the end token is a part of the completion
        assert (row[length:] == PROCESSOR.eos_token_id).all()


def test_an_empty_completion_is_the_end_token_alone() -> None:
    ids, mask = PROCESSOR.completion_ids(["", "lung"])
    assert mask.sum(1).tolist() == [1, len(TOKENIZER("lung")["input_ids"]) + 1]
    assert ids[0, 0] == PROCESSOR.eos_token_id


def test_all_special_tokens_but_the_end_are_suppressed_and_the_tags_are_not() -> None:
    suppress_tokens = PROCESSOR.suppressed_token_ids()
    assert suppress_tokens == sorted(TOKENIZER.convert_tokens_to_ids([t for t in SPECIAL if t != "<|im_end|>"]))
    assert PROCESSOR.eos_token_id == TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    tags = TOKENIZER("".join(TAGS))["input_ids"]
    assert tags == TOKENIZER.convert_tokens_to_ids(list(TAGS))  # one token each
    assert not set(tags) & set(suppress_tokens)


def with_special(tokens: Sequence[str], declared: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the same ids whose ``tokens`` are special, in one of the ways in which checkpoints say so."""
    tokenizer = build_tokenizer(["lung liver knee"], 320)
    if declared == "listed":
        tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL, *tokens]})
    else:
        tokenizer.backend_tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens])
    assert tokenizer.decode(tokenizer.convert_tokens_to_ids(tokens), skip_special_tokens=True) == ""
    return tokenizer


@pytest.mark.parametrize("declared", ["listed", "added"])
@pytest.mark.parametrize("tokens", [TAGS, TAGS[:2], TAGS[2:], TAGS[1:2], TAGS[3:]], ids=" ".join)
def test_tags_that_are_special_tokens_are_decoded_and_sampled(tokens: Sequence[str], declared: str) -> None:
    processor = Processor(with_special(tokens, declared), build_image_processor(), no_rope)
    texts = [target_text(mode, "C", "lung, not knee") for mode in ReasoningMode]
    ids, mask = processor.completion_ids(texts)
    assert torch.equal(ids, PROCESSOR.completion_ids(texts)[0])
    assert processor.decode(ids, mask) == texts
    assert processor.suppressed_token_ids() == PROCESSOR.suppressed_token_ids()


@pytest.mark.parametrize("token", [t for t in SPECIAL if t != "<|im_end|>"])
def test_control_tokens_are_neither_decoded_nor_sampled(token: str) -> None:
    i = TOKENIZER.convert_tokens_to_ids(token)
    assert PROCESSOR.text([i, *TOKENIZER("lung")["input_ids"], i, PROCESSOR.eos_token_id]) == "lung"
    assert i in PROCESSOR.suppressed_token_ids()
