"""Additional sections of a report: accuracy against a numeric setting, further measures, rationales of phantoms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from medr1.config.settings import greater_is_better
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import AXES, Record
from medr1.evaluation.calibration import OptionProbabilities, calibrate
from medr1.evaluation.measures import Measured, summarise_measures
from medr1.evaluation.predictions import Condition, Prediction
from medr1.evaluation.rationales import CheckedRationale, RationaleRates, rationale_rates, select_examples
from medr1.evaluation.statistics import Estimate
from medr1.evaluation.sweep_tables import ALL, SINGLE_METHOD, SweepRun, SweepTables
from medr1.reporting.figures import RELIABILITY, rates, reliability, search_history
from medr1.reporting.formatting import axis_label, label, row_title, with_interval
from medr1.reporting.measure_table import measure_rows
from medr1.reporting.references import is_base, name_bases
from medr1.reporting.report import GalleryItem, Section, SectionFigure, Span, Verdict
from medr1.reporting.result_table import ResultTable
from medr1.runs.search import Cell, Trial
from medr1.runs.selection import Choice

_MAX_COLUMNS = 3  # columns per figure of a trend; if there are more, only all records are drawn
_MAX_EXAMPLES = 12
_BLANK = ", blank image"  # after the name of a method
_EXPLANATION = (
    "The content of every phantom is known, so that each claim of a rationale (technique, anatomy, grade, finding, "
    "location, modality) can be checked. False: share of all claims that are not true of the image. Any false: share "
    "of rationales with at least one false claim. Contradicts: share that names another value than the predicted one, "
    "among rationales that name the attribute in question. Correct, wrong reason: share whose rationale names a wrong "
    "value, among correct answers. Wrong, correct reason: share whose rationale names only the correct value, among "
    "wrong answers. Intervals: bootstrap over images; seeds are pooled."
)
_TITLES = (
    *("", "", "n", "accuracy", "false", "any false", "contradicts"),
    *("correct,\nwrong reason", "wrong,\ncorrect reason"),
)

T = TypeVar("T")
Groups = Mapping[tuple[str, str], list[Prediction]]  # by row and method


def selection_section(choices: Sequence[Choice], metric: str, unfinished: int) -> Section:
    """Which settings were chosen by a validation metric, and the metric of the others.

    ``unfinished``: number of runs without one.
    """
    best = "largest" if greater_is_better(metric) else "smallest"
    sentences = [
        f"The settings were chosen by the {best} {metric}, the mean over seeds; the tables show the chosen runs alone."
    ]
    if unfinished:
        sentences.append(f"{unfinished} runs of the sweep are not finished and do not count.")
    rows: list[tuple[str, ...]] = []
    for choice in choices:
        cell = ", ".join(f"{axis_label(axis)} {label(value)}" for axis, value in choice.cell.items()) or "all"
        chosen = ", ".join(f"{axis}={value}" for axis, value in choice.chosen.settings.items())
        missing = len(choice.incomplete)
        others = f" {missing} settings were not compared, because seeds are missing." if missing else ""
        sentences.append(f"{cell}: {chosen} ({metric} {choice.chosen.value:.3f}).{others}")
        marked = [(option, "chosen" if option is choice.chosen else "") for option in choice.options]
        marked += [(option, "not compared: seeds missing") for option in choice.incomplete]
        for option, mark in marked:
            settings = ", ".join(f"{axis}={value}" for axis, value in option.settings.items())
            rows.append((cell, settings, f"{option.value:.3f}", str(len(option.runs)), mark))
    table = ResultTable(("", "settings", metric, "runs", ""), tuple(rows), ())
    return Section("Chosen settings", sentences, tables=[(f"All settings, by {metric}", table)])


def search_section(
    trials: Mapping[Cell, Sequence[Trial]], choices: Sequence[Choice], metric: str, searched: Mapping[str, str]
) -> Section:
    """What a search has tried, what it has found, and what may be quoted of it.

    Args:
        choices: the best trial of each cell that has finished one.
        searched: the ranges of the settings by axis.
    """
    maximize = greater_is_better(metric)
    found = {tuple(choice.cell.items()): choice for choice in choices}
    names = {cell: ", ".join(label(value) for _, value in cell) for cell in trials}
    ranges = "; ".join(f"{axis}={text}" for axis, text in searched.items())
    sentences = [
        f"This sweep was a search: Optuna's TPE sampler chose {ranges} by the {'largest' if maximize else 'smallest'} "
        f"{metric}, the mean over seeds."
    ]
    tables: list[tuple[str, ResultTable]] = []
    history: dict[str, dict[int, float]] = {}
    for cell, own in trials.items():
        choice = found.get(cell)
        prefix = f"{names[cell]}: " if names[cell] else ""
        rows: list[tuple[str, ...]] = []
        for number, trial in enumerate(own, 1):
            state = str(trial.state)
            if choice and trial.settings == choice.chosen.settings:
                state = "best"
                settings = ", ".join(f"{axis}={value}" for axis, value in trial.settings.items())
                equal = sum(other.value == trial.value for other in own if choice.has_compared(other.settings))
                which = f"the first of {equal} best ones" if equal > 1 else "the best"
                best = f"{settings} ({choice.chosen.value:.3f})"
                sentences.append(f"{prefix}Trial {number} of {len(own)} is {which}: {best}.")
            elif choice and trial.value is not None and not choice.has_compared(trial.settings):
                state = "not compared: seeds missing"
            value = "" if trial.value is None else f"{trial.value:.3f}"
            rows.append((str(number), *trial.settings.values(), value, state))
        if choice is None:
            sentences.append(f"{prefix}None of {len(own)} trials has finished.")
        titles = ("trial", *map(axis_label, searched), metric, "")
        tables.append((f"Trials{' of ' if names[cell] else ''}{names[cell]}", ResultTable(titles, tuple(rows), ())))
        history[names[cell] or metric] = {n: t.value for n, t in enumerate(own, 1) if t.value is not None}
    sentences.append(
        "Tables and figures show the test accuracy of the best trial alone. Only that may be quoted as selected on "
        "validation; the test records took no part in the search."
    )
    caption = f"{metric} of each trial, and as a line the best so far."
    figure = SectionFigure("search", search_history(history, metric, maximize=maximize), caption)
    return Section("Search", sentences, [figure], tables)


def trend_section(tables: SweepTables) -> Section | None:
    """Accuracy against the row axis, with a line for each method and column. None unless rows are numbers."""
    numbers = {row for matrix in tables.matrices for row in matrix.rows if _is_number(row)}
    if tables.row_axis in AXES or len(numbers) < 2:
        return None
    series: dict[str, list[tuple[str | float, Estimate]]] = {}
    for matrix in tables.matrices:
        for column in matrix.columns if 0 < len(matrix.columns) <= _MAX_COLUMNS else (ALL,):
            series[f"{label(matrix.method)}, {label(column)}"] = [
                (float(row), matrix.cells[row][column].accuracy)
                for row in sorted(filter(_is_number, matrix.rows), key=float)
                if column in matrix.cells[row]
            ]
    axis = axis_label(tables.row_axis)
    title = f"Accuracy against {axis}"
    figure = rates(series, row_title(tables.row_axis), "Accuracy")
    return Section(title, figures=[SectionFigure("trend", figure, f"{title}. Bands: 95 % intervals.")])


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def rationale_section(
    runs: Sequence[SweepRun], records: Mapping[str, Record], size: int, row_axis: str
) -> Section | None:
    """Rates and examples of rationales for each row: base, each method, and the trained model with a blank image.

    Args:
        records: the test records by id, all phantoms.
        size: side of the gallery's images in pixels.

    Returns:
        None if all predictions are No-Think.
    """
    groups = {key: g for key, g in _groups(runs, row_axis).items() if g[0].reasoning != ReasoningMode.NO_THINK}
    if not groups:
        return None
    found = {key: rationale_rates(predictions, records) for key, predictions in groups.items()}
    trained = {k: g for k, g in groups.items() if not is_base(k[1]) and not k[1].endswith(_BLANK)}
    per_group = max(1, _MAX_EXAMPLES // max(1, len(trained)))
    drawn = (  # a rate has no value without a claim or an answer that can be read
        (
            "rationales_false",
            _series(found, lambda rate: rate.false_share),
            "False claims",
            "Share of the claims in rationales that are not true of the image.",
        ),
        (
            "rationales_contradict",
            _series(found, lambda rate: rate.contradiction),
            "Rationales that contradict",
            "Share of rationales that name another value than the predicted one.",
        ),
    )
    return Section(
        title="Rationales",
        paragraphs=[_EXPLANATION],
        figures=[
            SectionFigure(name, rates(series, row_title(row_axis), title), caption)
            for name, series, title, caption in drawn
            if series
        ],
        tables=[
            (
                "Claims of rationales and agreement with the answer, in %",
                ResultTable(_TITLES, tuple((label(r), label(m), *_numbers(x)) for (r, m), x in found.items()), ()),
            )
        ],
        gallery=[
            _gallery_item(example, f"{label(row)}, {label(method)}", size)
            for (row, method), predictions in list(trained.items())[:: max(1, len(trained) // _MAX_EXAMPLES)]
            for example in select_examples(_one_seed(predictions), records, n=per_group)
        ],
    )


def _groups(runs: Sequence[SweepRun], row_axis: str) -> Groups:
    """The predictions of all seeds by row and method, with its own and a blank image, and the bases of each row."""
    bases: dict[tuple[str, str], list[Prediction]] = {}
    trained: dict[tuple[str, str], list[Prediction]] = {}
    blank: dict[tuple[str, str], list[Prediction]] = {}
    for run in runs:
        row, method = _place(run, row_axis)
        if Condition.BASE in run.predictions:
            bases.setdefault((row, method), run.predictions[Condition.BASE])
        if Condition.TRAINED in run.predictions:
            trained.setdefault((row, method), []).extend(run.predictions[Condition.TRAINED])
        if Condition.BLANK_IMAGE in run.predictions:
            blank.setdefault((row, f"{method}{_BLANK}"), []).extend(run.predictions[Condition.BLANK_IMAGE])
    return _by_row([row for row, _ in (*trained, *bases, *blank)], name_bases(bases), trained, blank)


def _by_row(rows: Iterable[str], *groups: Mapping[tuple[str, str], T]) -> dict[tuple[str, str], T]:
    """The entries of the groups, by row and name: row by row, and in a row in the order of the groups."""
    return {key: group[key] for row in dict.fromkeys(rows) for group in groups for key in group if key[0] == row}


def _place(run: SweepRun, row_axis: str) -> tuple[str, str]:
    """The row and the method of a run."""
    method = " ".join(value for axis, value in run.axes.items() if axis not in (row_axis, "seed")) or SINGLE_METHOD
    return run.axes.get(row_axis, ALL), method


def measure_section(runs: Sequence[SweepRun], row_axis: str) -> Section | None:
    """The further measures of each row: its bases, and each method with its seeds pooled. None without any.

    The reliability figure pools the rows if they are training data.
    """
    bases: dict[tuple[str, str], Measured] = {}
    trained: dict[tuple[str, str], Measured] = {}
    for run in runs:
        row, method = _place(run, row_axis)
        if Condition.BASE in run.measured:
            bases.setdefault((row, method), run.measured[Condition.BASE])
        if Condition.TRAINED in run.measured:
            trained[row, method] = trained.get((row, method), Measured()) + run.measured[Condition.TRAINED]
    pooled = _by_row([row for row, _ in (*bases, *trained)], name_bases(bases), trained)
    found = {key: measures for key, measured in pooled.items() if (measures := summarise_measures(measured))}
    if not found:
        return None
    panels: dict[str, list[OptionProbabilities]] = {}
    for (row, method), measured in pooled.items():
        name = method if row_axis in AXES else f"{method}, {row}"
        panels.setdefault(name, []).extend(measured.option_probabilities)
    calibrations = {name: c for name, lines in panels.items() if (c := calibrate(lines))}
    has_seeds = len({run.axes.get("seed") for run in runs}) > 1
    pooled_seeds = "; the seeds are pooled, and intervals do not cover them" if has_seeds else ""
    return Section(
        title="Further measures",
        figures=[SectionFigure("reliability", reliability(calibrations), RELIABILITY)] if calibrations else [],
        tables=[(f"Samples, rotated options and calibration{pooled_seeds}", measure_rows(found))],
    )


def _one_seed(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The predictions of the first of several pooled runs."""
    return list({line.record: line for line in reversed(predictions)}.values())


