"""The results on phantoms, from the published runs: tables, figures and claims of docs/med-r1/results.md.

    python -m benchmarks.results                 writes them
    python -m benchmarks.results store DIR NAME  adds the finished sweep in DIR to the published runs as NAME

docs/med-r1/protocol.md says what is compared, and which result counts for or against a claim. A part of the page whose
runs are missing says so.
"""

from __future__ import annotations

import argparse
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from benchmarks.published import FOLDER, PublishedRun, PublishedSweep, load, store
from medr1.atomic_write import write_text
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record, in_order
from medr1.evaluation.bootstrap import FloatArray, Scores, bootstrap_statistic, score, sums_by_image
from medr1.evaluation.predictions import Condition, Prediction
from medr1.evaluation.rationales import check_rationales
from medr1.evaluation.statistics import Estimate
from medr1.evaluation.sweep_tables import ALL
from medr1.reporting import figures as draw
from medr1.reporting.formatting import label, percent, with_interval

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, IMAGES = DOCS / "med-r1" / "results.md", DOCS / "images"
MATTERS = 0.03  # the smallest difference that matters
RESAMPLES = 2000
PLATEAU = 0.01  # a training has ended if its last four validations are at most so much above the four before
HOME, AWAY = 0, 1  # columns: the records like those that were trained on, and all others
NO_RUNS = "Not run yet."


@dataclass(frozen=True, slots=True)
class Claim:
    """An effect with the verdict on it. ``is_equivalence``: the claim is that there is no difference that matters."""

    text: str
    effect: Estimate
    seeds: int
    is_equivalence: bool = False

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
        """How many seeds would decide, if the effect stays and the interval narrows with the root of their number."""
        half, size = (self.effect.high - self.effect.low) / 2, abs(self.effect.value)
        targets = [MATTERS - size, size - MATTERS if self.is_equivalence else size]
        room = max(targets)
        if room <= 0:
            return "no number of seeds would"
        return f"about {math.ceil(round(self.seeds * (half / room) ** 2, 6))} seeds would"


@dataclass(frozen=True, eq=False)  # hashed by identity
class Sweep:
    """The runs of one sweep with their outcomes on the test records."""

    published: PublishedSweep

    @cached_property
    def records(self) -> list[Record]:
        return self.published.records()

    @cached_property
    def predictions(self) -> dict[str, dict[str, list[Prediction]]]:
        """By run and condition."""
        return {run.name: run.predictions(self.records) for run in self.published.runs}

    @cached_property
    def outcomes(self) -> dict[tuple[str, str], FloatArray]:
        """By run and condition: whether each answer is correct, [n]. ``lenient``: the base, read leniently."""
        found = {}
        for name, conditions in self.predictions.items():
            for condition, lines in conditions.items():
                found[name, condition] = np.array([line.correct for line in lines])
                if condition == Condition.BASE:
                    found[name, "lenient"] = np.array([line.lenient == line.answer for line in lines])
        return found

    def seeds(self, **axes: str) -> list[PublishedRun]:
        """The runs with these values, in the order of their seeds."""
        runs = [r for r in self.published.runs if all(r.axes.get(key) == value for key, value in axes.items())]
        return sorted(runs, key=lambda run: int(run.axes.get("seed", "0")))

    def values(self, axis: str) -> list[str]:
        return list(dict.fromkeys(run.axes[axis] for run in self.published.runs))

    def scores(self, vectors: Sequence[tuple[str, str]], is_home: Callable[[Record], bool]) -> Scores:
        """The accuracies of runs under conditions on both columns, with common resamples."""
        column = np.array([HOME if is_home(record) else AWAY for record in self.records], dtype=np.intp)
        if not column.any():
            column[:] = HOME
        images = np.unique([record.image_key for record in self.records], return_inverse=True)[1].astype(np.intp)
        return score(np.stack([self.outcomes[v] for v in vectors]), column, images, RESAMPLES, np.random.default_rng(0))

    def accuracy(self, runs: Sequence[PublishedRun], condition: str = Condition.TRAINED) -> Scores:
        """Mean over the seeds ``runs``; columns are home, away (if there is any) and all records."""
        vectors = [(run.name, condition) for run in runs]
        return self.scores(vectors, _at_home(runs[0])).over_seeds(_rng(vectors))

    def difference(
        self,
        a: Sequence[PublishedRun],
        b: Sequence[PublishedRun],
        conditions: tuple[str, str] = (Condition.TRAINED, Condition.TRAINED),
    ) -> Scores:
        """``b`` minus ``a`` on the same records, paired by seed."""
        vectors = [*((run.name, conditions[0]) for run in a), *((run.name, conditions[1]) for run in b)]
        both = self.scores(vectors, _at_home(b[0]))
        split = range(len(a)), range(len(a), len(a) + len(b))
        return (both.select(split[1]) - both.select(split[0])).over_seeds(_rng(vectors))

    def gain(self, runs: Sequence[PublishedRun]) -> Scores:
        """Trained minus the base read leniently, so that learning the format does not count."""
        return self.difference(runs, runs, ("lenient", Condition.TRAINED))


