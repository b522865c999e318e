"""The objective against its equations, written once more as slow loops, and against numbers made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from medr1.config.settings import ObjectiveConfig
from medr1.rl.advantages import group_advantages
from medr1.rl.objective import Loss, LossNormalizer, aggregate, grpo_loss, kl_divergence

AGGREGATIONS = ("seq_mean_token_mean", "token_mean", "seq_mean_token_sum_norm")
ESTIMATORS = ("k2", "k3")


def settings(
    loss_agg_mode: str = "seq_mean_token_mean", low: float = 0.2, high: float = 0.2, beta: float = 0.0, kl: str = "k3"
) -> ObjectiveConfig:
    return ObjectiveConfig(
        loss_agg_mode=loss_agg_mode,
        importance_sampling_level="token",
        loss_mode="clip",
        epsilon=low,
        epsilon_high=high,
        delta=None,
        beta=beta,
        kl_loss_type=kl,
    )


def ragged(rows: int, width: int, generator: torch.Generator) -> Tensor:
    lengths = torch.randint(1, width + 1, (rows, 1), generator=generator)
    return torch.arange(width) < lengths


def normalizer_of(mask: Tensor, max_length: int = 11) -> LossNormalizer:
    return LossNormalizer(mask.shape[0], float(mask.sum()), max_length)


def random_case(seed: int, rows: int = 6, width: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """logprobs, old and reference far enough apart that both ends of the clip range are passed; advantages; mask."""
    generator = torch.Generator().manual_seed(seed)
    logprobs, old, reference = (-torch.rand(3, rows, width, generator=generator, dtype=torch.float64) * 2).unbind()
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    return logprobs, old, reference, advantages, ragged(rows, width, generator)


def slow_token(log_p: float, ratio: float, a: float, o: ObjectiveConfig) -> tuple[float, bool]:
    """Surrogate of one token, and whether a bound decides it."""
    if o.loss_mode == "sapo":
        tau = o.sapo_temperature_pos if a > 0 else o.sapo_temperature_neg
        return 4 / tau / (1 + math.exp(-tau * (ratio - 1))) * a, False
    if o.loss_mode == "cispo":
        return min(ratio, o.epsilon_high) * a * log_p, ratio > o.epsilon_high
    bounded = min(max(ratio, 1 - o.epsilon), 1 + o.epsilon_high)
    value = min(ratio * a, bounded * a)
    clipped = (a > 0 and ratio > 1 + o.epsilon_high) or (a < 0 and ratio < 1 - o.epsilon)
    if o.delta and a < 0 and value < o.delta * a:
        return o.delta * a, True
    return value, clipped


def slow_loss(
    logprobs: Tensor,
    old: Tensor,
    reference: Tensor,
    advantages: Tensor,
    mask: Tensor,
    o: ObjectiveConfig,
    normalizer: LossNormalizer,
) -> tuple[float, float, float]:
    """Loss, and sums of divergence and of bounded tokens, by the equations, one token after the other."""
    loss, kl_sum, clipped_sum = 0.0, 0.0, 0
    for i in range(logprobs.shape[0]):
        tokens = [t for t in range(logprobs.shape[1]) if mask[i, t]]
        if not tokens:
            continue
        logs = {t: float(logprobs[i, t] - old[i, t]) for t in tokens}
        if o.importance_sampling_level == "sequence":
            logs = dict.fromkeys(tokens, sum(logs.values()) / len(tokens))
        row = 0.0
        for t in tokens:
            value, clipped = slow_token(float(logprobs[i, t]), math.exp(logs[t]), float(advantages[i]), o)
            d = float(reference[i, t] - logprobs[i, t])
            kl = {"k2": d * d / 2, "k3": math.exp(d) - d - 1}[o.kl_loss_type]
            row += -value + o.beta * kl
            kl_sum += kl
            clipped_sum += clipped
        if o.loss_agg_mode == "seq_mean_token_mean":
            loss += row / len(tokens) / normalizer.completions
        elif o.loss_agg_mode == "token_mean":
            loss += row / normalizer.tokens
        else:
            loss += row / (normalizer.completions * normalizer.max_length)
    return loss, kl_sum, clipped_sum


@pytest.mark.parametrize("loss_agg_mode", AGGREGATIONS)
@pytest.mark.parametrize(
    "changes",
    [
        {"importance_sampling_level": "sequence"},
        {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        {"loss_mode": "cispo", "epsilon_high": 1.3},
        {"loss_mode": "cispo", "epsilon_high": 1.1, "importance_sampling_level": "sequence"},
        {"loss_mode": "sapo"},
        {"loss_mode": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 5.0, "beta": 0.1},
        {"loss_mode": "clip_cov"},
        {"delta": 1.5},
        {"delta": 1.3, "epsilon": 0.1, "beta": 0.1},
    ],
    ids=str,
)
def test_every_other_option_equals_the_slow_loop(loss_agg_mode: str, changes: dict[str, Any]) -> None:
    plain = settings(loss_agg_mode)
    objective, changed = replace(plain, **changes), False
    for seed in range(6):
        logprobs, old, reference, advantages, mask = random_case(seed)
        mask[seed % 6] = False  # a completion whose loss is masked
        normalizer = normalizer_of(mask)
        found = grpo_loss(logprobs, old, reference, advantages, mask, objective, normalizer)
        expected = slow_loss(logprobs, old, reference, advantages, mask, objective, normalizer)
        assert (float(found.loss), float(found.kl), float(found.clipped)) == pytest.approx(expected, abs=1e-6)
        assert (expected[2] > 0) == (objective.loss_mode != "sapo")  # the case does reach the bound
        without = grpo_loss(logprobs, old, reference, advantages, mask, plain, normalizer)
        changed = changed or abs(float(without.loss) - expected[0]) > 1e-3
    assert changed == (changes != {"loss_mode": "clip_cov"})  # its tokens are chosen elsewhere, see test_token_masks.py


@pytest.mark.parametrize("loss_agg_mode", AGGREGATIONS)
@pytest.mark.parametrize(
    "changes",
    [
        {"kl_prcp_coef": 0.3},
        {"kl_prcp_coef": 0.3, "ori_entropy_loss_coef": 0.2},
        {"kl_prcp_coef": 0.3, "ori_entropy_loss_coef": 0.2, "aug_entropy_loss_coef": 0.1, "beta": 0.1},
        {"entropy_coef": 0.5},
    ],
    ids=str,
)
def test_papo_and_the_entropy_bonus_are_slow_loops(loss_agg_mode: str, changes: dict[str, Any]) -> None:
    """Loss and gradients, of the log-probabilities with both images and of the entropies."""
    plain = replace(settings(loss_agg_mode), beta=changes.get("beta", 0.0))
    o = replace(plain, **changes)
    for seed in range(4):
        logprobs, old, reference, advantages, mask = random_case(seed)
        masked, negative = random_case(seed + 100)[:2]
        entropy = -negative
        mask[seed] = False
        normalizer = normalizer_of(mask)
        values = [x.clone().requires_grad_() for x in (logprobs, masked, entropy)]
        found = grpo_loss(
            values[0],
            old,
            reference,
            advantages,
            mask,
            o,
            normalizer,
            entropy=values[2] if o.entropy_coef else None,
            masked_image=values[1] if o.kl_prcp_coef else None,
        )
        found.loss.backward()
        slow = [x.clone().requires_grad_() for x in (logprobs, masked, entropy)]
        expected = grpo_loss(slow[0], old, reference, advantages, mask, plain, normalizer).loss
        kl_sum = 0.0
        for i, length in enumerate(mask.sum(1).tolist()):
            for t in range(length):
                d = slow[1][i, t] - slow[0][i, t]
                kl = d.exp() - d - 1
                kl_sum += float(kl.detach()) * bool(o.kl_prcp_coef)
                term = -o.kl_prcp_coef * kl - o.ori_entropy_loss_coef * slow[0][i, t]
                term = term - o.aug_entropy_loss_coef * slow[1][i, t]
                size = {
                    "seq_mean_token_mean": length * normalizer.completions,
                    "token_mean": normalizer.tokens,
                    "seq_mean_token_sum_norm": normalizer.completions * normalizer.max_length,
                }[loss_agg_mode]
                expected = expected + term / size - o.entropy_coef * slow[2][i, t] / normalizer.tokens
        expected.backward()
        assert float(found.kl_prcp) == pytest.approx(kl_sum)
        torch.testing.assert_close(found.loss, expected)
        for a, b, is_used in zip(values, slow, (True, o.kl_prcp_coef, o.entropy_coef), strict=True):
            torch.testing.assert_close(a.grad, b.grad if is_used else None)


def test_papo_rewards_a_difference_between_the_images() -> None:
    """A step along the gradient makes the divergence larger, and a divergence at its bound has no gradient."""
    o = replace(settings(), kl_prcp_coef=1.0)
    mask = torch.ones(1, 2, dtype=torch.bool)
    logprobs, masked = (torch.tensor([[-1.0, -9.0]], requires_grad=True), torch.tensor([[-1.5, -2.0]]))
    first = grpo_loss(logprobs, logprobs, None, torch.zeros(1), mask, o, normalizer_of(mask), masked_image=masked)
    first.loss.backward()
    assert logprobs.grad is not None and logprobs.grad[0, 1] == 0 and float(first.kl_prcp) > 10
    moved = (logprobs - 0.1 * logprobs.grad).detach()
    after = grpo_loss(moved, moved, None, torch.zeros(1), mask, o, normalizer_of(mask), masked_image=masked)
    assert after.kl_prcp > first.kl_prcp


@pytest.mark.parametrize("loss_agg_mode", AGGREGATIONS)
def test_a_token_without_policy_gradient_keeps_its_other_terms(loss_agg_mode: str) -> None:
    """It still counts in the denominators."""
    objective = settings(loss_agg_mode, beta=0.3)
    logprobs, old, reference, advantages, mask = random_case(1)
    kept = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    normalizer = normalizer_of(mask)
    only_kl = grpo_loss(logprobs, old, reference, 0 * advantages, mask, objective, normalizer).loss
    policy = replace(objective, beta=0.0)
    expected = grpo_loss(logprobs, old, None, advantages, mask, policy, normalizer, policy_mask=kept).loss + only_kl
    found = grpo_loss(logprobs, old, reference, advantages, mask, objective, normalizer, policy_mask=kept)
    torch.testing.assert_close(found.loss, expected)
    leaf = logprobs.clone().requires_grad_()
    grpo_loss(leaf, leaf.detach(), None, advantages, mask, policy, normalizer, policy_mask=kept).loss.backward()
    assert leaf.grad is not None and torch.equal(leaf.grad != 0, kept & mask)


def gradient(objective: ObjectiveConfig, seed: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logprobs, old, _, advantages, mask = random_case(seed)
    leaf = logprobs.clone().requires_grad_()
    grpo_loss(leaf, old, None, advantages, mask, objective, normalizer_of(mask)).loss.backward()
    assert leaf.grad is not None
    return leaf.grad, (logprobs - old).exp(), advantages, mask


def test_cispo_keeps_the_gradient_of_every_token_and_caps_its_weight() -> None:
    found, ratio, advantages, mask = gradient(replace(settings("token_mean"), loss_mode="cispo", epsilon_high=1.2))
    expected = -ratio.clamp(max=1.2) * advantages.unsqueeze(1) * mask / mask.sum()
    assert (ratio[mask] > 1.2).any()
    torch.testing.assert_close(found, expected)


def test_sapo_has_the_gradient_of_grpo_on_policy_and_less_of_it_far_away() -> None:
    """The derivative of the gate is 4 p (1 - p) with p = sigmoid(tau (r - 1)): 1 where r is 1."""
    o = replace(settings("token_mean"), loss_mode="sapo")
    mask = torch.ones(2, 3, dtype=torch.bool)
    logs = torch.tensor([[0.0, 1.0, 2.0]] * 2)
    leaf = logs.clone().requires_grad_()
    grpo_loss(leaf, torch.zeros(2, 3), None, torch.tensor([1.0, -1.0]), mask, o, normalizer_of(mask)).loss.backward()
    assert leaf.grad is not None
    weights = (-leaf.grad * 6 / logs.exp()).tolist()
    for row, a, tau in zip(weights, (1.0, -1.0), (1.0, 1.05), strict=True):
        p = [1 / (1 + math.exp(-tau * (math.exp(x) - 1))) for x in (0.0, 1.0, 2.0)]
        assert row == pytest.approx([a * 4 * x * (1 - x) for x in p], abs=1e-5)
    assert weights[0][0] == pytest.approx(1.0) and abs(weights[1][2]) < weights[0][2]


def test_a_sequence_ratio_shares_one_gradient_among_the_tokens_of_a_completion() -> None:
    found, _, _, mask = gradient(replace(settings("token_mean", 0.9, 9.0), importance_sampling_level="sequence"))
    for row, kept in zip(found, mask, strict=True):
        torch.testing.assert_close(row[kept], row[kept][:1].expand(int(kept.sum())))
        assert row[kept].abs().min() > 0 and not row[~kept].any()


def test_dual_clip_stops_a_bad_completion_that_became_likely() -> None:
    """A < 0 and ratio 4: without the second bound the loss is 4 |A|, with c = 3 it is 3 |A| and has no gradient."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    for dual, loss, moves in ((0.0, 4.0, True), (3.0, 3.0, False)):
        leaf = torch.tensor([[math.log(4.0)]], requires_grad=True)
        objective = replace(settings(), delta=dual or None)
        found = grpo_loss(
            leaf, torch.zeros(1, 1), None, torch.tensor([-1.0]), mask, objective, normalizer_of(mask)
        ).loss
        found.backward()
        assert found.item() == pytest.approx(loss) and leaf.grad is not None and bool(leaf.grad.any()) is moves