def _series(
    found: Mapping[tuple[str, str], RationaleRates], pick: Callable[[RationaleRates], Estimate | None]
) -> dict[str, list[tuple[str | float, Estimate]]]:
    series: dict[str, list[tuple[str | float, Estimate]]] = {}
    for (row, method), rate in found.items():
        if (estimate := pick(rate)) is not None:
            series.setdefault(method, []).append((row, estimate))
    return series


def _numbers(rate: RationaleRates) -> Iterator[str]:
    yield f"{rate.with_rationale:,}"
    estimates = (rate.accuracy, rate.false_share, rate.any_false, rate.contradiction)
    for estimate in (*estimates, rate.correct_but_wrong_reason, rate.wrong_but_correct_reason):
        yield with_interval(estimate) if estimate else ""


def _gallery_item(example: CheckedRationale, name: str, size: int) -> GalleryItem:
    spans, end = [], 0
    for claim in example.claims:
        spans.append(Span(example.rationale[end : claim.start]))
        verdict = Verdict.TRUE if claim.true else Verdict.FALSE
        spans.append(Span(example.rationale[claim.start : claim.end], verdict))
        end = claim.end
    spans.append(Span(example.rationale[end:]))
    record = example.record
    judged = "correct" if example.prediction.correct else f"wrong, the correct answer is {record.answer_text}"
    caption = f"{name}. {record.question} Answer: {example.predicted_text} ({judged})."
    (image,) = record.images  # rationales are checked of phantoms only
    return GalleryItem(image.load(size), spans, caption)
