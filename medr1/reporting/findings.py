"""Sentences that summarise a run, or the tables of a sweep: gains over the base, contrasts, generalization, controls.

No sentence claims more than its 95 % interval supports. A control scores below an accuracy only if the interval of the
difference, paired by record, lies above zero. A difference whose interval contains zero, or is a point, is called
inconclusive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from statistics import fmean

from medr1.evaluation.bootstrap import paired_difference
from medr1.evaluation.metrics import Comparison, Summary
from medr1.evaluation.predictions import Condition, Prediction
from medr1.evaluation.statistics import Estimate, PairedDifference, wilson
from medr1.evaluation.sweep_tables import ALL, SINGLE_METHOD, ContrastMatrix, Matrix, SweepTables, TableCell
from medr1.reporting.formatting import axis_label, interval, label, percent, with_interval

_ALPHA = 0.05
_LIST_LENGTH = 6  # items of a list that are spelt out
_ALL_OF = {"modality": "all modalities", "question_type": "all question types"}
_BLIND_BASELINES = {Condition.OPTION_PRIOR: "The option prior", Condition.SURFACE_CUES: "A rule on surface cues"}


@dataclass(frozen=True, slots=True)
class _Ablation:
    """What follows from the accuracy with an ablated image: not shown to be lower, or lower but above chance."""

    lead: str
    unchanged: str
    reduced: str


_AT_CHANCE = "not significantly above chance"  # which does not show that nothing is left


_ABLATIONS = {
    Condition.BLANK_IMAGE: _Ablation(
        lead="With a blank image",
        unchanged="no evidence that the model uses the image",
        reduced="the accuracy that remains above chance does not come from the image",
    ),
    Condition.SHUFFLED_IMAGE: _Ablation(
        lead="With the image of another record (of the same modality if possible)",
        unchanged="no evidence that the model uses more of the image than its modality",
        reduced="the accuracy that remains above chance does not depend on the record's own image",
    ),
}


@dataclass(frozen=True, slots=True)
class _Subject:
    """An accuracy that controls may explain.

    ``n``: effective number of independent records of each control. ``margins``: the accuracy minus that of a control.
    """

    name: str
    accuracy: Estimate
    chance: float
    n: Mapping[str, float]
    controls: Mapping[str, float]
    margins: Mapping[str, Estimate]

    def beats_chance(self, control: str) -> bool:
        return wilson(self.controls[control], self.n[control]).low > self.chance

    def beside(self, name: str, value: float) -> str:
        return f"{self.name} ({_rate(self.accuracy)}, {name} {percent(value)} %)"


def findings(tables: SweepTables) -> tuple[str, ...]:
    """The sentences of a report, in percent and percentage points, with 95 % intervals in brackets."""
    matrices, row_axis = tables.matrices, tables.row_axis
    subjects = [subject for matrix in matrices for subject in _subjects(matrix, row_axis)]
    # The effect of two changed settings cannot be attributed to one of them.
    contrasts = [contrast for contrast in tables.contrasts if contrast.changed == 1]
    return (
        *_baseline_findings(subjects),
        *_ablation_findings(subjects),
        *(sentence for matrix in matrices for sentence in _gain_findings(matrix, row_axis)),
        *_contrast_findings(contrasts),
        *(sentence for matrix in matrices for sentence in _gap_findings(matrix, row_axis, tables.column_axis)),
        *_contrast_gap_findings(contrasts),
        *_seed_findings(matrices),
    )


def verdict(tables: SweepTables) -> tuple[str, ...]:
    """The findings that a reader needs first, at most three: a gain, a contrast, and what the controls say."""
    matrices, row_axis = tables.matrices, tables.row_axis
    subjects = [subject for matrix in matrices for subject in _subjects(matrix, row_axis)]
    kinds: tuple[Iterator[str], ...] = (
        (sentence for matrix in matrices for sentence in _gain_findings(matrix, row_axis)),
        _contrast_findings([contrast for contrast in tables.contrasts if contrast.changed == 1]),
        chain(_ablation_findings(subjects), _baseline_findings(subjects)),
    )
    return tuple(sentence for kind in kinds for sentence in islice(kind, 1))


def run_verdict(
    summaries: Mapping[str, Summary],
    comparison: Comparison | None,
    conditions: Mapping[str, Sequence[Prediction]],
    is_trained_on: Callable[[Prediction], bool],
) -> tuple[str, ...]:
    """What a reader of a single run needs first: its accuracy and gain, the gain on what it was trained on and on the
    rest, and what the image is worth.

    Args:
        summaries, conditions: metrics and predictions by condition, all on the same records in any order.
        comparison: trained against base, if both are there.
        is_trained_on: whether a record is like the training records. Nothing is said if this holds for all or none.
    """
    main = next((c for c in (Condition.TRAINED, Condition.BASE) if c in summaries), None)
    if main is None:
        return ()
    lines = {name: {line.record: line for line in of} for name, of in conditions.items()}
    records, found, sentences = list(lines[main].values()), summaries[main].overall, list[str]()
    model = "trained" if main == Condition.TRAINED else "base"
    score = f"The {model} model scores {_rate(found.accuracy)} on {found.n:,} test questions"
    if comparison:
        base = lines[Condition.BASE]
        rate = percent(summaries[Condition.BASE].overall.accuracy.value)
        sentences.append(f"{score}, the base model {rate} %: {_gain(comparison.overall.difference)}.")
        own = [line for line in records if is_trained_on(line)]
        others = [line for line in records if not is_trained_on(line)]
        if own and others:
            gain, elsewhere = (_gain(_difference(base, part)) for part in (own, others))
            sentences.append(f"On the kind of questions that it was trained on: {gain}; on the others: {elsewhere}.")
    else:
        sentences.append(f"{score}; chance is {percent(found.chance)} %.")
    if Condition.BLANK_IMAGE in summaries:
        rate = percent(summaries[Condition.BLANK_IMAGE].overall.accuracy.value)
        gain = _gain(_difference(lines[Condition.BLANK_IMAGE], records))
        sentences.append(f"With a blank image it scores {rate} %; the image adds {gain}.")
    return tuple(sentences)


def _is_above(margin: Estimate) -> bool:
    return margin.value > 0 and not margin.is_inconclusive


def _difference(before: Mapping[str, Prediction], after: Sequence[Prediction]) -> Estimate:
    """The accuracy of ``after`` minus that of ``before``, given by record, on the records of ``after``."""
    correct = [before[line.record].correct for line in after]
    return paired_difference(correct, [line.correct for line in after], [line.cluster for line in after])


def _gain(difference: Estimate) -> str:
    return f"{with_interval(difference, '+')} points" + " (inconclusive)" * difference.is_inconclusive


def _subjects(matrix: Matrix, row_axis: str) -> Iterator[_Subject]:
    """The diagonal as one, and rows that are not columns by their accuracy on all records."""
    own = {row: matrix.cells[row][row] for row in matrix.rows if row in matrix.columns}
    if matrix.generalization:
        found = matrix.generalization
        yield _subject(f"the diagonal of {label(matrix.method)}", found.diagonal, list(own.values()), found.margins)
    else:
        for row, cell in own.items():
            yield _subject(f"{label(matrix.method)} on {label(row)}", cell.accuracy, [cell], cell.margins)
    for row in matrix.rows:
        if row not in own:
            cell = matrix.cells[row][ALL]
            yield _subject(_row_name(matrix, row_axis, row), cell.accuracy, [cell], cell.margins)


def _subject(name: str, accuracy: Estimate, cells: Sequence[TableCell], margins: Mapping[str, Estimate]) -> _Subject:
    return _Subject(
        name=name,
        accuracy=accuracy,
        chance=fmean(cell.chance for cell in cells),
        # The mean over unequal cells has the variance of this many records in equal cells.
        n={c: len(cells) ** 2 / sum(1 / cell.effective_n[c] for cell in cells) for c in margins},
        controls={condition: fmean(cell.controls[condition] for cell in cells) for condition in margins},
        margins=margins,
    )


def _baseline_findings(subjects: Sequence[_Subject]) -> Iterator[str]:
    at_chance = [s for s in subjects if s.accuracy.low <= s.chance]
    if at_chance:
        yield f"Not significantly above chance: {_join(s.beside('chance', s.chance) for s in at_chance)}."
    above = [s for s in subjects if s.accuracy.low > s.chance]
    for control, baseline in _BLIND_BASELINES.items():
        lead, name = f"{baseline}, which sees no image,", control.replace("_", " ")
        better = [s for s in at_chance if control in s.controls and s.beats_chance(control)]
        compared = [s for s in above if control in s.controls]
        below = [s for s in compared if _is_above(s.margins[control])]
        reached = [s for s in compared if not _is_above(s.margins[control])]
        for part, verb, claim in (
            (better, "scores above", ": a high accuracy there would not show that the model uses the image"),
            (
                reached,
                "does not score significantly below",
                ": this accuracy does not show that the model uses the image",
            ),
            (below, "scores below", ""),
        ):
            if part:
                yield f"{lead} {verb} {_join(s.beside(name, s.controls[control]) for s in part)}{claim}."


def _ablation_findings(subjects: Sequence[_Subject]) -> Iterator[str]:
    above = [s for s in subjects if s.accuracy.low > s.chance]
    for condition, ablation in _ABLATIONS.items():
        by_claim: dict[str, list[str]] = {ablation.unchanged: [], ablation.reduced: [], _AT_CHANCE: []}
        for s in (s for s in above if condition in s.controls):
            text = f"{percent(s.controls[condition])} %"
            if not _is_above(s.margins[condition]):
                by_claim[ablation.unchanged].append(
                    f"{s.name} scores {text}, with its own image {_rate(s.accuracy)} "
                    f"({with_interval(s.margins[condition], '+')} points)"
                )
            else:
                claim = ablation.reduced if s.beats_chance(condition) else _AT_CHANCE
                by_claim[claim].append(
                    f"{s.name} drops from {percent(s.accuracy.value)} % to {text} (chance {percent(s.chance)} %)"
                )
        yield from (f"{ablation.lead}, {_join(items)}: {claim}." for claim, items in by_claim.items() if items)


def _gain_findings(matrix: Matrix, row_axis: str) -> Iterator[str]:
    cells = [(row, column, matrix.cells[row][column]) for row in matrix.rows for column in matrix.columns or (ALL,)]
    gains = [cell.gain_over_base for _, _, cell in cells if cell.gain_over_base]
    if not gains:
        return
    if (found := matrix.generalization) and len(gains) == len(cells):
        bases = [(row, column, cell.base) for row, column, cell in cells if cell.base is not None]
        own = fmean(base for row, column, base in bases if row == column)
        rest = fmean(base for row, column, base in bases if row in matrix.columns and row != column)
        yield (
            f"On the diagonal {label(matrix.method)} scores {_rate(found.diagonal)}, the base model {percent(own)} %; "
            f"off the diagonal {_rate(found.off_diagonal)}, the base model {percent(rest)} %."
        )
    else:
        differences = {row: t.difference for row in matrix.rows if (t := matrix.cells[row][ALL].gain_over_base)}
        items = [
            f"{_row_name(matrix, row_axis, row)} {with_interval(d, '+')}" + " (inconclusive)" * d.is_inconclusive
            for row, d in differences.items()
        ]
        yield f"Gain over the base model on all test records, in points: {_join(items)}."
    yield f"{label(matrix.method)} is {_significant(gains, 'the base model')}; the other cells are inconclusive."


def _contrast_findings(contrasts: Sequence[ContrastMatrix]) -> Iterator[str]:
    for contrast in contrasts:
        if not contrast.overall.is_inconclusive:
            a, b = _side(contrast.a), _side(contrast.b)
            cells = [contrast.cells[row][column] for row in contrast.rows for column in contrast.columns or (ALL,)]
            yield (
                f"Over all cells {b} scores {_points(contrast.overall, 'more', 'less')} than {a}; it is "
                f"{_significant(cells, a)}."
            )
    if items := [f"{_against(c)} {with_interval(c.overall, '+')}" for c in contrasts if c.overall.is_inconclusive]:
        yield f"Inconclusive over all cells, in points: {_join(items)}."


def _gap_findings(matrix: Matrix, row_axis: str, column_axis: str) -> Iterator[str]:
    if found := matrix.generalization:
        if found.gap.is_inconclusive:
            yield (
                f"{label(matrix.method)} has no significant gap between the diagonal ({_rate(found.diagonal)}) and the "
                f"other cells ({_rate(found.off_diagonal)}): {with_interval(found.gap, '+')} points."
            )
        else:
            yield (
                f"Off the diagonal {label(matrix.method)} scores {_points(found.gap, 'less', 'more')} than on it "
                f"({percent(found.off_diagonal.value)} % against {percent(found.diagonal.value)} %)."
            )
    if column_axis == "scanner" and len(matrix.columns) == 2:
        yield from _scanner_findings(matrix, row_axis)


def _scanner_findings(matrix: Matrix, row_axis: str) -> Iterator[str]:
    seen, held_out = matrix.columns
    verdicts: dict[str, list[str]] = {"Lower": [], "Higher": [], "Inconclusive": []}
    for row in matrix.rows:
        inside, outside = matrix.cells[row][seen].accuracy, matrix.cells[row][held_out].accuracy
        # Disjoint intervals are a conservative test of two accuracies on different images.
        verdict = "Lower" if outside.high < inside.low else "Higher" if outside.low > inside.high else "Inconclusive"
        verdicts[verdict].append(f"{_row_name(matrix, row_axis, row)} {_rate(outside)} against {_rate(inside)}")
    for verdict, items in verdicts.items():
        if items:
            yield f"{verdict} on the {held_out} against the {seen}: {_join(items)}."


def _contrast_gap_findings(contrasts: Sequence[ContrastMatrix]) -> Iterator[str]:
    inconclusive = []
    for contrast in contrasts:
        if contrast.generalization is None:
            continue
        a, b = _side(contrast.a), _side(contrast.b)
        gap, rest = contrast.generalization.gap, contrast.generalization.off_diagonal
        if gap.is_inconclusive:
            differences = f"gap {with_interval(gap, '+')}, off the diagonal {with_interval(rest, '+')}"
            inconclusive.append(f"{_against(contrast)} {differences}")
            continue
        changed = _points(gap, "larger", "smaller")
        verdict, more = ("better", "more") if gap.value < 0 else ("worse", "less")
        # A model that learned nothing has no gap either, so that the accuracy off the diagonal must differ as well.
        if rest.is_inconclusive or (rest.value > 0) != (gap.value < 0):
            yield (
                f"The gap of {b} between the diagonal and the other cells is {changed} than that of {a}, but off the "
                f"diagonal {b} does not score significantly {more} ({with_interval(rest, '+')} points): not shown to "
                f"generalize {verdict}."
            )
        else:
            yield (
                f"{b} generalizes {verdict} than {a}: off the diagonal it scores {_points(rest, 'more', 'less')}, and "
                f"its gap between the diagonal and the other cells is {changed}."
            )
    if inconclusive:
        yield f"Inconclusive which method has the smaller gap (differences in points): {_join(inconclusive)}."


def _seed_findings(matrices: Sequence[Matrix]) -> Iterator[str]:
    single = sum(len(matrix.cells[row][ALL].runs) == 1 for matrix in matrices for row in matrix.rows)
    if single:
        yield (
            f"{single} of {sum(len(matrix.rows) for matrix in matrices)} rows have a single run: their intervals cover "
            "the choice of test records, but not the variation between training runs."
        )


def _row_name(matrix: Matrix, row_axis: str, row: str) -> str:
    name = _ALL_OF[row_axis] if row == ALL and row_axis in _ALL_OF else f"{axis_label(row_axis)} {label(row)}"
    return name if matrix.method == SINGLE_METHOD else f"{label(matrix.method)} ({name})"


def _side(name: str) -> str:
    return label(name.removeprefix(f"{SINGLE_METHOD}: "))


def _against(contrast: ContrastMatrix) -> str:
    return f"{_side(contrast.b)} against {_side(contrast.a)}"


def _join(items: Iterable[str]) -> str:
    listed = list(items)
    rest = len(listed) - _LIST_LENGTH
    return "; ".join(listed[:_LIST_LENGTH]) + (f"; and {rest} more" if rest > 0 else "")


def _significant(cells: Sequence[PairedDifference], reference: str) -> str:
    """Counts cells by sign, if both the corrected test and the interval, which accounts for shared images, agree."""
    sure = [c.difference.value for c in cells if c.p_holm < _ALPHA and not c.difference.is_inconclusive]
    above, below = sum(value > 0 for value in sure), sum(value < 0 for value in sure)
    return (
        f"significantly above {reference} in {above} of {len(cells)} cells and below it in {below} (5 % level after "
        "Holm's correction)"
    )


def _points(difference: Estimate, more: str, less: str) -> str:
    """A significant difference without its sign, such as "3.1 points [2.0, 4.2] more"."""
    d, word = difference, more
    if d.value < 0:
        d, word = Estimate(-d.value, -d.high, -d.low), less
    return f"{percent(d.value)} points {interval(d)} {word}"


def _rate(estimate: Estimate) -> str:
    return f"{percent(estimate.value)} % {interval(estimate)}"