def _rng(vectors: Sequence[tuple[str, str]]) -> np.random.Generator:
    """Draws of seeds that depend on what is compared alone, so that a number does not change with its neighbours."""
    return np.random.default_rng(zlib.crc32(repr(vectors).encode()))


def _at_home(run: PublishedRun) -> Callable[[Record], bool]:
    return lambda record: run.modality in (ALL, record.modality) and run.question_type in (ALL, record.question_type)


def at_plateau(run: PublishedRun) -> bool:
    """Whether validation had stopped to rise."""
    values = [value for _, value in run.curves["validation/accuracy"]]
    return len(values) >= 8 and float(np.mean(values[-4:]) - np.mean(values[-8:-4])) <= PLATEAU


def plateau_mark(runs: Sequence[PublishedRun]) -> str:
    return "" if all(map(at_plateau, runs)) else " (not at a plateau)"


def crossing(x: Sequence[float], differences: FloatArray) -> float | None:
    """Where a difference [len(x)] changes its sign for the first time, interpolated on a log scale of x."""
    for (x0, d0), (x1, d1) in pairwise(zip(x, differences, strict=True)):
        if d0 * d1 < 0:
            return float(math.exp(math.log(x0) + d0 / (d0 - d1) * (math.log(x1) - math.log(x0))))
    return None


def crossing_text(x: Sequence[float], per_value: Sequence[tuple[float, FloatArray]]) -> str:
    """The crossing with its interval, from the value and the resamples [R] of the difference at each x."""
    found = crossing(x, np.array([value for value, _ in per_value]))
    resampled = [crossing(x, column) for column in np.stack([r for _, r in per_value], axis=1)]
    crossed = [value for value in resampled if value is not None]
    share = len(crossed) / len(resampled)
    if found is None:
        return f"The curves do not cross (they do in {100 * share:.0f} % of the resamples)."
    low, high = np.quantile(crossed, [0.025, 0.975])
    return f"The curves cross at {found:.3g} [{low:.3g}, {high:.3g}] (in {100 * share:.0f} % of the resamples)."


def map_part(sweep: Sweep, axis: str, name: str) -> str:
    """GRPO against SFT at home and away, as a function of the values of an axis."""
    rows = ["| " + name + " | GRPO | SFT | GRPO - SFT | GRPO, others | SFT, others | GRPO - SFT, others |"]
    rows.append("|---|---|---|---|---|---|---|")
    differences: dict[int, list[tuple[float, FloatArray]]] = {HOME: [], AWAY: []}
    values = sweep.values(axis)
    for value in values:
        cells = []
        grpo, sft = (sweep.seeds(**{axis: value, "algorithm": method}) for method in ("grpo", "sft"))
        accuracies, between = [sweep.accuracy(runs) for runs in (grpo, sft)], sweep.difference(sft, grpo)
        for column in (HOME, AWAY):
            cells += [with_interval(scores.estimate(column)) for scores in accuracies]
            cells.append(with_interval(between.estimate(column), "+"))
            differences[column].append((float(between.value[column]), between.resampled[column]))
        rows.append(f"| {value}{plateau_mark((*grpo, *sft))} | {' | '.join(cells)} |")
    text = ["\n".join(rows)]
    numbers = [float(value) for value in values] if all(re.fullmatch(r"[\d.]+", value) for value in values) else []
    if numbers and min(numbers) > 0:
        for column, where in ((HOME, "On the modality trained on"), (AWAY, "On the others")):
            text.append(f"{where}: {crossing_text(numbers, differences[column])}")
    return "\n\n".join(text)


