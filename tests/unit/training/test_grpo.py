"""Micro-batches of a rollout, and the metrics of its rewards."""

from __future__ import annotations

import pytest
import torch

from medr1.models.tensors import Completions, PromptBatch
from medr1.training.grpo import RolloutMicroBatch, _reward_metrics


def test_selected_prompts_keep_their_completions() -> None:
    ids = torch.arange(12).view(6, 2)
    mask = torch.ones(6, 2, dtype=torch.bool)
    prompts = PromptBatch(
        ids=torch.arange(9).view(3, 3),
        mask=torch.ones(3, 3, dtype=torch.bool),
        positions=torch.zeros(3, 3, 3, dtype=torch.long),
        next_position=torch.tensor([3, 4, 5]),
        pixel_values=None,
        image_grid_thw=None,
        image_index=((), (), ()),
    )
    completions = Completions(ids, mask, ids.float(), torch.zeros(6, dtype=torch.bool))
    loss_mask = mask & (ids % 3 > 0)
    selected = RolloutMicroBatch(prompts, completions, list("abcdef"), loss_mask).select([0, 2], num_generations=2)
    assert selected.prompts.next_position.tolist() == [3, 5]
    assert selected.completions.ids.tolist() == [[0, 1], [2, 3], [8, 9], [10, 11]]
    assert selected.texts == list("abef") and torch.equal(selected.loss_mask, loss_mask[[0, 1, 4, 5]])
    assert selected.prefix is None


def test_the_rows_of_a_micro_batch_are_as_long_as_its_longest() -> None:
    """vLLM completes all prompts at once; what one micro-batch gets is what it would get alone."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    whole = Completions(torch.arange(16).view(4, 4), mask, -torch.arange(16.0).view(4, 4), torch.arange(4) == 0)
    first, second = whole.trimmed(slice(0, 2)), whole.trimmed(slice(2, 4))
    assert first.ids.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]] and first.truncated.tolist() == [True, False]
    assert second.ids.tolist() == [[8, 9], [12, 13]] and second.logprobs.tolist() == [[-8, -9], [-12, -13]]
    assert second.mask.tolist() == [[True, False], [True, False]]


def test_completions_of_two_samplings_are_put_together_by_prompt() -> None:
    def sampled(rows: int, width: int, first: int) -> Completions:
        ids = torch.arange(first, first + rows * width).view(rows, width)
        return Completions(ids, ids >= 0, -ids.float(), ids[:, 0] % 2 == 0)

    clean, noisy = sampled(4, 3, 1), sampled(2, 2, 20)
    found = clean.interleave(noisy, prompts=2)
    assert found.token_ids() == [[1, 2, 3], [4, 5, 6], [20, 21], [7, 8, 9], [10, 11, 12], [22, 23]]
    assert found.truncated.tolist() == [False, True, True, False, True, True]
    assert found.logprobs.tolist()[2] == [-20.0, -21.0, 0.0] and found.mask.dtype == torch.bool


def test_the_deviation_of_rewards_is_the_mean_over_groups() -> None:
    rewards = torch.tensor([[1.0, 0.0, 2.0, 2.0], [1.0, 0.0, 1.0, 1.0]])
    metrics = {name: value.item() for name, value in _reward_metrics(rewards, ["accuracy"], 2).items()}
    assert metrics == pytest.approx(
        {
            "train/reward": 1.25,
            "reward_std": 0.5**0.5 / 2,  # the mean over both groups
            "train/accuracy_reward": 0.75,
        }
    )
