"""What the tables of a sweep imply, as whole sentences: first the controls, then gains, then what generalizes.

A sentence claims no more than its interval: a control explains a score only from within or above the interval of that
score, and a difference whose interval contains zero is called open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from medr1.evaluation.predictions import Condition
from medr1.evaluation.statistics import wilson
from medr1.evaluation.tables import ALL, ContrastMatrix, Estimate, Matrix, TableCell, Versus

# Controls that see no image at all: their lead, and their short name beside a number.
_BLIND = {
    Condition.OPTION_PRIOR: ("the option prior of the same training records", "prior"),
    Condition.SURFACE_CUES: ("the rule that looks only at capitals and full stops of the options", "cues"),
}
_ALPHA = 0.05
_NAMED = 6  # items of a list that are spelt out
SINGLE_METHOD = "trained"  # the method where a sweep varies nothing but rows and seeds


@dataclass(frozen=True, slots=True)
class _OtherPicture:
    """The model with a picture that says nothing about the question, and what follows from its score."""

    lead: str
    same: str  # as good as with the record's own picture
    kept: str  # worse, and better than a guess
    lost: str  # no better than a guess


_OTHER_PICTURE = {
    Condition.BLANK_IMAGE: _OtherPicture(
        lead="With an empty picture",
        same="nothing shows that the image was used",
        kept="what is kept above a guess does not come from the image",
        # A model may fail on an empty picture merely because it never met one, so that nothing more follows.
        lost="not shown to be better than a guess",
    ),
    Condition.SHUFFLED_IMAGE: _OtherPicture(
        lead="With another record's picture of the same modality",
        same="nothing shows that more than the modality was seen",
        kept="what is kept above a guess does not need the record's own picture",
        lost="what is scored above a guess comes from the record's own picture",
    ),
}


@dataclass(frozen=True, slots=True)
class _Subject:
    """A score that controls may explain; ``n`` independent records would carry as much as those behind it."""

    name: str
    accuracy: Estimate
    chance: float
    n: int
    controls: Mapping[str, float]


def findings(
    matrices: Sequence[Matrix], contrasts: Sequence[ContrastMatrix], row_axis: str, column_axis: str
) -> tuple[str, ...]:
    """Sentences for the top of a report, in percent and percentage points, with 95 % intervals in brackets."""
    subjects = [subject for matrix in matrices for subject in _subjects(matrix, row_axis)]
    # Of a contrast that changes two settings nobody can say which of them did it.
    single = [contrast for contrast in contrasts if _one_change(contrast)]
    return (
        *_control_findings(subjects),
        *(sentence for matrix in matrices for sentence in _gain_findings(matrix, row_axis)),
        *_contrast_findings(single),
        *(sentence for matrix in matrices for sentence in _gap_findings(matrix, row_axis, column_axis)),
        *_contrast_gap_findings(single),
        *_seed_findings(matrices),
    )


def _subjects(matrix: Matrix, row_axis: str) -> Iterator[_Subject]:
    own = {row: matrix.cells[row][row] for row in matrix.rows if row in matrix.columns}
    if matrix.generalization:
        yield _subject(f"the diagonal of {matrix.method}", matrix.generalization.diagonal, list(own.values()))
    else:
        for row, cell in own.items():
            yield _subject(f"{matrix.method} on {row}", cell.accuracy, [cell])
    for row in matrix.rows:
        if row not in own:
            cell = matrix.cells[row][ALL]
            yield _subject(_named(matrix.method, row_axis, row), cell.accuracy, [cell])


def _subject(name: str, accuracy: Estimate, cells: Sequence[TableCell]) -> _Subject:
    shared = [c for c in cells[0].controls if all(c in cell.controls for cell in cells)]
    return _Subject(
        name=name,
        accuracy=accuracy,
        chance=_mean(cell.chance for cell in cells),
        # Cells of unequal size with equal weight: as uncertain as so many records in cells of one size.
        n=round(len(cells) ** 2 / sum(1 / cell.n for cell in cells)),
        controls={condition: _mean(cell.controls[condition] for cell in cells) for condition in shared},
    )


def _control_findings(subjects: Sequence[_Subject]) -> Iterator[str]:
    guesses = [s for s in subjects if s.accuracy.low <= s.chance]
    if guesses:
        items = [f"{s.name} ({_interval(s.accuracy)}, guess {_percent(s.chance)})" for s in guesses]
        yield f"Not shown to be better than a guess: {_listed(items)}."
    better = [s for s in subjects if s.accuracy.low > s.chance]
    for condition, (lead, short) in _BLIND.items():
        alone = [s for s in guesses if condition in s.controls and _beats_a_guess(s.controls[condition], s)]
        if alone:
            yield (
                f"Without the image, {lead} does better than {_listed(_beside(alone, condition, short))}: a high score "
                "there would be no evidence that the image was used."
            )
        asked = [s for s in better if condition in s.controls]
        reached = [s for s in asked if s.controls[condition] >= s.accuracy.low]
        below = [s for s in asked if s.controls[condition] < s.accuracy.low]
        if reached:
            yield (
                f"Without the image, {lead} reaches {_listed(_beside(reached, condition, short))}: such a score is no "
                "evidence that the image was used."
            )
        if below:
            yield f"Without the image, {lead} stays below {_listed(_beside(below, condition, short))}."
    for condition, says in _OTHER_PICTURE.items():
        yield from _other_picture([s for s in better if condition in s.controls], condition, says)


def _beats_a_guess(accuracy: float, subject: _Subject) -> bool:
    return wilson(round(accuracy * subject.n), subject.n).low > subject.chance


def _other_picture(asked: Sequence[_Subject], condition: str, says: _OtherPicture) -> Iterator[str]:
    same, kept, lost = [], [], []
    for s in asked:
        value = s.controls[condition]
        if value >= s.accuracy.low:
            same.append(f"{s.name} scores {_percent(value)}, with its own {_interval(s.accuracy)}")
        elif wilson(round(value * s.n), s.n).low > s.chance:
            kept.append(
                f"{s.name} keeps {_percent(value)} of {_percent(s.accuracy.value)} (guess {_percent(s.chance)})"
            )
        else:
            lost.append(
                f"{s.name} falls from {_percent(s.accuracy.value)} to {_percent(value)} (guess {_percent(s.chance)})"
            )
    for items, implied in ((same, says.same), (kept, says.kept), (lost, says.lost)):
        if items:
            yield f"{says.lead} {_listed(items)}: {implied}."


def _gain_findings(matrix: Matrix, row_axis: str) -> Iterator[str]:
    cells = [(row, column, matrix.cells[row][column]) for row in matrix.rows for column in matrix.columns]
    gains = [cell.gain for _, _, cell in cells if cell.gain]
    if not gains:
        return
    if (found := matrix.generalization) and len(gains) == len(cells):
        bases = [(row, column, cell.base) for row, column, cell in cells if cell.base is not None]
        own = _mean(base for row, column, base in bases if row == column)
        rest = _mean(base for row, column, base in bases if row in matrix.columns and row != column)
        yield (
            f"On the diagonal {matrix.method} scores {_interval(found.diagonal)}, the base model {_percent(own)}; off "
            f"the diagonal {_interval(found.off_diagonal)}, the base model {_percent(rest)}."
        )
    else:
        of_all = [(row, gain.difference) for row in matrix.rows if (gain := matrix.cells[row][ALL].gain)]
        items = [f"{_named(matrix.method, row_axis, row)} {_signed(gain)}{_whether_open(gain)}" for row, gain in of_all]
        yield f"Gain over the base model on all test records, in points: {_listed(items)}."
    yield (
        f"{matrix.method} is above the base model in {_certain(gains, 1)} of {len(gains)} cells and below it in "
        f"{_certain(gains, -1)} (after Holm's correction, at 5 %); the rest is open."
    )


def _contrast_findings(contrasts: Sequence[ContrastMatrix]) -> Iterator[str]:
    for contrast in contrasts:
        if not _is_open(contrast.overall):
            a, b = _side(contrast.a), _side(contrast.b)
            cells = [contrast.cells[row][column] for row in contrast.rows for column in contrast.columns]
            yield (
                f"Over all cells {b} scores {_points(contrast.overall, 'more', 'less')} than {a}; it is above "
                f"in {_certain(cells, 1)} of {len(cells)} cells and below in {_certain(cells, -1)} "
                "(after Holm's correction, at 5 %)."
            )
    if items := [_versus_item(c, c.overall) for c in contrasts if _is_open(c.overall)]:
        yield f"Open over all cells, in points: {_listed(items)}."


def _gap_findings(matrix: Matrix, row_axis: str, column_axis: str) -> Iterator[str]:
    if found := matrix.generalization:
        if _is_open(found.gap):
            yield (
                f"For {matrix.method} no gap is shown between the diagonal ({_interval(found.diagonal)}) and the rest "
                f"({_interval(found.off_diagonal)}): {_signed(found.gap)} points."
            )
        else:
            yield (
                f"Off the diagonal {matrix.method} scores {_points(_minus(found.gap), 'more', 'less')} than on it "
                f"({_percent(found.off_diagonal.value)} against {_percent(found.diagonal.value)})."
            )
    if column_axis == "scanner" and len(matrix.columns) == 2:
        yield from _scanner_findings(matrix, row_axis)


def _scanner_findings(matrix: Matrix, row_axis: str) -> Iterator[str]:
    seen, held_out = matrix.columns
    lower: list[str] = []
    higher: list[str] = []
    unclear: list[str] = []
    for row in matrix.rows:
        inside, outside = matrix.cells[row][seen].accuracy, matrix.cells[row][held_out].accuracy
        item = f"{_named(matrix.method, row_axis, row)} {_interval(outside)} against {_interval(inside)}"
        # Intervals that do not touch are a cautious test of two scores on different pictures.
        where = lower if outside.high < inside.low else higher if outside.low > inside.high else unclear
        where.append(item)
    for verdict, items in (("Lower", lower), ("Higher", higher), ("Open, whether lower or higher", unclear)):
        if items:
            yield f"{verdict} on the {held_out} than on the {seen}: {_listed(items)}."


def _contrast_gap_findings(contrasts: Sequence[ContrastMatrix]) -> Iterator[str]:
    unclear = []
    for contrast in contrasts:
        if contrast.gap is None or contrast.off_diagonal is None:
            continue
        a, b, gap, rest = _side(contrast.a), _side(contrast.b), contrast.gap, contrast.off_diagonal
        if _is_open(gap):
            unclear.append(f"{b} against {a} gap {_signed(gap)}, off the diagonal {_signed(rest)}")
            continue
        changed = _points(gap, "larger", "smaller")
        verdict, more = ("better", "more") if gap.value < 0 else ("worse", "less")
        # A model that learned nothing has no gap either: one that generalizes scores more where it was not trained.
        if _is_open(rest) or (rest.value > 0) != (gap.value < 0):
            yield (
                f"The gap of {b} between the diagonal and the rest is {changed} than that of {a}, but off the diagonal "
                f"{b} is not shown to score {more} ({_signed(rest)} points): not shown to generalize {verdict}."
            )
        else:
            yield (
                f"{b} generalizes {verdict} than {a}: off the diagonal it scores {_points(rest, 'more', 'less')}, and "
                f"its gap between the diagonal and the rest is {changed}."
            )
    if unclear:
        yield f"Open, which of the two has the smaller gap (differences in points): {_listed(unclear)}."


def _seed_findings(matrices: Sequence[Matrix]) -> Iterator[str]:
    single = sum(len(matrix.cells[row][ALL].runs) == 1 for matrix in matrices for row in matrix.rows)
    if single:
        yield (
            f"{single} of {sum(len(matrix.rows) for matrix in matrices)} rows rest on one run each: their "
            "intervals are about other test records, not about how another training would have come out."
        )


def _one_change(contrast: ContrastMatrix) -> bool:
    a, b = contrast.a.split(), contrast.b.split()
    return len(a) != len(b) or sum(x != y for x, y in zip(a, b, strict=True)) == 1


def _named(method: str, row_axis: str, row: str) -> str:
    label = f"{row_axis.rpartition('.')[-1].replace('_', ' ')} {row}"
    return label if method == SINGLE_METHOD else f"{method} ({label})"


def _side(name: str) -> str:
    return name.removeprefix(f"{SINGLE_METHOD}: ")


def _beside(subjects: Iterable[_Subject], condition: str, short: str) -> list[str]:
    return [f"{s.name} ({_interval(s.accuracy)}, {short} {_percent(s.controls[condition])})" for s in subjects]


def _versus_item(contrast: ContrastMatrix, difference: Estimate) -> str:
    return f"{_side(contrast.b)} against {_side(contrast.a)} {_signed(difference)}"


def _listed(items: Sequence[str]) -> str:
    rest = len(items) - _NAMED
    return "; ".join(items[:_NAMED]) + (f"; and {rest} more" if rest > 0 else "")


def _certain(cells: Iterable[Versus], sign: int) -> int:
    """Cells whose difference has this sign by the corrected test and by the interval, which knows of shared images."""
    return sum(cell.p_holm < _ALPHA and not cell.open and sign * cell.difference.value > 0 for cell in cells)


def _is_open(difference: Estimate) -> bool:
    return difference.low <= 0 <= difference.high


def _whether_open(difference: Estimate) -> str:
    return " (open)" if _is_open(difference) else ""


def _minus(e: Estimate) -> Estimate:
    return Estimate(-e.value, -e.high, -e.low)


def _points(difference: Estimate, more: str, less: str) -> str:
    """A difference whose sign is certain, such as "3.1 points [2.0, 4.2] more"."""
    size, word = (difference, more) if difference.value > 0 else (_minus(difference), less)
    return f"{_number(size.value)} points [{_number(size.low)}, {_number(size.high)}] {word}"


def _interval(e: Estimate) -> str:
    return f"{_percent(e.value)} [{_number(e.low)}, {_number(e.high)}]"


def _signed(e: Estimate) -> str:
    return f"{_sign(e.value)} [{_sign(e.low)}, {_sign(e.high)}]"


def _percent(fraction: float) -> str:
    return f"{_number(fraction)} %"


def _number(fraction: float) -> str:
    return f"{round(100 * fraction, 1) + 0.0:.1f}"


def _sign(fraction: float) -> str:
    return f"{round(100 * fraction, 1) + 0.0:+.1f}"


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
