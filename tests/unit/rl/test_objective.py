"""The objective against its equations, written once more as slow loops, and against numbers made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from medr1.rl.advantages import group_advantages
from medr1.rl.objective import Loss, Objective, Total, aggregate, divergence, grpo_loss

AGGREGATIONS = ("sequence_mean", "token_mean", "constant")
ESTIMATORS = ("k1", "k2", "k3")


def settings(
    aggregation: str = "sequence_mean", low: float = 0.2, high: float = 0.2, beta: float = 0.0, kl: str = "k3"
) -> Objective:
    return Objective(
        aggregation=aggregation,
        ratio_level="token",
        surrogate="clip",
        clip_low=low,
        clip_high=high,
        dual_clip=0.0,
        ratio_cap=5.0,
        beta=beta,
        kl_estimator=kl,
    )


def ragged(rows: int, width: int, generator: torch.Generator) -> Tensor:
    lengths = torch.randint(1, width + 1, (rows, 1), generator=generator)
    return torch.arange(width) < lengths


def whole(mask: Tensor, max_length: int = 11) -> Total:
    return Total(mask.shape[0], float(mask.sum()), max_length)


def random_case(seed: int, rows: int = 6, width: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """logprobs, old and reference far enough apart that both ends of the clip range are passed; advantages; mask."""
    generator = torch.Generator().manual_seed(seed)
    logprobs, old, reference = (-torch.rand(3, rows, width, generator=generator, dtype=torch.float64) * 2).unbind()
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    return logprobs, old, reference, advantages, ragged(rows, width, generator)


def slow_token(log_p: float, ratio: float, a: float, o: Objective) -> tuple[float, bool]:
    """Surrogate of one token, and whether a bound decides it."""
    if o.surrogate == "cispo":
        return min(ratio, o.ratio_cap) * a * log_p, ratio > o.ratio_cap
    bounded = min(max(ratio, 1 - o.clip_low), 1 + o.clip_high)
    value = min(ratio * a, bounded * a)
    acts = (a > 0 and ratio > 1 + o.clip_high) or (a < 0 and ratio < 1 - o.clip_low)
    if o.dual_clip and a < 0 and value < o.dual_clip * a:
        return o.dual_clip * a, True
    return value, acts


def slow_loss(
    logprobs: Tensor, old: Tensor, reference: Tensor, advantages: Tensor, mask: Tensor, o: Objective, total: Total
) -> tuple[float, float, float]:
    """Loss, and sums of divergence and of bounded tokens, by the equations, one token after the other."""
    loss, kl_sum, clipped = 0.0, 0.0, 0
    for i in range(logprobs.shape[0]):
        places = [t for t in range(logprobs.shape[1]) if mask[i, t]]
        if not places:
            continue
        logs = {t: float(logprobs[i, t] - old[i, t]) for t in places}
        if o.ratio_level == "sequence":
            logs = dict.fromkeys(places, sum(logs.values()) / len(places))
        row = 0.0
        for t in places:
            value, acts = slow_token(float(logprobs[i, t]), math.exp(logs[t]), float(advantages[i]), o)
            d = float(reference[i, t] - logprobs[i, t])
            kl = {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[o.kl_estimator]
            row += -value + o.beta * kl
            kl_sum += kl
            clipped += acts
        if o.aggregation == "sequence_mean":
            loss += row / len(places) / total.completions
        elif o.aggregation == "token_mean":
            loss += row / total.tokens
        else:
            loss += row / (total.completions * total.max_length)
    return loss, kl_sum, clipped


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize(
    "changes",
    [
        {"ratio_level": "sequence"},
        {"ratio_level": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
        {"surrogate": "cispo", "ratio_cap": 1.3},
        {"surrogate": "cispo", "ratio_cap": 1.1, "ratio_level": "sequence"},
        {"dual_clip": 1.5},
        {"dual_clip": 1.3, "clip_low": 0.1, "beta": 0.1},
    ],
    ids=str,
)
def test_every_other_option_equals_the_slow_loop(aggregation: str, changes: dict[str, Any]) -> None:
    plain = settings(aggregation)
    objective, changed = replace(plain, **changes), False
    for seed in range(6):
        logprobs, old, reference, advantages, mask = random_case(seed)
        mask[seed % 6] = False  # a completion whose loss is masked
        total = whole(mask)
        found = grpo_loss(logprobs, old, reference, advantages, mask, objective, total)
        expected = slow_loss(logprobs, old, reference, advantages, mask, objective, total)
        assert (float(found.loss), float(found.kl), float(found.clipped)) == pytest.approx(expected, abs=1e-6)
        assert expected[2] > 0  # the case does reach the bound
        without = grpo_loss(logprobs, old, reference, advantages, mask, plain, total)
        changed = changed or abs(float(without.loss) - expected[0]) > 1e-3
    assert changed


def gradient(objective: Objective, seed: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logprobs, old, _, advantages, mask = random_case(seed)
    leaf = logprobs.clone().requires_grad_()
    grpo_loss(leaf, old, None, advantages, mask, objective, whole(mask)).loss.backward()
    assert leaf.grad is not None
    return leaf.grad, (logprobs - old).exp(), advantages, mask


def test_cispo_keeps_the_gradient_of_every_token_and_caps_its_weight() -> None:
    found, ratio, advantages, mask = gradient(replace(settings("token_mean"), surrogate="cispo", ratio_cap=1.2))
    expected = -ratio.clamp(max=1.2) * advantages.unsqueeze(1) * mask / mask.sum()
    assert (ratio[mask] > 1.2).any()
    torch.testing.assert_close(found, expected)


def test_a_sequence_ratio_shares_one_gradient_among_the_tokens_of_a_completion() -> None:
    found, _, _, mask = gradient(replace(settings("token_mean", 0.9, 9.0), ratio_level="sequence"))
    for row, kept in zip(found, mask, strict=True):
        torch.testing.assert_close(row[kept], row[kept][:1].expand(int(kept.sum())))
        assert row[kept].abs().min() > 0 and not row[~kept].any()


def test_dual_clip_stops_a_bad_completion_that_became_likely() -> None:
    """A < 0 and ratio 4: without the second bound the loss is 4 |A|, with c = 3 it is 3 |A| and has no gradient."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    for dual, loss, moves in ((0.0, 4.0, True), (3.0, 3.0, False)):
        leaf = torch.tensor([[math.log(4.0)]], requires_grad=True)
        objective = replace(settings(), dual_clip=dual)
        found = grpo_loss(leaf, torch.zeros(1, 1), None, torch.tensor([-1.0]), mask, objective, whole(mask)).loss
        found.backward()
        assert found.item() == pytest.approx(loss) and leaf.grad is not None and bool(leaf.grad.any()) is moves


