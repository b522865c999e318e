"""Scores from one shared prefill against the slow way: transformers' forward pass over one unpadded row [prompt |
completion] after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from medr1.config.enums import LoraTargets
from medr1.config.settings import LoraConfig
from medr1.generation.logprobs import Scores, completion_hidden, score
from medr1.models.adapters import set_trainable
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.models.tensors import PromptBatch
from medr1.models.transformers_compat import set_gradient_checkpointing
from tests.conftest import FAMILIES

SIZES = [(2, 2), None, [(5, 3), (1, 2), (2, 2)], (1, 3)]
GROUP = 3
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}  # float32 rounds differently on different machines

Way = Callable[[Policy, PromptBatch, Tensor, Tensor], Tensor]


def shared(policy: Policy, prompts: PromptBatch, ids: Tensor, mask: Tensor) -> Tensor:
    return completion_hidden(policy, policy.prefill(prompts), ids, mask)


def recomputed(policy: Policy, prompts: PromptBatch, ids: Tensor, mask: Tensor) -> Tensor:
    set_gradient_checkpointing(policy.core, True)
    policy.gradient_checkpointing = True
    return policy.hidden_without_cache(prompts, ids, mask)


def completions(rows: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ordinary tokens, padded on the right; one row is a single token, one has the full width."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows, 1), generator=generator)
    lengths[0], lengths[-1] = 1, width
    return torch.randint(0, 300, (rows, width), generator=generator), torch.arange(width) < lengths


def patches_of(prompts: PromptBatch, image_token: int) -> list[tuple[Tensor | None, Tensor | None]]:
    """Pixels and grids of each prompt."""
    has = (prompts.ids == image_token).any(1).tolist()
    if prompts.pixel_values is None or prompts.image_grid_thw is None:
        return [(None, None) for _ in has]
    images = list(
        zip(
            prompts.pixel_values.split(prompts.image_grid_thw.prod(1).tolist()),
            prompts.image_grid_thw.split(1),
            strict=True,
        )
    )
    assert [bool(index) for index in prompts.image_index] == has
    together = [tuple(map(torch.cat, zip(*(images[i] for i in index), strict=True))) for index in prompts.image_index]
    return [found or (None, None) for found in together]


def separately(
    policy: Policy,
    prompts: PromptBatch,
    ids: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    suppress_tokens: Tensor | None = None,
) -> Scores:
    """transformers' forward pass over one row after the other. Its loss from labels is compared too."""
    logprobs, entropy = torch.zeros(ids.shape), torch.zeros(ids.shape)
    token = policy.core.config.image_token_id
    images = patches_of(prompts, token)
    num_generations = ids.shape[0] // prompts.ids.shape[0]
    for r in range(ids.shape[0]):
        b, given = r // num_generations, ids[r, mask[r]]
        prompt = prompts.ids[b, prompts.mask[b]]
        row = torch.cat([prompt, given]).unsqueeze(0)
        pixel_values, grid = images[b]
        labels = row.clone()
        labels[:, : len(prompt)] = -100
        out = policy.core(
            input_ids=row,
            attention_mask=torch.ones_like(row),
            pixel_values=pixel_values,
            image_grid_thw=grid,
            mm_token_type_ids=(row == token).int(),
            labels=labels,
            use_cache=False,
        )
        logits = out.logits[0, len(prompt) - 1 : -1].float()
        if suppress_tokens is not None:
            logits = logits.clone()
            logits[:, suppress_tokens] = float("-inf")
        log_p = torch.log_softmax(logits / temperature, -1)
        found = log_p[torch.arange(len(given)), given]
        if temperature == 1 and suppress_tokens is None:
            torch.testing.assert_close(out.loss, -found.mean(), **TOLERANCE)
        logprobs[r, : len(given)] = found
        for t, p in enumerate(log_p.detach().exp()):
            entropy[r, t] = -sum(x * torch.log(x) for x in p[p > 0])
    return Scores(logprobs, entropy)


