"""Rollout on tiny policies: it equals transformers' generate, and no sample depends on the rest of the batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import GenerationConfig

from medr1.generation.logprobs import completion_hidden, score
from medr1.generation.rollout import _sample, rollout
from medr1.generation.sampling import Sampling
from medr1.models import cuda_graph
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.models.shared_prefix_cache import StaticDecoder
from medr1.models.tensors import Completions, Prefix, map_tensors
from tests.conftest import FAMILIES

SIZES = [(2, 2), None, [(5, 3), (1, 2)], (1, 3), (3, 3), None]


def sampling(**changes: object) -> Sampling:
    return replace(Sampling(max_completion_length=10, eos_token_id=0, suppress_tokens=()), **changes)  # type: ignore[arg-type]


def uniforms_of(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((rows, width)))


def with_end(
    policy: Policy, prefix: Prefix, s: Sampling, num_generations: int = 1, uniforms: Tensor | None = None
) -> Sampling:
    """The settings with an end token that random weights do generate: the most common one after the first position."""
    endless = rollout(policy, prefix, replace(s, eos_token_id=-1), num_generations, uniforms)
    return replace(s, eos_token_id=int(endless.ids[:, 1:].flatten().mode().values))


def test_planning_has_no_cuda_graphs(tiny, make_prompts) -> None:
    policy, processor = tiny("qwen2_vl")
    prefix = policy.prefill(processor.encode(make_prompts(processor, SIZES[:1])))
    with pytest.raises(ValueError, match="first_step"):
        rollout(policy, prefix, sampling(temperature=0.0), cuda_graphs=True, first_step=2)


def test_sampling_without_uniforms_is_refused(tiny, make_prompts) -> None:
    policy, processor = tiny("qwen2_vl")
    prefix = policy.prefill(processor.encode(make_prompts(processor, SIZES[:1])))
    with pytest.raises(ValueError, match="uniforms"):
        rollout(policy, prefix, sampling())


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate_of_transformers_on_100_prompts(build, make_prompts, family: str) -> None:
    policy, processor = build(family)
    rng = np.random.default_rng(1)
    sizes = [(int(rng.integers(1, 5)), int(rng.integers(1, 5))) for _ in range(100)]
    prompts = make_prompts(processor, sizes, seed=2)
    width, suppress_tokens = 8, tuple(processor.suppressed_token_ids())
    batches = [processor.encode(prompts[i : i + 25]) for i in range(0, 100, 25)]
    greedy = sampling(max_completion_length=width, suppress_tokens=suppress_tokens, temperature=0.0)
    greedy = with_end(policy, policy.prefill(batches[0]), greedy)
    found: list[list[int]] = []
    for batch in batches:
        c = rollout(policy, policy.prefill(batch), greedy)
        found += [row[keep].tolist() for row, keep in zip(c.ids, c.mask, strict=True)]
    model = policy.model
    model.generation_config = GenerationConfig()  # else its values replace those that equal the library's defaults
    plain = GenerationConfig(
        do_sample=False,
        max_new_tokens=width,
        eos_token_id=greedy.eos_token_id,
        pad_token_id=0,
        suppress_tokens=list(suppress_tokens),
    )
    for prompt, ids in zip(prompts, found, strict=True):
        one = processor.encode([prompt])
        types = (one.ids == model.config.image_token_id).int()
        whole = model.generate(
            one.ids,
            attention_mask=one.mask.long(),
            pixel_values=one.pixel_values,
            image_grid_thw=one.image_grid_thw,
            mm_token_type_ids=types,
            generation_config=plain,
        )
        assert ids == whole[0, one.ids.shape[1] :].tolist()
    assert len({len(ids) for ids in found}) > 2  # rows were dropped at different steps
    assert len(set(map(tuple, found))) > 20


@dataclass(frozen=True)
class Case:
    """Groups of three over prompts with images of several sizes and without; some completions end early."""

    policy: Policy
    processor: Processor
    sampling: Sampling
    prefix: Prefix
    uniforms: Tensor
    completions: Completions


@pytest.fixture(params=FAMILIES)
def case(request, tiny, make_prompts) -> Case:
    policy, processor = tiny(request.param)
    prefix = policy.prefill(processor.encode(make_prompts(processor, SIZES)))
    uniforms = uniforms_of(len(SIZES) * 3, 12, 4)
    s = with_end(
        policy,
        prefix,
        sampling(max_completion_length=12, suppress_tokens=tuple(processor.suppressed_token_ids())),
        3,
        uniforms,
    )
    return Case(policy, processor, s, prefix, uniforms, rollout(policy, prefix, s, 3, uniforms))


def test_mask_runs_to_the_end_token_and_truncation_is_its_absence(case: Case) -> None:
    s, c = case.sampling, case.completions
    lengths = c.mask.sum(1).tolist()
    assert c.ids.shape[1] == max(lengths) == s.max_completion_length
    assert 0 < int(c.truncated.sum()) < len(lengths)
    for ids, mask, logprobs, truncated, length in zip(c.ids, c.mask, c.logprobs, c.truncated, lengths, strict=True):
        assert mask.tolist() == [True] * length + [False] * (len(ids) - length)
        ends = (ids[:length] == s.eos_token_id).nonzero().flatten().tolist()
        assert ends == ([] if truncated else [length - 1])
        assert length == s.max_completion_length or not truncated
        assert (logprobs[:length] < 0).all() and not logprobs[length:].any()


def test_an_end_token_at_the_maximum_length_is_no_truncation(case: Case) -> None:
    c = case.completions
    lengths = c.mask.sum(1)
    row = int(lengths.masked_fill(c.truncated | (lengths < 2), 99).argmin())
    prefix, uniforms = case.prefix.select(torch.tensor([row // 3])), case.uniforms[row : row + 1]
    for width, truncated in ((int(lengths[row]), False), (int(lengths[row]) - 1, True)):
        again = rollout(case.policy, prefix, replace(case.sampling, max_completion_length=width), 1, uniforms)
        assert again.ids[0].tolist() == c.ids[row, :width].tolist()
        assert again.truncated.tolist() == [truncated]


def test_samples_of_one_group_differ(case: Case) -> None:
    for group in case.completions.ids.view(len(SIZES), 3, -1):
        assert len({tuple(row.tolist()) for row in group}) == 3


def test_suppressed_tokens_are_not_sampled(case: Case) -> None:
    c = case.completions
    forbidden = c.ids[c.mask].unique()
    suppressing = replace(case.sampling, eos_token_id=-1, suppress_tokens=tuple(forbidden.tolist()))
    again = rollout(case.policy, case.prefix, suppressing, 3, case.uniforms)
    assert not torch.isin(again.ids, forbidden).any()


def test_a_batch_of_n_equals_n_singles(case: Case, make_prompts) -> None:
    """The same uniforms give the same samples, whatever else is in the batch."""
    c = case.completions
    for b, prompt in enumerate(make_prompts(case.processor, SIZES)):
        prefix = case.policy.prefill(case.processor.encode([prompt]))
        for row in range(3 * b, 3 * b + 3):
            alone = rollout(case.policy, prefix, case.sampling, 1, case.uniforms[row : row + 1])
            length = int(c.mask[row].sum())
            assert alone.ids[0].tolist() == c.ids[row, :length].tolist()
            torch.testing.assert_close(alone.logprobs[0], c.logprobs[row, :length], atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rollout_and_scoring_agree_on_the_log_probabilities(case: Case, temperature: float) -> None:
    s = replace(case.sampling, temperature=temperature)
    c = rollout(case.policy, case.prefix, s, 3, case.uniforms)
    hidden = completion_hidden(case.policy, case.prefix, c.ids, c.mask)
    scores = score(
        case.policy, hidden, c.ids, c.mask, temperature=temperature, suppress_tokens=torch.tensor(s.suppress_tokens)
    )
    torch.testing.assert_close(scores.logprobs, c.logprobs, atol=1e-5, rtol=1e-5)


@pytest.fixture
def without_recording(monkeypatch) -> None:
    """The function of a CUDA graph is called in every step, so that it can be tested without a GPU."""
    monkeypatch.setattr(cuda_graph, "_WARM_UP", 10**6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_static_shapes_give_the_same_completions(case: Case, without_recording: None, temperature: float) -> None:
    s = replace(case.sampling, temperature=temperature)
    expected = rollout(case.policy, case.prefix, s, 3, case.uniforms)
    found = rollout(case.policy, case.prefix, s, 3, case.uniforms, cuda_graphs=True)
    assert torch.equal(found.ids, expected.ids) and torch.equal(found.mask, expected.mask)
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.truncated, expected.truncated)


def test_static_decoding_ends_when_all_completions_have(case: Case, without_recording: None, monkeypatch) -> None:
    """Not at the maximum length, and at most 8 tokens later than needed."""
    calls = []
    step_at = StaticDecoder.step_at
    monkeypatch.setattr(StaticDecoder, "step_at", lambda self, *given: calls.append(1) or step_at(self, *given))
    row = int((~case.completions.truncated).nonzero()[0])
    uniforms = torch.cat([case.uniforms[row : row + 1], torch.zeros(1, 28, dtype=torch.float64)], dim=1)
    s = replace(case.sampling, max_completion_length=40)
    found = rollout(case.policy, case.prefix.select(torch.tensor([row // 3])), s, 1, uniforms, cuda_graphs=True)
    assert not found.truncated.any() and found.ids.shape[1] <= len(calls) + 1 <= found.ids.shape[1] + 8


@pytest.mark.parametrize("changes", [{"temperature": 0.0}, {"top_k": 5, "top_p": 0.9}])
def test_a_static_step_looks_at_no_value(tiny, make_prompts, changes: dict[str, float]) -> None:
    """Tensors without values stand for those of a recording, in which Python cannot read any."""
    policy, processor = tiny("qwen2_vl")
    rows, s = 3 * len(SIZES), sampling(suppress_tokens=(1, 2), **changes)
    prefix = policy.prefill(processor.encode(make_prompts(processor, SIZES)))
    decoder = policy.static_decoder(prefix, 3, 12)
    with FakeTensorMode(allow_non_fake_inputs=True):
        hidden = decoder.step_at(torch.zeros(rows, dtype=torch.long), torch.zeros(1, dtype=torch.long))
        found = _sample(policy, s, torch.tensor(s.suppress_tokens), hidden, torch.zeros(rows, dtype=torch.float64))
    assert [tuple(value.shape) for value in found] == [(rows,), (rows,)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_cuda_graph_gives_the_same_completions(case: Case, temperature: float) -> None:
    policy, device = case.policy.to("cuda"), torch.device("cuda")
    try:
        s = replace(case.sampling, temperature=temperature)
        prefix, uniforms = map_tensors(lambda tensor: tensor.to(device), case.prefix), case.uniforms.to(device)
        expected = rollout(policy, prefix, s, 3, uniforms)
        reserved = []
        for _ in range(3):
            found = rollout(policy, prefix, s, 3, uniforms, cuda_graphs=True)
            assert torch.equal(found.ids, expected.ids) and torch.equal(found.mask, expected.mask)
            torch.testing.assert_close(found.logprobs, expected.logprobs, atol=1e-5, rtol=1e-5)
            reserved.append(torch.cuda.memory_reserved())
        assert reserved[1] == reserved[2]  # a graph uses the memory of the one before
    finally:
        policy.to("cpu")


def test_greedy_is_the_limit_of_low_temperature_and_of_top_k_one(case: Case) -> None:
    greedy = rollout(case.policy, case.prefix, replace(case.sampling, temperature=0.0))
    for changes in ({"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-9}):
        c = rollout(case.policy, case.prefix, replace(case.sampling, **changes), 1, case.uniforms)
        assert torch.equal(c.ids, greedy.ids) and torch.equal(c.mask, greedy.mask)
