"""Makes the figures of the README and of these pages.

python docs/figures.py phantoms             docs/images/phantoms.jpg: phantoms of the eight modalities
python docs/figures.py question             docs/images/question.png: the image of the README's question
python docs/figures.py curve runs/RUN       docs/images/learning_curve.svg: the curve of the README's first command
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medr1.data.sources.phantoms.records import World, make_phantom, make_records
from medr1.domain.records import Modality
from medr1.reporting.formatting import label
from medr1.tracking.metrics_file import MetricsFile

IMAGES = Path(__file__).parent / "images"
QUESTION = "test/mri/00001/disease"
GREY, BLUE, ORANGE = "#7d828a", "#2f8fd3", "#e0702a"  # readable on white and on black
SMOOTHING = 10  # steps


def phantoms() -> None:
    """One row per modality, nine training phantoms each."""
    size, columns, margin = 112, 9, 96
    sheet = Image.new("RGB", (margin + columns * size, len(Modality) * size), "white")
    draw = ImageDraw.Draw(sheet)
    for row, modality in enumerate(Modality):
        draw.text((6, row * size + size // 2 - 6), label(modality), fill="black", font_size=13)
        for column in range(columns):
            sheet.paste(make_phantom(World.TRAIN, 0, modality, column).load(size), (margin + column * size, row * size))
    sheet.save(IMAGES / "phantoms.jpg", quality=80)


def question() -> None:
    """The image of one test record at three times the size that the model sees."""
    record = next(record for record in make_records(World.TEST, 0, 80) if record.id == QUESTION)
    record.images[0].load(84).resize((252, 252), Image.Resampling.NEAREST).save(IMAGES / "question.png", optimize=True)


def curve(run: Path) -> None:
    """Accuracy and format reward of the training completions, and the test accuracy before and after training."""
    lines = {"accuracy": BLUE, "format": ORANGE}
    curves = MetricsFile(run / "metrics.jsonl").read()
    conditions = json.loads((run / "summary.json").read_text(encoding="utf-8"))["conditions"]
    before, after = (100 * conditions[name]["by_modality"]["mri"]["accuracy"]["value"] for name in ("base", "trained"))
    matplotlib.rcParams.update({"svg.hashsalt": "medr1", "font.size": 9, "text.color": GREY})
    figure, axes = pyplot.subplots(figsize=(7.2, 2.7), layout="constrained")
    last = 0
    for name, color in lines.items():
        steps, values = np.array(curves[f"train/{name}_reward"]).T
        steps, values, last = steps + 1, 100 * values, int(steps[-1]) + 1
        window = np.ones(SMOOTHING + 1) / (SMOOTHING + 1)
        smooth = np.convolve(np.pad(values, SMOOTHING // 2, mode="edge"), window, "valid")
        axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.35)
        axes.plot(steps, smooth, color=color, linewidth=2, label=f"{name} reward")
    axes.plot([0, last], [before, after], "o", color=BLUE, markersize=6, clip_on=False, label="MRI test accuracy")
    axes.annotate(f"{before:.1f}", (0, before), (7, 5), textcoords="offset points", color=BLUE)
    axes.annotate(f"{after:.1f}", (last, after), (9, 0), textcoords="offset points", color=BLUE, va="center")
    axes.legend(loc="lower right", ncols=3, frameon=False)
    axes.set(xlabel="training step", ylabel="% of completions", xlim=(0, last), ylim=(0, 102))
    axes.tick_params(colors=GREY)
    axes.xaxis.label.set_color(GREY)
    axes.yaxis.label.set_color(GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    figure.savefig(IMAGES / "learning_curve.svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["phantoms"]:
            phantoms()
        case ["question"]:
            question()
        case ["curve", run]:
            curve(Path(run))
        case _:
            sys.exit(__doc__)
