"""A policy in shards generates as one process does, and never gathers more than one group of its weights."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from medr1.config.settings import LoraConfig
from medr1.generation.engines.local import LocalEngine
from medr1.generation.sampling import Sampling
from medr1.models import sharding
from medr1.models.adapters import is_of_adapter, make_reference, set_trainable
from medr1.models.export import save_policy
from medr1.models.loading import ModelSpec, load_policy
from medr1.models.policy import Policy
from medr1.models.processor import Processor, Prompt
from medr1.models.sharding import full_state_dict, full_tensor, generation, shard
from tests.conftest import FAMILIES, randomize
from tests.unit.models.processes import run_together

G, WIDTH = 3, 8
SAMPLING = Sampling(WIDTH, -1, (), temperature=0.3)
SIZES = [(2, 2), None, [(3, 2), (1, 2)], (1, 3), (3, 3), None, (2, 1)]


def sharded(policy: Policy, count: int) -> Policy:
    policy = copy.deepcopy(policy)
    shard(policy, init_device_mesh("cpu", (count,)))
    return policy


def group_bytes(policy: Policy) -> list[int]:
    """The gathered size of each group of a sharded policy."""
    return [bytes_of(group) - sum(map(bytes_of, inner_groups(group))) for group in groups_of(policy)]


def groups_of(module: nn.Module) -> list[nn.Module]:
    return [module for module in module.modules() if isinstance(module, FSDPModule)]


def inner_groups(group: nn.Module) -> list[nn.Module]:
    return [inner for inner in groups_of(group) if inner is not group]


def bytes_of(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


@contextmanager
def gathered_bytes(policy: Policy) -> Iterator[list[int]]:
    """The bytes in storages of gathered weights, after each time that a group has been gathered."""
    seen: list[int] = []
    states: list[Any] = [group._get_fsdp_state() for group in groups_of(policy)]
    params = [p for state in states for group in state._fsdp_param_groups for p in group.fsdp_params]
    unshard = FSDPModule.unshard

    def watched(module: Any, async_op: bool = False) -> Any:
        handle = unshard(module, async_op)
        outputs = [output for p in params for output in p.all_gather_outputs]
        seen.append(sum(output.untyped_storage().nbytes() for output in outputs))
        return handle

    FSDPModule.unshard = watched  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        FSDPModule.unshard = unshard  # type: ignore[method-assign]


def complete(
    policy: Policy, processor: Processor, prompts: list[Prompt], indices: list[int], settings: Sampling
) -> list[tuple[list[int], list[float]]]:
    """Tokens and log-probabilities of G samples of each of the prompts ``indices``, of two at a time."""
    found = []
    for start in range(0, len(indices), 2):
        batch = indices[start : start + 2]
        draws = np.stack([np.random.default_rng((i, g)).random(WIDTH) for i in batch for g in range(G)])
        encoded = processor.encode([prompts[i] for i in batch])
        c = LocalEngine().generate(policy, encoded, settings, G, torch.from_numpy(draws))
        found += list(zip(c.token_ids(), c.logprobs.tolist(), strict=True))
    return found


@pytest.mark.parametrize("family", FAMILIES[:2])  # with tied weights and without
def test_weights_stay_in_the_checkpoint_until_they_are_sharded(build, family: str, tmp_path: Path) -> None:
    policy, processor = build(family)
    policy.model.bfloat16()
    save_policy(policy, processor, tmp_path / "start")
    spec = ModelSpec(str(tmp_path / "start"), dtype="float32")
    expected = load_policy(spec)[0].model.state_dict()

    def run(rank: int) -> Any:
        own, _ = load_policy(replace(spec, is_sharded=True))
        reference = make_reference(own, is_sharded=True)
        assert reference is not None
        pairs = zip(own.parameters(), reference.parameters(), strict=True)
        is_shared = all(p.data_ptr() == q.data_ptr() and p.dtype == torch.bfloat16 for p, q in pairs)
        equal = []
        for each in (own, reference):
            shard(each, init_device_mesh("cpu", (2,)))
            state = full_state_dict(each, None if rank else tmp_path)
            equal.append([name for name in state if torch.equal(state[name], expected[name])])
        return is_shared, equal

    names = list(expected)
    assert run_together(2, tmp_path, run) == [(True, [names, names]), (True, [[], []])]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["start", "store"]


def test_processes_that_write_nothing_keep_nothing_of_what_is_gathered(build, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of training they hold the optimizer's state as well."""
    policy, _ = build("qwen2_vl")
    storages: list[int] = []
    largest = 0

    def gather(value: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        alive = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in gc.get_objects()
            if type(t) is torch.Tensor
        }
        largest = max(largest, sum(alive.get(place, 0) for place in storages))
        full = value.clone()
        storages.append(full.untyped_storage().data_ptr())
        return full

    monkeypatch.setattr(sharding, "full_tensor", gather)
    assert full_state_dict(policy, None) == {}
    assert len(storages) > 20 and largest <= 2 * max(p.numel() * p.element_size() for p in policy.parameters())