def test_a_step_in_which_every_completion_is_masked_has_no_loss() -> None:
    logprobs, old, reference, advantages, mask = random_case(0)
    for loss_agg_mode in AGGREGATIONS:
        nothing = torch.zeros_like(mask)
        found = grpo_loss(
            logprobs, old, reference, advantages, nothing, settings(loss_agg_mode), normalizer_of(nothing)
        )
        assert float(found.loss) == 0.0


@pytest.mark.parametrize(
    ("loss_agg_mode", "low", "high", "beta", "kl"),
    list(product(AGGREGATIONS, (0.2,), (0.2, 0.28), (0.0, 0.04, 1.5), ESTIMATORS)),
)
def test_equals_a_slow_loop_over_the_equations(
    loss_agg_mode: str, low: float, high: float, beta: float, kl: str
) -> None:
    objective = settings(loss_agg_mode, low, high, beta, kl)
    for seed in range(4):
        logprobs, old, reference, advantages, mask = random_case(seed)
        normalizer = normalizer_of(mask)
        found = grpo_loss(logprobs, old, reference, advantages, mask, objective, normalizer)
        expected = slow_loss(logprobs, old, reference, advantages, mask, objective, normalizer)
        assert (float(found.loss), float(found.kl), float(found.clipped)) == pytest.approx(expected, abs=1e-6)
        assert expected[2] > 0  # the case does reach the clip range


