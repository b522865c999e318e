"""The figures of docs/med-r1/results.md, from published sweeps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from benchmarks.outcomes import LENIENT, Sweep
from medr1.evaluation.matrices import tabulate
from medr1.evaluation.sweep_tables import SweepRun
from medr1.reporting import figures as draw
from medr1.reporting.formatting import label


@dataclass(frozen=True, slots=True)
class Map:
    """An axis over which GRPO and SFT are compared. ``unit``: before its values, such as step."""

    axis: str
    title: str
    unit: str = ""

    def number(self, value: str) -> float:
        """The number at the end of a value, such as 2200 of models/step-2200."""
        found = re.search(r"\d+(\.\d+)?$", value)
        if not found:
            raise SystemExit(f"{self.axis}={value} does not end with a number, by which a map is drawn; rename it")
        return float(found[0])

    def values(self, sweep: Sweep) -> list[str]:
        """The values of the axis in a sweep, rising."""
        return sorted(sweep.values(self.axis), key=self.number)

    def label(self, value: str) -> str:
        return f"{self.unit} {self.number(value):g}".strip()


MAPS = {
    "scarcity": Map("data.max_train_images", "Training images"),
    "base": Map("model.path", "Training of the base model", "step"),
    "shortcut": Map("data.shortcut", "Share of training questions with the shortcut"),
}


def map_figure(sweep: Sweep, of: Map) -> Figure:
    """Two panels, home and away: accuracy of GRPO, SFT and the base with lenient parsing, over the axis."""
    values = of.values(sweep)
    numbers, methods = [of.number(value) for value in values], ("grpo", "sft")
    colours = draw.method_colours(methods)
    runs = {method: [sweep.seeds(**{of.axis: value, "algorithm": method}) for value in values] for method in methods}
    scores = {method: [sweep.accuracy(of_value) for of_value in of_values] for method, of_values in runs.items()}
    base = [sweep.accuracy(of_value[:1], LENIENT).value for of_value in runs["grpo"]]
    with draw.figure_style():
        figure = Figure((draw.PAGE_WIDTH, 2.7), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for column, axes in enumerate(panels):
            for method, of_values in scores.items():
                found = [of_value.estimate(column) for of_value in of_values]
                middle, low, high = (
                    100 * np.array([getattr(e, end) for e in found]) for end in ("value", "low", "high")
                )
                axes.plot(numbers, middle, marker="o", markersize=3.5, color=colours[method], label=label(method))
                axes.fill_between(numbers, low, high, color=colours[method], alpha=0.15, linewidth=0)
            heights = [100 * accuracy[column] for accuracy in base]
            axes.plot(numbers, heights, "--", color="#777777", linewidth=0.9, label="Base, lenient parsing")
            if min(numbers) > 0 and max(numbers) > 10 * min(numbers):
                axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(numbers))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.minorticks_off()
            axes.set(xlabel=of.title, title=("The modality trained on", "The seven others")[column])
        panels[0].set_ylabel("Accuracy (%)")
        panels[1].legend(loc="upper left")  # where the curves are low
        return figure


def gain_figures(sweep: Sweep) -> Mapping[str, Figure]:
    """The matrix of gains over the base for each method, as in a report, all with one scale of colours."""
    sweep = sweep.by_sft["false"]
    predictions = sweep.predictions
    runs = [SweepRun(run.name, run.axes, predictions[run.name]) for run in sweep.published.runs]
    matrices = tabulate(runs, sweep.published.rows, sweep.published.columns).matrices
    limits = draw.difference_limits([gain for matrix in matrices for gain in draw.shown_gains(matrix)])
    return {matrix.method: draw.gain_heatmap(matrix, limits=limits) for matrix in matrices}


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
