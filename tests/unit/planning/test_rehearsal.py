"""The rehearsal of each family, and the search for what fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from medr1.errors import CheckpointError
from medr1.generation.rollout import Sampling
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.planning.limits import Run, largest, largest_budget, largest_group, peak_bytes
from medr1.planning.memory_ledger import CACHES, GRADIENTS, OPTIMIZER, REFERENCE, WEIGHTS
from medr1.planning.rehearsal import Job, Lengths, ModelSpec, rehearse_answers, rehearse_step
from tests.conftest import FAMILIES

LENGTHS = Lengths(prompt=20, completion=6, grid=(4, 4))
JOB = Job(
    prompts=4,
    num_generations=4,
    lengths=LENGTHS,
    max_tokens_per_device=0,
    updates=1,
    with_reference=True,
    sampling=Sampling(6, 0, (1,)),
    eval_batch_size=8,
    eval_lengths=LENGTHS,
    on_gpu=False,
)


@pytest.fixture(scope="module")
def spec(tiny: Callable[[str], tuple[Policy, Processor]], tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    folder = tmp_path_factory.mktemp("config")
    tiny("qwen2_vl")[0].core.config.save_pretrained(folder)
    return ModelSpec(str(folder), "float32", "sdpa", False, False, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_what_belongs_to_them_are_exact(
    family: str, tiny: Callable[[str], tuple[Policy, Processor]], tmp_path: Path
) -> None:
    policy, _ = tiny(family)
    policy.core.config.save_pretrained(tmp_path)  # config.json and nothing else
    spec = ModelSpec(str(tmp_path), "float32", "sdpa", False, False, None)
    size = sum(p.numel() for p in policy.parameters()) * 4
    buffers = sum(b.numel() * b.element_size() for b in policy.buffers())
    rollout = rehearse_step(spec, JOB)["rollout"]
    assert rollout[WEIGHTS] == rollout[REFERENCE] == size + buffers
    assert rollout[GRADIENTS] == size and rollout[OPTIMIZER] == pytest.approx(2 * size, rel=0.01)
    text = policy.core.config.get_text_config()
    heads = text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    each = 2 * text.num_hidden_layers * heads * 4  # bytes of a token's keys and values
    prefix, rows = JOB.prompts * LENGTHS.prompt, JOB.prompts * JOB.num_generations * LENGTHS.completion
    assert (prefix + rows) * each <= rollout[CACHES] <= (prefix + 2 * rows) * each
    lora = rehearse_step(replace(spec, lora=(4, 8, "both"), gradient_checkpointing=True), JOB)
    assert lora["rollout"][REFERENCE] == 0 < lora["rollout"][GRADIENTS] < size / 3
    assert peak_bytes(lora) < peak_bytes(rehearse_step(spec, JOB))


def test_answers_grow_with_their_number_alone(spec: ModelSpec) -> None:
    """Two and three rows tell of four; the straight line is no approximation."""
    exact = [peak_bytes(rehearse_answers(spec, replace(JOB, eval_batch_size=n))) for n in (2, 3, 4)]
    assert exact[2] - exact[1] == exact[1] - exact[0] > 0


@pytest.mark.parametrize("usable_bytes", [99, 100, 1234, 5000, 10**9])
def test_the_largest_is_the_largest(usable_bytes: int) -> None:
    def bytes_of(n: int) -> int:
        return 100 + 7 * n + (300 if n > 40 else 0)

    expected = max((n for n in range(1, 501) if bytes_of(n) <= usable_bytes), default=None)
    assert largest(bytes_of, 1, 500, usable_bytes) == expected


def test_the_largest_budget_and_group_fit_and_the_next_do_not(spec: ModelSpec) -> None:
    def bytes_at(job: Job) -> int:
        return peak_bytes(Run(spec, job).step())

    usable_bytes = bytes_at(replace(JOB, max_tokens_per_device=2 * JOB.row))
    assert largest_budget(Run(spec, JOB), usable_bytes) == 2 * JOB.row
    size = largest_group(Run(spec, JOB), usable_bytes)
    assert size is not None
    assert (
        bytes_at(replace(JOB, num_generations=size)) <= usable_bytes < bytes_at(replace(JOB, num_generations=size + 1))
    )


def test_shards_take_less_than_the_whole_and_buckets_more(spec: ModelSpec) -> None:
    alone, ddp, fsdp = (peak_bytes(Run(spec, JOB, n, s).step()) for n, s in ((1, "auto"), (2, "ddp"), (2, "fsdp")))
    half = peak_bytes(Run(spec, replace(JOB, prompts=2)).step())
    assert fsdp < alone and half < ddp


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        rehearse_step(ModelSpec(str(tmp_path / "none"), "float32", "sdpa", False, False, None), JOB)