def gradients(policy: Policy, logprobs: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Gradients of a randomly weighted mean of the log-probabilities, for all trained weights."""
    weights = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1)) * mask / mask.sum()
    policy.zero_grad()
    (logprobs * weights).sum().backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("way", [shared, recomputed])
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_all_gradients_equal_those_of_separate_rows(
    build, make_prompts, family: str, tuning: str, way: Way
) -> None:
    policy, processor = build(family, seed=3)
    if tuning == "lora":
        set_trainable(policy, freeze_vision_tower=False, lora=LoraConfig(3, 6, LoraTargets.both))
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:  # zero at first, which would hide the gradients of A
                torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(len(name)))
    prompts = processor.encode(make_prompts(processor, SIZES))
    ids, mask = completions(len(SIZES) * GROUP, 7)
    expected = separately(policy, prompts, ids, mask)
    expected_gradients = gradients(policy, expected.logprobs, mask)
    found = score(policy, way(policy, prompts, ids, mask), ids, mask)
    torch.testing.assert_close(found.logprobs, expected.logprobs, **TOLERANCE)
    torch.testing.assert_close(found.entropy, expected.entropy, **TOLERANCE)
    found_gradients = gradients(policy, found.logprobs, mask)
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert set(found_gradients) == set(expected_gradients) == trained
    assert len(trained) > 20 and all(g.abs().max() > 1e-4 for g in found_gradients.values())
    torch.testing.assert_close(found_gradients, expected_gradients, **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_recomputes_the_layers_in_the_backward_pass(build, make_prompts, family: str) -> None:
    policy, processor = build(family)
    prompts = processor.encode(make_prompts(processor, SIZES))
    ids, mask = completions(len(SIZES), 3)
    calls: list[int] = []
    policy.core.model.language_model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    scores = score(policy, recomputed(policy, prompts, ids, mask), ids, mask)
    assert len(calls) == 1 and not policy.training
    scores.logprobs.sum().backward()
    assert len(calls) == 2


@pytest.fixture(params=FAMILIES)
def pair(request, tiny) -> tuple[Policy, Processor]:
    return tiny(request.param)


@torch.no_grad()
def test_temperature_and_suppressed_tokens_change_the_scored_distribution(pair, make_prompts) -> None:
    policy, processor = pair
    prompts = processor.encode(make_prompts(processor, SIZES))
    ids, mask = completions(len(SIZES) * GROUP, 5)
    suppress_tokens = torch.tensor(processor.suppressed_token_ids())
    expected = separately(policy, prompts, ids, mask, 0.6, suppress_tokens)
    found = score(
        policy, shared(policy, prompts, ids, mask), ids, mask, temperature=0.6, suppress_tokens=suppress_tokens
    )
    torch.testing.assert_close(found.logprobs, expected.logprobs, **TOLERANCE)
    torch.testing.assert_close(found.entropy, expected.entropy, **TOLERANCE)
    assert found.entropy[mask].min() > 0.1


@pytest.mark.parametrize("chunk", [1, 10_000])
def test_the_entropy_has_a_gradient_where_it_is_asked_for(build, make_prompts, chunk: int) -> None:
    """That of the entropy of separate rows, also with suppressed tokens, whose probability is 0."""
    policy, processor = build("qwen2_vl")
    prompts = processor.encode(make_prompts(processor, SIZES))
    ids, mask = completions(len(SIZES), 4)
    suppress_tokens = torch.tensor(processor.suppressed_token_ids())
    hidden = shared(policy, prompts, ids, mask)
    options = {"temperature": 0.7, "suppress_tokens": suppress_tokens, "chunk_size": chunk}
    assert not score(policy, hidden, ids, mask, **options).entropy.requires_grad
    found = gradients(policy, score(policy, hidden, ids, mask, **options, entropy_grad=True).entropy, mask)
    kept = [i for i in range(policy.core.lm_head.out_features) if i not in suppress_tokens.tolist()]
    log_p = torch.log_softmax(policy.logits(shared(policy, prompts, ids, mask))[..., kept] / 0.7, -1)
    expected = gradients(policy, -(log_p.exp() * log_p).sum(-1), mask)
    assert any(bool(g.abs().max() > 1e-4) for g in expected.values())
    torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("chunk", [1, 7])
def test_logits_in_chunks_give_the_same_scores_and_gradients(build, make_prompts, chunk: int) -> None:
    policy, processor = build("qwen2_vl")
    prompts = processor.encode(make_prompts(processor, SIZES))
    ids, mask = completions(len(SIZES) * GROUP, 5)
    assert mask.sum() % 7
    sizes: list[int] = []
    policy.core.lm_head.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[0]))
    suppress_tokens = torch.tensor(processor.suppressed_token_ids())
    both = [
        score(
            policy,
            shared(policy, prompts, ids, mask),
            ids,
            mask,
            temperature=0.7,
            suppress_tokens=suppress_tokens,
            chunk_size=size,
        )
        for size in (10_000, chunk)
    ]
    assert sizes[0] == int(mask.sum()) and max(sizes[1:]) == chunk
    torch.testing.assert_close(both[0].logprobs, both[1].logprobs, **TOLERANCE)
    torch.testing.assert_close(both[0].entropy, both[1].entropy, **TOLERANCE)
    torch.testing.assert_close(*(gradients(policy, found.logprobs, mask) for found in both), **TOLERANCE)


@torch.no_grad()
def test_every_image_is_scored_with_its_own_prompt(pair, make_prompts) -> None:
    """With exchanged images of one size, all completions score differently, and as with their new image alone."""
    policy, processor = pair
    one, two, three = make_prompts(processor, [(3, 2)] * 3)
    ids, mask = completions(3 * GROUP, 4)
    exchanged = [replace(one, images=two.images), replace(two, images=three.images), replace(three, images=one.images)]
    straight, moved = (
        score(policy, shared(policy, prompts, ids, mask), ids, mask).logprobs
        for prompts in (processor.encode([one, two, three]), processor.encode(exchanged))
    )
    assert ((straight - moved).abs() > 1e-3)[mask].float().mean() > 0.9
    assert ((straight - moved).abs().amax(1) > 1e-2).all()
    alone = processor.encode(exchanged[:1])
    first = score(policy, shared(policy, alone, ids[:GROUP], mask[:GROUP]), ids[:GROUP], mask[:GROUP]).logprobs
    torch.testing.assert_close(moved[:GROUP], first, **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_share_an_image_encode_it_once_and_add_up_gradients(build, make_prompts, family: str) -> None:
    policy, processor = build(family)
    prompts = make_prompts(processor, [(3, 2), (2, 2), None, (3, 2), (1, 3)])
    prompts[3] = replace(prompts[3], images=prompts[0].images)
    ids, mask = completions(len(prompts) * GROUP, 4)
    together = processor.encode(prompts)
    apart = processor.encode([replace(p, images=tuple(image.copy() for image in p.images)) for p in prompts])
    assert together.image_grid_thw is not None and apart.image_grid_thw is not None
    assert (len(together.image_grid_thw), together.image_index) == (3, ((0,), (1,), (), (0,), (2,)))
    assert (len(apart.image_grid_thw), apart.image_index) == (4, ((0,), (1,), (), (2,), (3,)))
    assert torch.equal(together.positions, apart.positions)
    scores = [score(policy, shared(policy, batch, ids, mask), ids, mask).logprobs for batch in (together, apart)]
    torch.testing.assert_close(scores[0], scores[1], **TOLERANCE)
    torch.testing.assert_close(*(gradients(policy, found, mask) for found in scores), **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("rows", [[0], [1], [3, 4], [4, 0, 3], [0, 1, 2, 3, 4]])
def test_some_prompts_of_a_batch_are_those_prompts_alone(pair, make_prompts, rows: list[int]) -> None:
    policy, processor = pair
    prompts = make_prompts(processor, [(3, 2), None, (2, 2), [(5, 3), (2, 2)], (1, 3)])
    prompts[3] = replace(prompts[3], images=(prompts[2].images[0], prompts[0].images[0]))
    found, alone = processor.encode(prompts).select(rows), processor.encode([prompts[row] for row in rows])
    assert torch.equal(found.ids, alone.ids) and torch.equal(found.mask, alone.mask)
    assert torch.equal(found.positions[:, found.mask], alone.positions[:, alone.mask])
    assert torch.equal(found.next_position, alone.next_position)
    torch.testing.assert_close(policy.prefill(found).hidden, policy.prefill(alone).hidden, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_precomputed_image_features_replace_the_vision_tower(build, make_prompts, family: str) -> None:
    """In both ways of scoring, and after ``select``."""
    policy, processor = build(family)
    set_trainable(policy, freeze_vision_tower=True)
    prompts = processor.encode(make_prompts(processor, SIZES))
    computed = policy.precompute_image_features(prompts)
    features = computed.image_features
    assert features is not None and {f.shape[0] for f in features} == {3 if family == "qwen3_vl" else 1}
    without_images = replace(computed, pixel_values=torch.full_like(prompts.pixel_values, torch.nan))
    ids, mask = completions(len(SIZES) * GROUP, 4)
    for way in (shared, recomputed):
        expected = way(policy, prompts, ids, mask)[mask]
        torch.testing.assert_close(way(policy, without_images, ids, mask)[mask], expected, **TOLERANCE)
        rows = [3, 0]
        some, keep = without_images.select(rows), mask.view(len(SIZES), GROUP, -1)[rows].flatten(0, 1)
        found = way(policy, some, ids.view(len(SIZES), GROUP, -1)[rows].flatten(0, 1), keep)[keep]
        expected = way(policy, prompts, ids, mask).view(len(SIZES), GROUP, 4, -1)[rows].flatten(0, 1)[keep]
        torch.testing.assert_close(found, expected, **TOLERANCE)
    for level in range(features[0].shape[0]):
        other = tuple(f.index_copy(0, torch.tensor([level]), f[level].flip(0)[None]) for f in features)
        moved = shared(policy, replace(computed, image_features=other), ids, mask)
        assert (moved - shared(policy, computed, ids, mask))[mask].abs().max() > 1e-2, level


@torch.no_grad()
@pytest.mark.parametrize("way", ["shared", "recomputed"])
def test_stale_rope_deltas_in_the_model_change_nothing(build, make_prompts, way: str) -> None:
    policy, processor = build("qwen2_vl")
    prompts = processor.encode(make_prompts(processor, SIZES))
    ids, mask = completions(len(SIZES), 4)
    hidden = shared if way == "shared" else Policy.hidden_without_cache
    before = hidden(policy, prompts, ids, mask)[mask]
    policy.core.model.rope_deltas = torch.full((len(SIZES), 1), 77)
    assert torch.equal(hidden(policy, prompts, ids, mask)[mask], before)


@torch.no_grad()
def test_the_content_of_padding_changes_nothing(pair, make_prompts) -> None:
    policy, processor = pair
    prompts = processor.encode(make_prompts(processor, SIZES))
    ids, mask = completions(len(SIZES) * GROUP, 6)
    other_prompts = replace(prompts, ids=prompts.ids.masked_fill(~prompts.mask, 17))
    other_ids = ids.masked_fill(~mask, 23)
    before = score(policy, shared(policy, prompts, ids, mask), ids, mask)
    after = score(policy, shared(policy, other_prompts, other_ids, mask), other_ids, mask)
    torch.testing.assert_close(after.logprobs, before.logprobs, **TOLERANCE)
    assert not before.logprobs[~mask].any() and not before.entropy[~mask].any()


@torch.no_grad()
def test_completions_of_one_token_and_prompts_without_images(pair, make_prompts) -> None:
    policy, processor = pair
    prompts = processor.encode(make_prompts(processor, [None, None]))
    assert prompts.pixel_values is None and prompts.image_grid_thw is None
    for width in (1, 4):
        ids, mask = completions(2 * GROUP, width)
        found = score(policy, shared(policy, prompts, ids, mask), ids, mask)
        expected = separately(policy, prompts, ids, mask)
        torch.testing.assert_close(found.logprobs, expected.logprobs, **TOLERANCE)


@torch.no_grad()
def test_token_by_token_equals_all_at_once(pair, make_prompts) -> None:
    """Also after some rows have been dropped."""
    policy, processor = pair
    prefix = policy.prefill(processor.encode(make_prompts(processor, SIZES)))
    ids, _ = completions(len(SIZES) * GROUP, 6)
    at_once = policy.extend(prefix.repeat(GROUP), ids, torch.ones_like(ids, dtype=torch.bool))
    decoder, rows = policy.decoder(prefix, GROUP, 6), torch.arange(len(ids))
    for step in range(6):
        if step in (2, 5):
            keep = torch.arange(len(rows)) % 4 != 1  # some prompts keep fewer rows than others
            decoder.select(keep)
            rows = rows[keep]
        torch.testing.assert_close(decoder.step(ids[rows, step]), at_once[rows, step], **TOLERANCE)