def by_hand(objective: ObjectiveConfig) -> Loss:
    """Two completions of up to three tokens; ratios 2, 1/2, 1 with A = 1 and 2, 1/2 with A = -1."""
    old = torch.zeros(2, 3)
    logprobs = torch.tensor([[2.0, 0.5, 1.0], [2.0, 0.5, 7.0]]).log()
    mask = torch.tensor([[True, True, True], [True, True, False]])
    reference = logprobs + math.log(2)
    return grpo_loss(logprobs, old, reference, torch.tensor([1.0, -1.0]), mask, objective, LossNormalizer(2, 5, 4))


@pytest.mark.parametrize(
    ("loss_agg_mode", "expected"),
    [
        # A = 1: min(2, 1.28), 1/2, 1 = 2.78; A = -1: min(-2, -1.28) = -2 and min(-1/2, -4/5) = -0.8
        ("seq_mean_token_mean", (-2.78 / 3 + 2.8 / 2) / 2),
        ("token_mean", (-2.78 + 2.8) / 5),
        ("seq_mean_token_sum_norm", (-2.78 + 2.8) / 8),
    ],
)
def test_two_completions_by_hand(loss_agg_mode: str, expected: float) -> None:
    found = by_hand(settings(loss_agg_mode, 0.2, 0.28))
    assert float(found.loss) == pytest.approx(expected, abs=1e-6)
    assert float(found.clipped) == 2  # 2 where A = 1, and 1/2 where A = -1


