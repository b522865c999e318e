"""Tables of the further measures: of a run, with a column for each model, and of a sweep, with a row for each."""

from __future__ import annotations

from collections.abc import Mapping

from medr1.evaluation.calibration import Calibration
from medr1.evaluation.circular import CircularSummary
from medr1.evaluation.measures import Measures
from medr1.evaluation.pass_at_k import SampleSummary
from medr1.evaluation.statistics import Estimate
from medr1.reporting.formatting import label, percent, with_interval
from medr1.reporting.result_table import ABSENT, ResultTable

_ROTATED, _PROBABILITIES = "Rotated options", "Probabilities of the options"
_TITLES = {"circular_accuracy": "correct in all rotations", "mean_accuracy": "mean accuracy"}
_SAMPLES_NOTE = (
    "pass@k: at least one of k samples is correct. maj@k: the majority vote of k samples is, ties shared. Means over "
    "all subsets of k samples."
)
_NOTES = {
    _ROTATED: (
        "Rotated options: every question with each rotation of its options. Consistency: the same option in all "
        "rotations. Letter bias: 0 if all letters are chosen equally often, 100 if it is always the same one."
    ),
    _PROBABILITIES: (
        "Probabilities: of the letters where the greedy completion has its answer. Calibration error: ECE in 15 bins. "
        "Brier score: from 0 to 200."
    ),
}


def render_measures(measures: Mapping[str, Measures], differences: Mapping[str, Estimate] | None = None) -> ResultTable:
    """All measures side by side in percent, with cluster bootstrap intervals, at most 100 columns wide.

    Args:
        measures: by name of the model.
        differences: by name of the measure; adds a column, normally trained minus base.
    """
    columns = {name: dict(_sections(of_model)) for name, of_model in measures.items()}
    shown = {_TITLES.get(name, name): with_interval(estimate, "+") for name, estimate in (differences or {}).items()}
    rows: list[tuple[str, ...]] = []
    titles = list(dict.fromkeys(title for sections in columns.values() for title in sections))
    for title in titles:
        parts = [sections.get(title, {}) for sections in columns.values()]
        rows.append((title,))
        names = dict.fromkeys(name for part in parts for name in part)
        beside = [shown] if differences else []
        rows += [(name, *(part.get(name, ABSENT) for part in (*parts, *beside))) for name in names]
    notes = [_NOTES.get(title, _SAMPLES_NOTE) for title in titles]
    heads = ("", *(f"{label(name)}\n[95 %]" for name in columns), *(["difference\n[95 %]"] if differences else []))
    return ResultTable(heads, tuple(rows), ("In %.", *dict.fromkeys(notes)))


def measure_rows(measures: Mapping[tuple[str, str], Measures]) -> ResultTable:
    """The main measures of many models, a row for each. ``measures``: by two names of the model."""
    rows = {names: _main(of_model) for names, of_model in measures.items()}
    titles = list(dict.fromkeys(title for row in rows.values() for title in row))
    cells = ((*map(label, names), *(row.get(title, ABSENT) for title in titles)) for names, row in rows.items())
    notes = {_SAMPLES_NOTE: "samples", _NOTES[_ROTATED]: "circular", _NOTES[_PROBABILITIES]: "calibration"}
    shown = [note for note, part in notes.items() if any(getattr(m, part) for m in measures.values())]
    return ResultTable(("", "", *titles), tuple(cells), ("In %, with 95 % intervals.", *shown))


def _main(measures: Measures) -> dict[str, str]:
    """One row of many models: pass@k and maj@k for the largest k only."""
    row: dict[str, str] = {}
    if samples := measures.samples:
        k = max(samples.pass_at_k)
        row |= {f"pass@{k}": with_interval(samples.pass_at_k[k]), f"maj@{k}": with_interval(samples.maj_at_k[k])}
    if measures.circular:
        names = (_TITLES["circular_accuracy"], "consistency", "letter bias")
        row |= {name: text for name, text in _circular(measures.circular).items() if name in names}
    if measures.calibration:
        names = ("accuracy of the most probable", "calibration error", "Brier score")
        row |= {name: text for name, text in _calibration(measures.calibration).items() if name in names}
    return row


def _sections(measures: Measures) -> list[tuple[str, dict[str, str]]]:
    """Names and values of each section of a model's column."""
    sections = []
    if measures.samples:
        sections.append((f"{measures.samples.num_generations} samples", _samples(measures.samples)))
    if measures.circular:
        sections.append((_ROTATED, _circular(measures.circular)))
    if measures.calibration:
        sections.append((_PROBABILITIES, _calibration(measures.calibration)))
    return sections


def _samples(samples: SampleSummary) -> dict[str, str]:
    chance = samples.pass_at_k_chance
    return {
        **{f"pass@{k}": with_interval(estimate) for k, estimate in samples.pass_at_k.items()},
        **{f"pass@{k} of guesses": percent(chance[k]) for k in chance},
        **{f"maj@{k}": with_interval(estimate) for k, estimate in samples.maj_at_k.items()},
    }


def _circular(circular: CircularSummary) -> dict[str, str]:
    return {
        _TITLES["circular_accuracy"]: with_interval(circular.circular_accuracy),
        _TITLES["mean_accuracy"]: with_interval(circular.mean_accuracy),
        "consistency": with_interval(circular.consistency),
        "letter bias": with_interval(circular.letter_bias) if circular.letter_bias else ABSENT,
        **{f"answers {letter}": percent(share) for letter, share in circular.letters.items()},
    }


def _calibration(calibration: Calibration) -> dict[str, str]:
    return {
        "accuracy of the most probable": with_interval(calibration.accuracy),
        "mean confidence": percent(calibration.confidence),
        "calibration error": with_interval(calibration.expected_calibration_error),
        "Brier score": with_interval(calibration.brier_score),
        "records with probabilities": f"{calibration.n} of {calibration.n + calibration.without}",
    }
