"""The search for what fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medr1.config.enums import Distribution
from medr1.config.settings import LoraConfig
from medr1.models.loading import ModelSpec, load_on_meta
from medr1.planning.dry_run import Workload
from medr1.planning.limits import Run, host_bytes, largest, largest_group, largest_token_limit, remedies


@pytest.mark.parametrize("usable_bytes", [99, 100, 1234, 5000, 10**9])
def test_the_largest_is_the_largest(usable_bytes: int) -> None:
    def bytes_of(n: int) -> int:
        return 100 + 7 * n + (300 if n > 40 else 0)

    expected = max((n for n in range(1, 501) if bytes_of(n) <= usable_bytes), default=None)
    assert largest(bytes_of, 1, 500, usable_bytes) == expected


@pytest.mark.long
def test_the_largest_limit_and_group_fit_and_the_next_do_not(model: ModelSpec, work: Workload) -> None:
    run = Run(model, work)
    usable_bytes = run.with_work(max_tokens_per_device=2 * work.tokens_per_prompt).step_bytes()
    assert largest_token_limit(run, usable_bytes) == 2 * work.tokens_per_prompt
    size = largest_group(run, usable_bytes)
    assert size is not None
    fits, next_one = (replace(run, work=work.with_generations(n)).step_bytes() for n in (size, size + 1))
    assert fits <= usable_bytes < next_one


def test_on_one_gpu_the_optimizer_may_be_offloaded_and_over_several_it_is_not(model: ModelSpec, work: Workload) -> None:
    run = Run(model, replace(work, on_gpu=True, train_batch_size=2))
    offloaded = run.with_work(optimizer_offload=True)
    usable_bytes = offloaded.step_bytes()
    assert usable_bytes < run.step_bytes()
    found = remedies(run, usable_bytes)
    assert "trainer.optimizer_offload=true" in found
    assert "trainer.optimizer_offload=true" in remedies(run, usable_bytes, host_bytes(run))
    assert "trainer.optimizer_offload=true" not in remedies(run, usable_bytes, host_bytes(run) - 1)
    assert "trainer.optimizer_offload=true" not in remedies(Run(model, replace(run.work, on_gpu=False)), usable_bytes)
    further = [text for text in remedies(offloaded, usable_bytes - 1) if "trainer=fsdp" in text]
    assert further and all(text.endswith("trainer.optimizer_offload=false") for text in further), further
    weights = sum(p.numel() for p in load_on_meta(model).parameters())
    assert host_bytes(run) == 12 * weights


def test_an_external_engine_leaves_the_weights_alone_to_the_evaluation(model: ModelSpec, work: Workload) -> None:
    here, elsewhere = (Run(model, work, generates_here=here).evaluation()["evaluation"] for here in (True, False))
    assert elsewhere == {"weights": here["weights"]} and here.total() > elsewhere.total() > 0
    scoring = Run(model, work, generates_here=False, scores_options=True).evaluation()
    assert scoring["options"] == here and scoring["evaluation"] == elsewhere


def test_an_engine_on_the_same_device_takes_its_share_beside_what_training_keeps(
    model: ModelSpec, work: Workload
) -> None:
    """A colocated vLLM wakes up while the optimizer's state is there; the gradients of the last step are not."""
    colocated = Run(model, work, generates_here=False, engine_bytes=10**9)
    kept = Run(model, work).step()["rollout"]
    assert not kept["gradients"]
    expected = {part: kept[part] for part in ("weights", "reference", "optimizer") if kept[part]}
    assert colocated.step()["rollout"] == {**expected, "caches": 10**9}
    assert colocated.evaluation()["evaluation"]["caches"] == 10**9
    assert colocated.step()["update"] == Run(model, work).step()["update"]


def test_an_evaluation_during_training_takes_what_training_keeps(model: ModelSpec, work: Workload) -> None:
    before, during = (Run(model, work, validates=validates).evaluation()["evaluation"] for validates in (False, True))
    more = during - before
    kept = Run(model, work).step()["optimizer"]
    assert more == {part: kept[part] for part in ("reference", "optimizer") if kept[part]} and more["optimizer"] > 0
    of_ddp = [Run(model, work, 2, Distribution.ddp, validates=v).evaluation()["evaluation"] for v in (False, True)]
    assert of_ddp[1]["gradients"] - of_ddp[0]["gradients"] == kept["gradients"]  # its buckets


def test_shards_take_less_than_one_process_and_buckets_more(model: ModelSpec, work: Workload) -> None:
    strategies = ((1, Distribution.auto), (2, Distribution.ddp), (2, Distribution.fsdp))
    alone, ddp, fsdp = (Run(model, work, processes, strategy).step_bytes() for processes, strategy in strategies)
    half = Run(model, replace(work, train_batch_size=2)).step_bytes()
    assert fsdp < alone and half < ddp
    # Between steps DDP keeps its buckets; in the optimizer the gradients are the buckets.
    gradients = {phase: parts["gradients"] for phase, parts in Run(model, work, 2, Distribution.ddp).step().items()}
    assert gradients["rollout"] == gradients["optimizer"] > 0 and gradients["update"] >= gradients["optimizer"]


def test_what_fsdp_refuses_is_not_offered_with_it(model: ModelSpec, work: Workload) -> None:
    run = Run(model, replace(work, train_batch_size=8))
    usable = run.step_bytes() // 3
    assert any("trainer=fsdp" in text for text in remedies(run, usable))
    elsewhere = replace(run, generates_here=False)
    assert not any("trainer=fsdp" in text for text in remedies(elsewhere, elsewhere.step_bytes() // 3))
    quantized = replace(run, model=replace(model, lora=LoraConfig(), quantization="nf4"))
    assert not any("trainer=fsdp" in text for text in remedies(quantized, quantized.step_bytes() // 3))
    on_eight = replace(run, processes=8, strategy=Distribution.ddp)
    assert any("trainer=fsdp trainer.devices=8" in text for text in remedies(on_eight, on_eight.step_bytes() // 2))


def test_shards_hold_one_gathered_group_where_there_are_no_gradients(model: ModelSpec, work: Workload) -> None:
    """A group and the buffer of its transfer."""
    policy = load_on_meta(model)
    core = policy.core.model
    blocks = [*core.language_model.layers, *core.visual.blocks]
    total, *sizes = (sum(p.numel() * p.element_size() for p in m.parameters()) for m in (policy, *blocks))
    run = Run(model, replace(work, train_batch_size=4), 4, Distribution.fsdp)
    alone = Run(model, replace(work, train_batch_size=1))
    for phase, (phases, unsharded) in {
        "rollout": (run.step(), alone.step()),
        "evaluation": (run.evaluation(), alone.evaluation()),
    }.items():
        gathered = phases[phase]["weights"] - unsharded[phase]["weights"] // 4
        assert gathered == 2 * max(total - sum(sizes), *sizes)
    gathering = replace(run, gathers=True)
    for phases, unsharded in ((gathering.step(), alone.step()), (gathering.evaluation(), alone.evaluation())):
        phase = "rollout" if "rollout" in phases else "evaluation"
        assert phases[phase]["weights"] == unsharded[phase]["weights"] // 4 + total