@pytest.mark.parametrize(("kl", "each"), [("k2", math.log(2) ** 2 / 2), ("k3", 1 - math.log(2))])
def test_divergence_by_hand(kl: str, each: float) -> None:
    without, found = by_hand(settings(beta=0.0)), by_hand(settings(beta=0.1, kl=kl))
    assert float(found.kl) == pytest.approx(5 * each, abs=1e-6)
    assert float(found.loss - without.loss) == pytest.approx(0.1 * each, abs=1e-6)


def test_aggregations_differ_when_lengths_do() -> None:
    logprobs, old, reference, advantages, mask = random_case(5)
    assert mask.sum(1).unique().numel() > 1
    values = [
        float(grpo_loss(logprobs, old, reference, advantages, mask, settings(name), normalizer_of(mask)).loss)
        for name in AGGREGATIONS
    ]
    assert min(abs(a - b) for a in values for b in values if a is not b) > 1e-3


@pytest.mark.parametrize("loss_agg_mode", AGGREGATIONS)
def test_equal_rewards_give_no_gradient(loss_agg_mode: str) -> None:
    logprobs, _, _, _, mask = random_case(1, rows=8)
    for reward in (0.0, 1.0, 1.2, 0.3):
        advantages = group_advantages(torch.full((8,), reward), 8, "group")
        leaf = logprobs.clone().requires_grad_()
        loss = grpo_loss(leaf, leaf.detach(), None, advantages, mask, settings(loss_agg_mode), normalizer_of(mask)).loss
        loss.backward()
        assert loss.item() == 0
        assert leaf.grad is not None and not leaf.grad.any()


