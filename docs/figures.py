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

from medr1.data.sources.phantoms.records import World, make_records
from medr1.domain.records import Modality, QuestionType
from medr1.reporting.formatting import label
from medr1.tracking.metrics_file import MetricsFile

IMAGES = Path(__file__).parent / "images"
QUESTION = "test/mri/00001/disease"
GREY, BLUE, ORANGE = "#7d828a", "#2f8fd3", "#e0702a"  # readable on white and on black
SMOOTHING = 10  # steps
LINE = 13  # pixels of a line of text below a phantom


def phantoms() -> None:
    """A row for each modality and a column for each question type: the image, the question, and its options.

    The correct option is blue.
    """
    side, gap, left, top = 150, 22, 104, 34
    width, height = side + gap, side + 5 * LINE + gap // 2
    sheet = Image.new("RGB", (left + len(QuestionType) * width, top + len(Modality) * height), "white")
    draw = ImageDraw.Draw(sheet)
    made = make_records(World.TRAIN, 0, len(QuestionType))
    for column, question_type in enumerate(QuestionType):
        draw.text((left + column * width, 8), label(question_type), fill="black", font_size=15)
    for row, modality in enumerate(Modality):
        draw.text((8, top + row * height + side // 2 - 8), label(modality), fill="black", font_size=15)
        records = [record for record in made if record.modality is modality]
        for column, question_type in enumerate(QuestionType):
            record = records[column * len(QuestionType) + column]
            assert record.question_type is question_type
            x, y = left + column * width, top + row * height
            sheet.paste(record.images[0].load(side), (x, y))
            edges = (x, x + side + 8)
            at: tuple[float, float] = (x, y + side + 3)
            for word in record.question.split():
                at = _write(draw, word, at, edges, "#555555")
            at = (x, at[1] + LINE)
            for option in record.options.values():
                at = _write(draw, option, at, edges, BLUE if option == record.answer_text else "black")
    sheet.save(IMAGES / "phantoms.jpg", quality=75)


def _write(
    draw: ImageDraw.ImageDraw, word: str, at: tuple[float, float], edges: tuple[float, float], ink: str
) -> tuple[float, float]:
    """Writes a word on the line, or at the beginning of the next one; returns the place of the following word."""
    (x, y), width = at, draw.textlength(word, font_size=11)
    if x + width > edges[1]:
        x, y = edges[0], y + LINE
    draw.text((x, y), word, fill=ink, font_size=11)
    return x + width + 5, y


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