def test_a_step_in_which_every_completion_is_masked_has_no_loss() -> None:
    logprobs, old, reference, advantages, mask = random_case(0)
    for aggregation in AGGREGATIONS:
        nothing = torch.zeros_like(mask)
        found = grpo_loss(logprobs, old, reference, advantages, nothing, settings(aggregation), whole(nothing))
        assert float(found.loss) == 0.0


@pytest.mark.parametrize(
    ("aggregation", "low", "high", "beta", "kl"),
    list(product(AGGREGATIONS, (0.2,), (0.2, 0.28), (0.0, 0.04, 1.5), ESTIMATORS)),
)
def test_equals_a_slow_loop_over_the_equations(aggregation: str, low: float, high: float, beta: float, kl: str) -> None:
    objective = settings(aggregation, low, high, beta, kl)
    for seed in range(4):
        logprobs, old, reference, advantages, mask = random_case(seed)
        total = whole(mask)
        found = grpo_loss(logprobs, old, reference, advantages, mask, objective, total)
        expected = slow_loss(logprobs, old, reference, advantages, mask, objective, total)
        assert (float(found.loss), float(found.kl), float(found.clipped)) == pytest.approx(expected, abs=1e-6)
        assert expected[2] > 0  # the case does reach the clip range


def by_hand(objective: Objective) -> Loss:
    """Two completions of up to three tokens; ratios 2, 1/2, 1 with A = 1 and 2, 1/2 with A = -1."""
    old = torch.zeros(2, 3)
    logprobs = torch.tensor([[2.0, 0.5, 1.0], [2.0, 0.5, 7.0]]).log()
    mask = torch.tensor([[True, True, True], [True, True, False]])
    reference = logprobs + math.log(2)
    return grpo_loss(logprobs, old, reference, torch.tensor([1.0, -1.0]), mask, objective, Total(2, 5, 4))


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        # A = 1: min(2, 1.28), 1/2, 1 = 2.78; A = -1: min(-2, -1.28) = -2 and min(-1/2, -4/5) = -0.8
        ("sequence_mean", (-2.78 / 3 + 2.8 / 2) / 2),
        ("token_mean", (-2.78 + 2.8) / 5),
        ("constant", (-2.78 + 2.8) / 8),
    ],
)
def test_two_completions_by_hand(aggregation: str, expected: float) -> None:
    found = by_hand(settings(aggregation, 0.2, 0.28))
    assert float(found.loss) == pytest.approx(expected, abs=1e-6)
    assert float(found.clipped) == 2  # 2 where A = 1, and 1/2 where A = -1