@pytest.mark.parametrize(("of_checkpoint", "dtype"), [("bfloat16", "float32"), ("float32", "bfloat16")])
@pytest.mark.parametrize("is_trained", [False, True])
def test_with_an_adapter_weights_stay_in_the_checkpoint_too(
    build, of_checkpoint: str, dtype: str, is_trained: bool, tmp_path: Path
) -> None:
    """A new adapter and a trained one are those of a model that was loaded in its final precision."""
    policy, processor = build(FAMILIES[0])
    policy.model.to(getattr(torch, of_checkpoint))
    save_policy(policy, processor, tmp_path / "start")
    spec = ModelSpec(str(tmp_path / "start"), dtype=dtype, lora=LoraConfig(r=2, lora_alpha=4, target_modules="both"))

    def load(spec: ModelSpec) -> Policy:
        loaded, _ = load_policy(spec)
        torch.manual_seed(0)
        set_trainable(loaded, lora=spec.lora)
        return loaded

    if is_trained:
        trained = load(spec)
        randomize(trained, 1)
        save_policy(trained, processor, tmp_path / "adapter")
        spec = replace(spec, adapter=tmp_path / "adapter")
    expected = {name: (p.dtype, p.detach().float()) for name, p in load(spec).named_parameters()}

    def run(rank: int) -> Any:
        own = load(replace(spec, is_sharded=True))
        base = {p.dtype for name, p in own.named_parameters() if not is_of_adapter(name)}
        shard(own, init_device_mesh("cpu", (2,)))
        full = {name: full_tensor(p) for name, p in own.named_parameters()}
        assert full.keys() == expected.keys()
        return base, [n for n, (t, v) in expected.items() if full[n].dtype != t or not torch.equal(full[n].float(), v)]

    assert run_together(2, tmp_path, run) == [({getattr(torch, of_checkpoint)}, [])] * 2


# The records of each process; some have none.
SHARES = {
    2: [[0, 1, 2, 3, 4, 5, 6], []],
    4: [[0, 1, 2], [], [3], [4, 5, 6]],
}


@pytest.mark.parametrize(
    ("family", "count", "lora"),
    [
        (FAMILIES[0], 2, False),
        (FAMILIES[2], 2, True),
        *(pytest.param(*case, marks=pytest.mark.long) for case in [(FAMILIES[0], 4, True), (FAMILIES[1], 4, False)]),
    ],
)
def test_processes_with_unequal_records_complete_as_one_with_one_gathered_group(
    build, make_prompts, family: str, count: int, lora: bool, tmp_path: Path
) -> None:
    policy, processor = build(family)
    if lora:
        set_trainable(policy, lora=LoraConfig(target_modules="both"))
        randomize(policy, 1)
    prompts = make_prompts(processor, SIZES)
    with torch.no_grad():
        endless = complete(policy, processor, prompts, list(range(len(SIZES))), SAMPLING)
        end_token = int(torch.tensor([ids[2:] for ids, _ in endless]).flatten().mode().values)
        settings = replace(SAMPLING, eos_token_id=end_token)
        expected = [complete(policy, processor, prompts, own, settings) for own in SHARES[count]]
    lengths = {len(ids) for own in expected for ids, _ in own}
    assert len(lengths) > 2  # rows end at different steps

    def run(rank: int) -> Any:
        own = sharded(policy, count)
        with gathered_bytes(own) as seen, generation(own):
            found = complete(own, processor, prompts, SHARES[count][rank], settings)
        return found, set(seen), set(group_bytes(own))

    for rank, (found, seen, sizes) in enumerate(run_together(count, tmp_path, run)):
        assert found == expected[rank]
        assert seen and seen <= sizes  # one group at a time, never two