@pytest.mark.parametrize("loss_agg_mode", AGGREGATIONS)
def test_padding_content_is_irrelevant(loss_agg_mode: str) -> None:
    objective = settings(loss_agg_mode, beta=0.5)
    logprobs, old, reference, advantages, mask = random_case(2)
    results = []
    for junk in (0.0, 3.0):
        first, second, third = (x.masked_fill(~mask, junk * k) for x, k in ((logprobs, 1), (old, -1), (reference, 2)))
        leaf = first.requires_grad_()
        found = grpo_loss(leaf, second, third, advantages, mask, objective, normalizer_of(mask))
        found.loss.backward()
        assert leaf.grad is not None and not leaf.grad[~mask].any()
        results.append((found.loss, found.kl, found.clipped, leaf.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


@pytest.mark.parametrize("loss_agg_mode", AGGREGATIONS)
def test_on_policy_gradient_is_the_policy_gradient(loss_agg_mode: str) -> None:
    """With old = logprobs the ratio is 1 everywhere, and d loss / d logp = -A / size, as of REINFORCE."""
    logprobs, _, _, advantages, mask = random_case(3)
    leaf, plain, normalizer = logprobs.clone().requires_grad_(), logprobs.clone().requires_grad_(), normalizer_of(mask)
    found = grpo_loss(leaf, leaf, None, advantages, mask, settings(loss_agg_mode), normalizer)
    found.loss.backward()
    aggregate(-advantages.unsqueeze(1) * plain, mask, loss_agg_mode, normalizer).backward()
    torch.testing.assert_close(leaf.grad, plain.grad)
    assert leaf.grad is not None and leaf.grad[mask].abs().min() > 0
    assert float(found.clipped) == 0


def test_clipped_tokens_have_no_gradient_and_others_have() -> None:
    old = torch.zeros(2, 2)
    leaf = torch.tensor([[0.5, -0.5], [0.5, -0.5]], requires_grad=True)
    mask = torch.ones(2, 2, dtype=torch.bool)
    grpo_loss(leaf, old, None, torch.tensor([1.0, -1.0]), mask, settings(), normalizer_of(mask)).loss.backward()
    assert leaf.grad is not None
    assert (leaf.grad != 0).tolist() == [[False, True], [True, False]]


def test_no_gradient_flows_into_old_and_reference() -> None:
    logprobs, old, reference, advantages, mask = random_case(4)
    leaves = [x.clone().requires_grad_() for x in (logprobs, old, reference)]
    grpo_loss(*leaves, advantages, mask, settings(beta=0.1), normalizer_of(mask)).loss.backward()
    assert leaves[0].grad is not None and leaves[1].grad is None and leaves[2].grad is None


def test_k3_and_k2_are_never_negative_and_zero_only_where_equal() -> None:
    logprobs, _, reference, _, _ = random_case(6, rows=50, width=50)
    for kl in ("k2", "k3"):
        assert (kl_divergence(logprobs, reference, kl) > 0).all()
        assert not kl_divergence(logprobs, logprobs, kl).any()


@pytest.mark.parametrize("kl", ESTIMATORS)
def test_the_gradient_of_a_divergence_depends_on_the_reference(kl: str) -> None:
    logprobs, _, reference, _, _ = random_case(6)
    logprobs = logprobs.detach().requires_grad_()
    grads = [torch.autograd.grad(kl_divergence(logprobs, r, kl).sum(), logprobs)[0] for r in (reference, reference + 1)]
    assert not torch.allclose(*grads)


def test_k3_is_unbiased() -> None:
    """Its expectation under the policy is the true divergence, below its bound; that of k2 is not."""
    generator = torch.Generator().manual_seed(0)
    p, q = torch.log_softmax(torch.randn(2, 9, generator=generator, dtype=torch.float64), -1)
    true = (p.exp() * (p - q)).sum()
    means = {kl: (p.exp() * kl_divergence(p, q, kl)).sum() for kl in ESTIMATORS}
    torch.testing.assert_close(means["k3"], true)
    assert abs(means["k2"] - true) > 0.01


@pytest.mark.parametrize("loss_agg_mode", AGGREGATIONS)
def test_micro_batches_add_up_whatever_their_sizes(loss_agg_mode: str) -> None:
    logprobs, old, reference, advantages, mask = random_case(7, rows=9)
    objective, normalizer = settings(loss_agg_mode, beta=0.3), normalizer_of(mask)
    leaf = logprobs.clone().requires_grad_()
    together = grpo_loss(leaf, old, reference, advantages, mask, objective, normalizer).loss
    together.backward()
    split = logprobs.clone().requires_grad_()
    parts = []
    for rows in (slice(0, 1), slice(1, 6), slice(6, 9)):
        width = int(mask[rows].sum(1).max())  # a micro-batch is as wide as its own longest completion
        cut = [x[rows, :width] for x in (split, old, reference)]
        parts.append(grpo_loss(*cut, advantages[rows], mask[rows, :width], objective, normalizer).loss)
    sum(parts[1:], parts[0]).backward()
    torch.testing.assert_close(sum(parts[1:], parts[0]), together)
    torch.testing.assert_close(split.grad, leaf.grad)


def test_beta_without_reference_is_refused() -> None:
    logprobs, old, _, advantages, mask = random_case(8)
    with pytest.raises(ValueError, match="reference"):
        grpo_loss(logprobs, old, None, advantages, mask, settings(beta=0.04), normalizer_of(mask))
    assert float(grpo_loss(logprobs, old, None, advantages, mask, settings(), normalizer_of(mask)).kl) == 0


def outlier(log_ratio: float, level: str = "token", mode: str = "clip", kl: str = "k3") -> tuple[Loss, Tensor]:
    """Loss and gradient of two tokens: one with this log-ratio to both old and reference, and an ordinary one."""
    logprobs = torch.tensor([[-0.5, -0.3]], requires_grad=True)
    before = torch.tensor([[-0.5 - log_ratio, -0.31]])
    o = replace(settings(beta=0.04, kl=kl), importance_sampling_level=level, loss_mode=mode)
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = grpo_loss(logprobs, before, before, torch.tensor([-1.0]), mask, o, normalizer_of(mask))
    loss.loss.backward()
    assert logprobs.grad is not None
    return loss, logprobs.grad


@pytest.mark.parametrize("log_ratio", [21.0, 90.0, 1e4, 1e30, -21.0, -90.0, -1e4, -1e30, math.inf, -math.inf])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["clip", "cispo", "sapo"])
def test_one_outlier_cannot_overflow(log_ratio: float, level: str, mode: str) -> None:
    """As in verl: log-ratios between -20 and 20, the divergence of a token at most 10."""
    loss, gradient = outlier(log_ratio, level, mode)
    assert math.isfinite(loss.loss) and bool(gradient.isfinite().all())
    assert abs(float(loss.loss)) <= math.exp(20) + 0.04 * 10
    assert 0 <= float(loss.kl) <= 10.1


@pytest.mark.parametrize(("d", "expected"), [(3.0, 10.0), (20.0, 10.0), (1e9, 10.0), (-5.0, 4.0 + math.exp(-5))])
def test_k3_is_bounded_by_ten(d: float, expected: float) -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    assert float(kl_divergence(zero, zero + d, "k3")) == pytest.approx(expected)
    assert float(kl_divergence(zero, zero - 1e9, "k3")) == pytest.approx(10.0)


def test_bounds_change_no_ordinary_number() -> None:
    """To the bit: divergence and its gradient below the bound equal the formula without one."""
    generator = torch.Generator().manual_seed(0)
    logprobs = (torch.rand(500, generator=generator) * 4 - 2).requires_grad_()
    kl_divergence(logprobs, torch.zeros(500), "k3").sum().backward()
    bounded, logprobs.grad = logprobs.grad, None
    d = torch.zeros(500) - logprobs
    plain = d.exp() - d - 1
    plain.sum().backward()
    assert bounded is not None and logprobs.grad is not None and torch.equal(bounded, logprobs.grad)
    assert torch.equal(kl_divergence(logprobs, torch.zeros(500), "k3"), plain)