@pytest.mark.parametrize(("kl", "each"), [("k1", -math.log(2)), ("k2", math.log(2) ** 2 / 2), ("k3", 1 - math.log(2))])
def test_divergence_by_hand(kl: str, each: float) -> None:
    without, found = by_hand(settings(beta=0.0)), by_hand(settings(beta=0.1, kl=kl))
    assert float(found.kl) == pytest.approx(5 * each, abs=1e-6)
    assert float(found.loss - without.loss) == pytest.approx(0.1 * each, abs=1e-6)


def test_aggregations_differ_when_lengths_do() -> None:
    logprobs, old, reference, advantages, mask = random_case(5)
    assert mask.sum(1).unique().numel() > 1
    values = [
        float(grpo_loss(logprobs, old, reference, advantages, mask, settings(name), whole(mask)).loss)
        for name in AGGREGATIONS
    ]
    assert min(abs(a - b) for a in values for b in values if a is not b) > 1e-3


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_equal_rewards_give_no_gradient(aggregation: str) -> None:
    logprobs, _, _, _, mask = random_case(1, rows=8)
    for reward in (0.0, 1.0, 1.2, 0.3):
        advantages = group_advantages(torch.full((8,), reward), 8, "group")
        leaf = logprobs.clone().requires_grad_()
        loss = grpo_loss(leaf, leaf.detach(), None, advantages, mask, settings(aggregation), whole(mask)).loss
        loss.backward()
        assert loss.item() == 0
        assert leaf.grad is not None and not leaf.grad.any()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_padding_content_is_irrelevant(aggregation: str) -> None:
    objective = settings(aggregation, beta=0.5)
    logprobs, old, reference, advantages, mask = random_case(2)
    results = []
    for junk in (0.0, 3.0):
        first, second, third = (x.masked_fill(~mask, junk * k) for x, k in ((logprobs, 1), (old, -1), (reference, 2)))
        leaf = first.requires_grad_()
        found = grpo_loss(leaf, second, third, advantages, mask, objective, whole(mask))
        found.loss.backward()
        assert leaf.grad is not None and not leaf.grad[~mask].any()
        results.append((found.loss, found.kl, found.clipped, leaf.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_on_policy_gradient_is_the_policy_gradient(aggregation: str) -> None:
    """With old = logprobs the ratio is 1 everywhere, and d loss / d logp = -A / size, as of REINFORCE."""
    logprobs, _, _, advantages, mask = random_case(3)
    leaf, plain, total = logprobs.clone().requires_grad_(), logprobs.clone().requires_grad_(), whole(mask)
    found = grpo_loss(leaf, leaf, None, advantages, mask, settings(aggregation), total)
    found.loss.backward()
    aggregate(-advantages.unsqueeze(1) * plain, mask, aggregation, total).backward()
    torch.testing.assert_close(leaf.grad, plain.grad)
    assert leaf.grad is not None and leaf.grad[mask].abs().min() > 0
    assert float(found.clipped) == 0


def test_clipped_tokens_have_no_gradient_and_others_have() -> None:
    old = torch.zeros(2, 2)
    leaf = torch.tensor([[0.5, -0.5], [0.5, -0.5]], requires_grad=True)
    mask = torch.ones(2, 2, dtype=torch.bool)
    grpo_loss(leaf, old, None, torch.tensor([1.0, -1.0]), mask, settings(), whole(mask)).loss.backward()
    assert leaf.grad is not None
    assert (leaf.grad != 0).tolist() == [[False, True], [True, False]]


def test_no_gradient_flows_into_old_and_reference() -> None:
    logprobs, old, reference, advantages, mask = random_case(4)
    leaves = [x.clone().requires_grad_() for x in (logprobs, old, reference)]
    grpo_loss(*leaves, advantages, mask, settings(beta=0.1), whole(mask)).loss.backward()
    assert leaves[0].grad is not None and leaves[1].grad is None and leaves[2].grad is None


def test_k3_and_k2_are_never_negative_and_zero_only_where_equal() -> None:
    logprobs, _, reference, _, _ = random_case(6, rows=50, width=50)
    for kl in ("k2", "k3"):
        assert (divergence(logprobs, reference, kl) > 0).all()
        assert not divergence(logprobs, logprobs, kl).any()
    assert (divergence(logprobs, reference, "k1") < 0).any()


def test_k1_and_k3_are_unbiased() -> None:
    """Their expectation under the policy is the true divergence; that of k2 is not."""
    generator = torch.Generator().manual_seed(0)
    p, q = torch.log_softmax(torch.randn(2, 9, generator=generator, dtype=torch.float64) * 2, -1)
    true = (p.exp() * (p - q)).sum()
    means = {kl: (p.exp() * divergence(p, q, kl)).sum() for kl in ESTIMATORS}
    torch.testing.assert_close(means["k1"], true)
    torch.testing.assert_close(means["k3"], true)
    assert abs(means["k2"] - true) > 0.01


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_add_up_whatever_their_sizes(aggregation: str) -> None:
    logprobs, old, reference, advantages, mask = random_case(7, rows=9)
    objective, total = settings(aggregation, beta=0.3), whole(mask)
    leaf = logprobs.clone().requires_grad_()
    together = grpo_loss(leaf, old, reference, advantages, mask, objective, total).loss
    together.backward()
    split = logprobs.clone().requires_grad_()
    parts = []
    for rows in (slice(0, 1), slice(1, 6), slice(6, 9)):
        width = int(mask[rows].sum(1).max())  # a micro-batch is as wide as its own longest completion
        cut = [x[rows, :width] for x in (split, old, reference)]
        parts.append(grpo_loss(*cut, advantages[rows], mask[rows, :width], objective, total).loss)
    sum(parts[1:], parts[0]).backward()
    torch.testing.assert_close(sum(parts[1:], parts[0]), together)
    torch.testing.assert_close(split.grad, leaf.grad)


def test_beta_without_reference_is_refused() -> None:
    logprobs, old, _, advantages, mask = random_case(8)
    with pytest.raises(ValueError, match="reference"):
        grpo_loss(logprobs, old, None, advantages, mask, settings(beta=0.04), whole(mask))
    assert float(grpo_loss(logprobs, old, None, advantages, mask, settings(), whole(mask)).kl) == 0