def map_figure(sweep: Sweep, axis: str, name: str) -> Figure:
    """Two panels, home and away: accuracy of GRPO and SFT over the axis, the base and its lenient reading as lines."""
    values = [float(value) for value in sweep.values(axis)]
    methods = ("grpo", "sft")
    colours = draw.method_colours(methods)
    scores = {
        method: [sweep.accuracy(sweep.seeds(**{axis: value, "algorithm": method})) for value in sweep.values(axis)]
        for method in methods
    }
    base = sweep.accuracy(sweep.published.runs[:1], "lenient").value
    with draw.figure_style():
        figure = Figure((draw.PAGE_WIDTH, 2.7), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for column, axes in enumerate(panels):
            for method, of_values in scores.items():
                found = [of_value.estimate(column) for of_value in of_values]
                middle, low, high = (
                    100 * np.array([getattr(e, end) for e in found]) for end in ("value", "low", "high")
                )
                axes.plot(values, middle, marker="o", markersize=3.5, color=colours[method], label=label(method))
                axes.fill_between(values, low, high, color=colours[method], alpha=0.15, linewidth=0)
            axes.axhline(
                100 * base[column], color="#777777", linewidth=0.9, linestyle="--", label="Base, read leniently"
            )
            axes.set(xscale="log", xlabel=name)
            axes.xaxis.set_major_locator(FixedLocator(values))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.minorticks_off()
            axes.set_title(("The modality trained on", "The seven others")[column])
        panels[0].set_ylabel("Accuracy (%)")
        panels[0].legend(loc="best")
        return figure


def headline_part(sweep: Sweep) -> str:
    """The methods side by side, with controls and what is left of the gain when the base is read leniently."""
    first = sweep.published.runs[:1]
    lines = ["| | accuracy | gain over the base, read leniently | minus GRPO | blank image | shuffled image |"]
    lines.append("|---|---|---|---|---|---|")
    for name, condition in (("base", Condition.BASE), ("base, read leniently", "lenient")):
        lines.append(f"| {name} | {with_interval(sweep.accuracy(first, condition).estimate(HOME))} | | | | |")
    grpo = sweep.seeds(algorithm="grpo")
    for method in sweep.values("algorithm"):
        runs = sweep.seeds(algorithm=method)
        cells = [with_interval(sweep.accuracy(runs).estimate(HOME))]
        cells.append(with_interval(sweep.gain(runs).estimate(HOME), "+"))
        cells.append("" if method == "grpo" else with_interval(sweep.difference(grpo, runs).estimate(HOME), "+"))
        for control in (Condition.BLANK_IMAGE, Condition.SHUFFLED_IMAGE):
            has = all((run.name, control) in sweep.outcomes for run in runs)
            cells.append(percent(float(sweep.accuracy(runs, control).value[HOME])) if has else "")
        lines.append(f"| {label(method)}{plateau_mark(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def curves_figure(sweep: Sweep) -> Figure:
    """Validation accuracy along training by method, with the accuracy on blank images below."""
    methods = sweep.values("algorithm")
    colours = draw.method_colours(methods)
    with draw.figure_style():
        figure = Figure((draw.PAGE_WIDTH, 2.9), layout="constrained")
        axes = figure.subplots()
        for method in methods:
            runs = sweep.seeds(algorithm=method)
            for metric, dash in (("validation/accuracy", "-"), ("validation/blank_image_accuracy", ":")):
                if not all(metric in run.curves for run in runs):
                    continue
                steps = [step for step, _ in runs[0].curves[metric]]
                values = 100 * np.array([[value for _, value in run.curves[metric]] for run in runs])
                name = label(method) if dash == "-" else None
                axes.plot(steps, values.mean(axis=0), dash, color=colours[method], label=name, linewidth=1.2)
                axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colours[method], alpha=0.12)
        axes.set(xlabel="Step", ylabel="Validation accuracy (%)", ylim=(0, 100))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="dotted: blank image")
        return figure


