"""A training step does not depend on how it is split into micro-batches, and trains on the prompts that it logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

import medr1.workflows.train
from medr1.config.settings import ExternalRolloutConfig
from medr1.evaluation.local_predictions import LocalPredictionStore
from medr1.generation.engines.local import LocalEngine
from medr1.models.policy import Policy
from medr1.models.tensors import Completions, PromptBatch
from medr1.rewards import REWARDS, RewardFunction
from medr1.training.grpo import GRPOModule, RolloutMicroBatch
from tests.integration.conftest import FEW_IMAGES, train_here

SETTINGS = (
    "debug=quick",
    *FEW_IMAGES,
    "reasoning=no_think",
    "trainer.max_steps=2",
    "evaluation.limit=1",
    "evaluation.blank_image=false",
    "tracking=none",
    "trainer.accelerator=cpu",
)
START = Path(__file__).parents[2] / "medr1" / "models" / "tiny_base" / "model.safetensors"


def distances(one: Path, other: Path) -> tuple[float, float]:
    """The distance of the weights of ``one`` from the base, and of those of ``other`` from those of ``one``."""
    a, b, start = load_file(one / "model.safetensors"), load_file(other / "model.safetensors"), load_file(START)
    # Of all weights together: Adam makes a step of full size even of a gradient that is rounding noise.
    moved = sum(float((a[k] - start[k]).square().sum()) for k in a) ** 0.5
    return moved, sum(float((a[k] - b[k]).square().sum()) for k in a) ** 0.5


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(("algorithm=sft",), marks=pytest.mark.long),
        pytest.param(("algorithm=medr1_legacy",), marks=pytest.mark.long),
        pytest.param(("algorithm=dr_grpo", "algorithm.objective.beta=0.1"), marks=pytest.mark.long),
        ("algorithm=grpo", "algorithm.num_iterations=2", "algorithm.objective.mask_truncated_completions=true"),
        pytest.param(("algorithm=gspo", "model.gradient_checkpointing=true"), marks=pytest.mark.long),
        pytest.param(("algorithm=cispo", "algorithm.objective.scale_rewards=batch"), marks=pytest.mark.long),
        pytest.param(("algorithm=papo", "algorithm.num_iterations=2"), marks=pytest.mark.long),
        pytest.param(("algorithm=papo", "model.gradient_checkpointing=true"), marks=pytest.mark.long),
        pytest.param(("algorithm=papo", "algorithm.filter_groups=2"), marks=pytest.mark.long),
        pytest.param(("algorithm=sapo",), marks=pytest.mark.long),
        pytest.param(("algorithm=rloo",), marks=pytest.mark.long),
        pytest.param(("algorithm=reinforce_pp",), marks=pytest.mark.long),
        pytest.param(("algorithm=gdpo",), marks=pytest.mark.long),
        pytest.param(("algorithm=drpo",), marks=pytest.mark.long),
        pytest.param(("algorithm=noisy_rollout",), marks=pytest.mark.long),
        pytest.param(
            (
                *("algorithm.objective.loss_mode=clip_cov", "algorithm.objective.clip_cov_ratio=0.1"),
                *("algorithm.objective.clip_cov_lb=0.001", "algorithm.objective.top_entropy_quantile=0.5"),
                *("algorithm.objective.entropy_coef=0.1", "algorithm.num_iterations=2"),
            ),
            marks=pytest.mark.long,
        ),
    ],
    ids=str,
)
def test_micro_batches_give_the_result_of_the_whole_step(changes: tuple[str, ...], tmp_path: Path) -> None:
    whole = train_here(tmp_path / "whole", *SETTINGS, *changes)
    split = train_here(tmp_path / "split", *SETTINGS, *changes, "trainer.max_tokens_per_device=1")
    moved, apart = distances(whole.model, split.model)
    assert moved > 1e-3
    assert apart < 1e-3 * moved


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(("algorithm=dapo", "algorithm.filter_groups=2"), marks=pytest.mark.long),
        ("algorithm=sft",),
        pytest.param(("algorithm=papo",), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_batches_that_are_encoded_in_advance_give_the_same_run_bit_for_bit(
    changes: tuple[str, ...], tmp_path: Path
) -> None:
    runs = [
        train_here(
            tmp_path / str(n),
            *SETTINGS,
            *changes,
            "trainer.max_steps=5",
            "evaluation.batch_size=16",
            f"data.dataloader_num_workers={n}",
        )
        for n in (0, 3)
    ]
    weights, metrics, predictions = [], [], []
    for run in runs:
        weights.append((run.model / "model.safetensors").read_bytes())
        points = (json.loads(line) for line in run.metrics.read_text().splitlines())
        metrics.append([{name: v for name, v in point.items() if "time" not in name} for point in points])
        predictions.append([(run.predictions(name)).read_bytes() for name in ("base", "trained")])
    assert weights[0] == weights[1] and predictions[0] == predictions[1]
    assert metrics[0] == metrics[1] and len(metrics[0]) == 5


@pytest.mark.parametrize(
    "changes",
    [("model.freeze_vision_tower=true",), pytest.param(("model.tuning=lora",), marks=pytest.mark.long)],
    ids=str,
)
def test_a_frozen_vision_tower_runs_once_a_step(
    changes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rollout, reference and both updates share the features. The result is that of computing them every time."""
    settings = (*SETTINGS, *changes, "algorithm.num_iterations=2")
    calls: list[int] = []
    image_features = Policy._image_features

    def counted(policy: Policy, prompts: PromptBatch) -> tuple[Tensor, ...]:
        calls.append(1)
        return image_features(policy, prompts)

    def trained(name: str) -> tuple[int, Path]:
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(LocalPredictionStore, "generate", lambda *_, **__: None)  # evaluation runs the tower too
            patch.setattr(medr1.workflows.train, "report", lambda *_: None)  # there are no predictions
            patch.setattr(Policy, "_image_features", counted)
            run = train_here(tmp_path / name, *settings)
        (weights,) = run.model.glob("*model.safetensors")
        return len(calls), weights

    once, shared = trained("shared")
    monkeypatch.setattr(Policy, "precompute_image_features", lambda policy, prompts: prompts)
    often, separate = trained("separate")
    assert (once, often) == (2, 2 * 3)  # in each of two steps: rollout with the first update, reference, second update
    a, b = load_file(shared), load_file(separate)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_dynamic_sampling_replaces_prompts_of_zero_variance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step keeps its number of prompts, and its prompts with variance stay at the front.

    Then no graph of a prefill is kept: it would hold the activations of the prompts that were replaced as well.
    """
    steps: dict[str, list[tuple[list[str], list[float]]]] = {}
    prefills: dict[str, int] = {}
    rollout = GRPOModule._rollout

    def watch(name: str, **settings: str) -> None:
        seen = steps.setdefault(name, [])

        def after_a_step(module: GRPOModule, *rest: Any) -> None:
            log = module.rollout_log
            assert log is not None
            seen.append(([r.id for r in log.records], list(log.rewards.total)))

        def counted(module: GRPOModule, batch: Any) -> Any:
            found = rollout(module, batch)
            prefills[name] = sum(micro.prefix is not None for micro in found.micro_batches)
            return found

        monkeypatch.setattr(GRPOModule, "_rollout", counted)
        monkeypatch.setattr(GRPOModule, "on_train_batch_end", after_a_step)
        overrides = [f"{key}={value}" for key, value in settings.items()]
        words = ("algorithm=dapo", "algorithm.num_generations=2", "trainer.max_steps=1")
        train_here(tmp_path / name, *SETTINGS, *words, *overrides)

    watch("none", **{"algorithm.filter_groups": "0"})
    watch("many", **{"algorithm.filter_groups": "8"})
    watch("split", **{"algorithm.filter_groups": "8", "trainer.max_tokens_per_device": "1"})

    def zero_std(step: tuple[list[str], list[float]]) -> list[bool]:
        ids, rewards = step
        size = len(rewards) // len(ids)
        groups = [rewards[i : i + size] for i in range(0, len(rewards), size)]
        return [min(group) == max(group) for group in groups]

    assert [len(ids) for ids, _ in steps["many"]] == [len(ids) for ids, _ in steps["none"]]
    assert sum(zero_std(steps["none"][0])) > sum(zero_std(steps["many"][0]))
    with_variance = [i for i, zero in zip(steps["none"][0][0], zero_std(steps["none"][0]), strict=True) if not zero]
    assert steps["many"][0][0][: len(with_variance)] == with_variance
    assert steps["split"][0] == steps["many"][0]
    assert prefills == {"none": 1, "many": 0, "split": 0}


@pytest.mark.parametrize("limit", ["0", "1"])
def test_an_external_engine_gets_all_prompts_of_a_step_at_once_and_before_the_prefill_of_training(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph of the prefill would take memory that a vLLM on the same GPU needs, and vLLM batches by itself."""
    prefixes, sizes, trained = [], [], []
    generate, score = LocalEngine.generate, GRPOModule._compare_with_sampler

    def recorded(self: LocalEngine, *given: Any) -> Completions:
        prefixes.append(given[5] if len(given) > 5 else None)
        if len(given) > 3 and given[3] > 1:
            sizes.append(len(given[1].ids))
        return generate(self, *given)

    def compared(self: GRPOModule, micro: RolloutMicroBatch) -> None:
        score(self, micro)
        assert micro.logp_difference is not None
        trained.append((len(micro.prompts.ids), float(micro.logp_difference.abs().max())))

    monkeypatch.setattr(LocalEngine, "generate", recorded)
    monkeypatch.setattr(GRPOModule, "_external", ExternalRolloutConfig("external"))
    monkeypatch.setattr(GRPOModule, "_compare_with_sampler", compared)
    words = ("algorithm=grpo", "trainer.max_steps=1", f"trainer.max_tokens_per_device={limit}")
    train_here(tmp_path / "run", *SETTINGS, *words)
    assert prefixes and all(prefix is None for prefix in prefixes)
    prompts = [count for count, _ in trained]
    assert sizes == [sum(prompts)] and prompts == (sizes if limit == "0" else [1] * sizes[0])
    assert max(difference for _, difference in trained) < 1e-4, "each prompt has its own completions"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param((), marks=pytest.mark.long),
        pytest.param(("algorithm=dapo", "algorithm.filter_groups=2"), marks=pytest.mark.long),
        ("micro-batches",),
    ],
    ids=str,
)
def test_a_reward_function_gets_the_tokens_of_its_completions(
    changes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, also of completions that replace others, and in several micro-batches."""
    seen: list[tuple[str, list[int], bool]] = []
    generated: list[str] = []
    generate = GRPOModule._generate

    def watched_generate(module: GRPOModule, batch: Any, attempt: int) -> Any:
        found = generate(module, batch, attempt)
        generated.extend(text for micro in found for text in micro.texts)
        return found

    monkeypatch.setattr(GRPOModule, "_generate", watched_generate)

    def watch(completions, records, *, completion_ids, truncated):
        seen.extend(zip(completions, completion_ids, truncated, strict=True))
        return [float(-len(ids)) for ids in completion_ids]

    monkeypatch.setitem(REWARDS, "watch", RewardFunction(watch, None))

    length = 10
    run = train_here(
        tmp_path,
        *(setting.replace("no_think", "think_before") for setting in SETTINGS),  # some are long, some are not
        f"algorithm.sampling.max_completion_length={length}",
        "+reward.functions.watch.weight=1",
        *("trainer.max_tokens_per_device=1" if change == "micro-batches" else change for change in changes),
    )
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    assert {cut for _, _, cut in seen} == {True, False}
    assert [text for text, _, _ in seen] == generated
    for text, ids, cut in seen:
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert (len(ids) == length if cut else len(ids) <= length) and cut == (tokenizer.eos_token_id not in ids)
