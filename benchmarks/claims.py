"""The claims of docs/med-r1/protocol.md: their effects in the published runs, and the verdict on each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.outcomes import AWAY, HOME, Square, Sweep, at_plateau, false_claims
from benchmarks.published import PublishedRun
from medr1.evaluation.bootstrap import Scores
from medr1.evaluation.statistics import Estimate
from medr1.reporting.formatting import label

MATTERS = 0.03  # the smallest difference that matters
SQUARES = {  # sweep: its axis, and what is not trained on
    "cross_modality": ("modality", "other modalities (No-Think)"),
    "cross_question_type": ("question_type", "other question types (No-Think)"),
    "cross_question_type_think_after": ("question_type", "other question types (Think-After)"),
}
MODES = "reasoning_modes"


@dataclass(frozen=True, slots=True)
class Claim:
    """An effect with the verdict on it.

    ``over_images``: the effect with the interval over images alone, with the seeds as they are. ``is_equivalence``: the
    claim is that there is no difference that matters. ``mark``: what a reader must know of the runs, or "".
    ``each_seed``: the effect of each seed.
    """

    text: str
    effect: Estimate
    over_images: Estimate
    seeds: int
    is_equivalence: bool = False
    mark: str = ""
    each_seed: tuple[float, ...] = ()

    @property
    def detail(self) -> str:
        """What the verdict leaves out: a small effect, or whether the opposite of a claim was found; or nothing."""
        if self.is_equivalence:
            return ""
        if self.verdict == "holds":
            return "less than 3 points" if self.effect.high < MATTERS else ""
        if self.verdict == "does not hold":
            if self.effect.high >= 0:
                return "no difference of 3 points"
            return "the opposite" + ", less than 3 points" * (self.effect.low > -MATTERS)
        return ""

    @property
    def verdict(self) -> str:
        e, equal = self.effect, self.effect.low >= -MATTERS and self.effect.high <= MATTERS
        if self.is_equivalence:
            holds, fails = equal, e.low > MATTERS or e.high < -MATTERS
        else:
            holds, fails = e.low > 0, e.high < 0 or equal
        if holds:
            return "holds"
        return "does not hold" if fails else f"cannot be settled here; {self.needed}"

    @property
    def needed(self) -> str:
        """What would decide, if the effect stays and both parts of its variance fall with the numbers behind them."""
        size = abs(self.effect.value)
        room = max(MATTERS - size, size - MATTERS if self.is_equivalence else size)
        if room <= 0:
            return "no number of seeds or images would"
        whole = _half_width(self.effect) ** 2
        images = min(_half_width(self.over_images) ** 2, whole)
        seeds, allowed = whole - images, room**2
        if images < allowed:
            return f"about {_above(self.seeds * seeds / (allowed - images))} seeds would"
        if seeds < allowed:
            return f"about {_above(images / (allowed - seeds))} times as many test images would"
        return f"about {_above(whole / allowed)} times as many seeds and test images would"


def _half_width(estimate: Estimate) -> float:
    """The longer side of an interval, because one that is decided must be short on the side of its limit."""
    return max(estimate.high - estimate.value, estimate.value - estimate.low)


def _above(value: float) -> int:
    """The next whole number; with exactly ``value`` the interval would end on its limit."""
    return math.floor(round(value, 6)) + 1


def plateau_mark(runs: Sequence[PublishedRun]) -> str:
    """How many of the runs had not reached their plateau, or nothing."""
    rising = sum(not at_plateau(run) for run in runs)
    return f" ({rising} of {len(runs)} runs not at a plateau)" if rising else ""


def claims(sweeps: Mapping[str, Sweep]) -> list[Claim | str]:
    """The claims of the paper whose runs are there, and the texts of those whose runs are missing."""
    sweeps = {name: sweep.by_sft["false"] if name in SQUARES else sweep for name, sweep in sweeps.items()}
    found: list[Claim | str] = []
    for mode in ("think_before", "no_think", "think_after"):
        text = f"RL improves the base model ({label(mode)})"
        found.append(_claim(sweeps, MODES, text, partial(_gain, mode=mode), HOME))
    for name, (axis, others) in SQUARES.items():
        text = f"RL generalizes to {others}"
        found.append(_claim(sweeps, name, text, partial(_square_gain, axis=axis), AWAY))
        text = f"RL generalizes better than SFT to {others}"
        found.append(_claim(sweeps, name, text, partial(_square_difference, axis=axis), AWAY))
    for mode in ("think_before", "think_after"):
        text = f"Reasoning hallucinates: more false claims after RL ({label(mode)})"
        found.append(_claim(sweeps, MODES, text, partial(_false_claims, mode=mode), 0))
    better = partial(_between, a="think_before", b="no_think")
    found.append(_claim(sweeps, MODES, "No-Think is better than Think-Before after RL", better, HOME))
    same = partial(_between, a="no_think", b="think_after")
    text = "Think-After keeps the accuracy of No-Think"
    found.append(_claim(sweeps, MODES, text, same, HOME, is_equivalence=True))
    return found


Effect = Callable[[Sweep, bool], tuple[Scores, Sequence[PublishedRun]]]  # whether seeds are drawn -> scores, runs


def _claim(
    sweeps: Mapping[str, Sweep], name: str, text: str, effect: Effect, column: int, *, is_equivalence: bool = False
) -> Claim | str:
    """The claim on an effect in the sweep ``name``, or its text if the sweep is missing."""
    if name not in sweeps:
        return text
    scores, runs = effect(sweeps[name], True)
    over_images, _ = effect(sweeps[name], False)
    return Claim(
        text,
        scores.estimate(column),
        over_images.estimate(column),
        sweeps[name].seed_count,
        is_equivalence,
        plateau_mark(runs),
        tuple(float(effect(of_seed, True)[0].value[column]) for of_seed in sweeps[name].each_seed),
    )


def _grpo(sweep: Sweep, mode: str) -> list[PublishedRun]:
    return [run for run in sweep.seeds(reasoning=mode) if run.algorithm == "grpo"]


def _gain(sweep: Sweep, draw_seeds: bool, mode: str) -> tuple[Scores, Sequence[PublishedRun]]:
    runs = _grpo(sweep, mode)
    return sweep.gain(runs, draw_seeds=draw_seeds), runs


def _false_claims(sweep: Sweep, draw_seeds: bool, mode: str) -> tuple[Scores, Sequence[PublishedRun]]:
    runs = _grpo(sweep, mode)
    return false_claims(sweep, runs, draw_seeds=draw_seeds), runs


def _between(sweep: Sweep, draw_seeds: bool, a: str, b: str) -> tuple[Scores, Sequence[PublishedRun]]:
    """GRPO in the mode b minus GRPO in the mode a."""
    runs = _grpo(sweep, a), _grpo(sweep, b)
    return sweep.difference(*runs, draw_seeds=draw_seeds), [*runs[0], *runs[1]]


def _square_gain(sweep: Sweep, draw_seeds: bool, axis: str) -> tuple[Scores, Sequence[PublishedRun]]:
    return Square(sweep, axis).gain(draw_seeds=draw_seeds), sweep.seeds(algorithm="grpo")


def _square_difference(sweep: Sweep, draw_seeds: bool, axis: str) -> tuple[Scores, Sequence[PublishedRun]]:
    return Square(sweep, axis).difference(draw_seeds=draw_seeds), sweep.published.runs