@cache  # three parts of the page need it
def generalization(sweep: Sweep, axis: str) -> dict[str, Scores]:
    """Means over the rows of a square sweep: each method, GRPO - SFT, and GRPO - the base read leniently."""
    rows = in_order(sweep.values(axis))

    def mean(of_row: Callable[[str], Scores]) -> Scores:
        found = [of_row(row) for row in rows]
        return Scores(np.mean([f.value for f in found], axis=0), np.mean([f.resampled for f in found], axis=0))

    def runs(row: str, method: str) -> list[PublishedRun]:
        return sweep.seeds(**{axis: row, "algorithm": method})

    return {
        "GRPO": mean(lambda row: sweep.accuracy(runs(row, "grpo"))),
        "SFT": mean(lambda row: sweep.accuracy(runs(row, "sft"))),
        "GRPO - SFT": mean(lambda row: sweep.difference(runs(row, "sft"), runs(row, "grpo"))),
        "GRPO - base, read leniently": mean(lambda row: sweep.gain(runs(row, "grpo"))),
    }


def square_part(sweep: Sweep, axis: str) -> str:
    lines = ["| | trained on | others |", "|---|---|---|"]
    for name, scores in generalization(sweep, axis).items():
        sign = "+" if " - " in name else ""
        cells = [with_interval(scores.estimate(c), sign) for c in (HOME, AWAY)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def false_claims(sweep: Sweep, runs: Sequence[PublishedRun]) -> Estimate:
    """Share of false claims in the rationales of ``runs`` minus that of the base, over images, with pooled seeds."""
    by_id = {record.id: record for record in sweep.records}

    def counts(condition: str) -> FloatArray:
        """False and all claims of each image, [K, 2]."""
        sums = np.zeros((len(by_id), 2))
        for run in runs:
            for i, r in enumerate(check_rationales(sweep.predictions[run.name][condition], by_id)):
                sums[i] += (sum(not claim.true for claim in r.claims), len(r.claims))
        return sums_by_image([record.image_key for record in sweep.records], *sums.T)

    both = np.concatenate([counts(Condition.TRAINED), counts(Condition.BASE)], axis=1)
    return bootstrap_statistic(both, lambda sums: sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3])


def reasoning_part(sweep: Sweep) -> str:
    """Each mode and method: accuracy, gain over the base, and false claims in rationales."""
    lines = [
        "| | base, read leniently | accuracy | gain | false claims minus those of the base |",
        "|---|---|---|---|---|",
    ]
    methods = {(run.reasoning, *_method(run)): None for run in sweep.published.runs}
    for mode, *method in methods:
        runs = [run for run in sweep.seeds(reasoning=mode) if _method(run) == tuple(method)]
        before, after = (sweep.accuracy(of, c).estimate(HOME) for of, c in ((runs[:1], "lenient"), (runs, "trained")))
        gain = sweep.gain(runs).estimate(HOME)
        false = "" if mode == ReasoningMode.NO_THINK else with_interval(false_claims(sweep, runs), "+")
        cells = [with_interval(before), with_interval(after), with_interval(gain, "+"), false]
        lines.append(f"| {label(mode)}, {' '.join(map(label, method))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _method(run: PublishedRun) -> tuple[str, ...]:
    """Values of what the sweep varies beside mode and seed."""
    return tuple(value for axis, value in run.axes.items() if axis not in ("reasoning", "seed"))


def claims(sweeps: Mapping[str, Sweep]) -> list[Claim | str]:
    """The claims of the paper whose runs are there, and the texts of those whose runs are missing."""
    found: list[Claim | str] = []

    def add(text: str, sweep: str, effect: Callable[[Sweep], Estimate], *, is_equivalence: bool = False) -> None:
        if sweep in sweeps:
            seeds = len({run.axes.get("seed") for run in sweeps[sweep].published.runs})
            found.append(Claim(text, effect(sweeps[sweep]), seeds, is_equivalence))
        else:
            found.append(text)

    def of_mode(sweep: Sweep, mode: str) -> list[PublishedRun]:
        return [run for run in sweep.seeds(reasoning=mode) if run.algorithm == "grpo"]

    def gain(sweep: Sweep, mode: str) -> Estimate:
        return sweep.gain(of_mode(sweep, mode)).estimate(HOME)

    def away(sweep: Sweep, axis: str, row: str) -> Estimate:
        return generalization(sweep, axis)[row].estimate(AWAY)

    def between(sweep: Sweep, a: str, b: str) -> Estimate:
        return sweep.difference(of_mode(sweep, a), of_mode(sweep, b)).estimate(HOME)

    def more_false(sweep: Sweep, mode: str) -> Estimate:
        return false_claims(sweep, of_mode(sweep, mode))

    modes, types = "reasoning_modes", "other question types"
    for mode in ("think_before", "no_think", "think_after"):
        add(f"RL improves the base model ({label(mode)})", modes, partial(gain, mode=mode))
    for name, others in (("cross_modality", "other modalities"), ("cross_question_type", types)):
        of_axis = partial(away, axis=SQUARES[name])
        add(f"RL generalizes to {others}", name, partial(of_axis, row="GRPO - base, read leniently"))
        add(f"RL generalizes better than SFT to {others}", name, partial(of_axis, row="GRPO - SFT"))
    for mode in ("think_before", "think_after"):
        text = f"Reasoning hallucinates: more false claims after RL ({label(mode)})"
        add(text, modes, partial(more_false, mode=mode))
    add("No-Think is better than Think-Before after RL", modes, partial(between, a="think_before", b="no_think"))
    same = partial(between, a="no_think", b="think_after")
    add("Think-After keeps the accuracy of No-Think", modes, same, is_equivalence=True)
    return found


def claims_part(sweeps: Mapping[str, Sweep]) -> str:
    lines = ["| claim | effect in points | verdict |", "|---|---|---|"]
    for claim in claims(sweeps):
        if isinstance(claim, str):
            lines.append(f"| {claim} | | {NO_RUNS.lower().rstrip('.')} |")
        else:
            verdict = claim.verdict if "cannot" in claim.verdict else f"**{claim.verdict}**"
            lines.append(f"| {claim.text} | {with_interval(claim.effect, '+')} | {verdict} |")
    return "\n".join(lines)


MAPS = {
    "scarcity": ("data.max_train_images", "Training images"),
    "base": ("model.path", "State of the base"),
    "shortcut": ("data.shortcut", "Share of questions with the shortcut"),
}
SQUARES = {"cross_modality": "modality", "cross_question_type": "question_type"}


PARTS: dict[str, Callable[[Sweep], str]] = {
    **{name: partial(map_part, axis=axis, name=title) for name, (axis, title) in MAPS.items()},
    "headline": headline_part,
    "reasoning_modes": reasoning_part,
    **{name: partial(square_part, axis=axis) for name, axis in SQUARES.items()},
}


def parts(sweeps: Mapping[str, Sweep]) -> dict[str, str]:
    """The parts of the page by their marker."""
    of_sweeps = {name: part(sweeps[name]) if name in sweeps else NO_RUNS for name, part in PARTS.items()}
    return {"claims": claims_part(sweeps), **of_sweeps}


def write_page(page: Path, sweeps: Mapping[str, Sweep]) -> None:
    """Replaces what stands between ``<!-- results: NAME -->`` and ``<!-- end -->``."""
    text = page.read_text(encoding="utf-8")
    for name, part in parts(sweeps).items():
        pattern = rf"(<!-- results: {name} -->\n).*?(<!-- end -->)"
        if not re.search(pattern, text, re.DOTALL):
            raise SystemExit(f"{page} has no place for {name}: <!-- results: {name} --> and <!-- end -->")
        text = re.sub(pattern, lambda found, part=part: f"{found[1]}\n{part}\n\n{found[2]}", text, flags=re.DOTALL)  # type: ignore[misc]
    write_text(page, text)


def write_figures(folder: Path, sweeps: Mapping[str, Sweep]) -> None:
    if "scarcity" in sweeps:
        draw.save_png(map_figure(sweeps["scarcity"], *MAPS["scarcity"]), folder / "scarcity.png")
    if "headline" in sweeps:
        draw.save_png(curves_figure(sweeps["headline"]), folder / "headline_curves.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    stored = commands.add_parser("store")
    stored.add_argument("directory", type=Path, help="directory of the sweep")
    stored.add_argument("name", help="name of the file in benchmarks/published")
    given = parser.parse_args()
    if given.command == "store":
        print(store(given.directory, given.name))
        return
    sweeps = {file.name.removesuffix(".json.xz"): Sweep(load(file)) for file in sorted(FOLDER.glob("*.json.xz"))}
    write_page(PAGE, sweeps)
    write_figures(IMAGES, sweeps)
    print(PAGE)


if __name__ == "__main__":
    main()
