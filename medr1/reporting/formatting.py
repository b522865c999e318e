"""Names and numbers as text: axis values, percentages, intervals and p-values."""

from __future__ import annotations

import re
from collections.abc import Collection

from medr1.domain.records import AXES, Modality, QuestionType
from medr1.evaluation.statistics import Estimate, PairedDifference
from medr1.evaluation.sweep_tables import ALL, ContrastMatrix

_AXIS_NAMES: dict[str, str] = {
    Modality.CT: "CT",
    Modality.MRI: "MRI",
    Modality.XRAY: "X-Ray",
    Modality.US: "Ultrasound",
    Modality.DER: "Dermoscopy",
    Modality.FP: "Fundus",
    Modality.OCT: "OCT",
    Modality.MICRO: "Microscopy",
    QuestionType.ANATOMY: "Anatomy",
    QuestionType.DISEASE: "Disease",
    QuestionType.LESION: "Lesion grading",
    QuestionType.MODALITY: "Modality",
    QuestionType.ATTRIBUTES: "Attributes",
}
MEAN = "mean"  # the column of the mean over the columns with equal weight
_NAMES = {
    **_AXIS_NAMES,
    **{"grpo": "GRPO", "sft": "SFT", "dapo": "DAPO", "dr_grpo": "Dr. GRPO", "gspo": "GSPO", "cispo": "CISPO"},
    **{"zero_shot": "Zero-shot", "medr1_legacy": "Med-R1 as released", "noisy_rollout": "NoisyRollout"},
    **{name: name.upper() for name in ("drpo", "gdpo", "papo", "rloo", "sapo")},
    **{"reinforce_pp": "REINFORCE++"},
    **{"think_before": "Think-Before", "no_think": "No-Think", "think_after": "Think-After"},
    **{"blank_image": "Blank image", "shuffled_image": "Shuffled image"},
    **{"option_prior": "Option prior", "surface_cues": "Surface cues", "chance": "Chance"},
    **{ALL: "All", MEAN: "Mean", "base": "Base", "trained": "Trained"},
}


def label(value: str) -> str:
    """The display name of an axis value, word by word, such as GRPO No-Think for ``grpo no_think``.

    The stages of a chain are words of their own: SFT, then GRPO for ``sft_then_grpo``.
    """
    words = value.replace("_then_", ", then ")
    return re.sub(r"[^\s:,]+", lambda word: _NAMES.get(word[0], word[0]), words)


def value_labels(values: Collection[str]) -> dict[str, str]:
    """The display name of each value of an axis. A value keeps its own name if its display name is another value."""
    labels = ((value, _AXIS_NAMES.get(value, value)) for value in values)
    return {value: value if name in values else name for value, name in labels}


def markdown(text: str) -> str:
    """The text with Markdown's characters escaped, for a cell of a table or a paragraph."""
    return re.sub(r"[\\`*<|]|\](?=[(\[])", r"\\\g<0>", text)


def axis_label(axis: str) -> str:
    """The display name of an axis, such as shortcut for ``data.shortcut``."""
    return axis.rpartition(".")[2].replace("_", " ")


def row_title(axis: str) -> str:
    """What stands over the rows of a table, or under a figure of them."""
    return "Trained on" if axis in AXES else axis_label(axis).capitalize()


def contrast_label(contrast: ContrastMatrix) -> str:
    """Such as "GRPO - SFT", or "GRPO: No-Think - Think-Before" if two rows of one method are compared."""
    return f"{label(contrast.b)} \N{MINUS SIGN} {label(contrast.a.removeprefix(f'{contrast.rows[0]}: '))}"


def on_diagonal(row: str, column: str) -> bool:
    """Trained on what is tested. The column of all records is not part of the diagonal."""
    return row == column != ALL


def percent(fraction: float, sign: str = "") -> str:
    """In percent with one decimal; ``sign="+"`` for differences."""
    # Adding zero turns the -0.0 that rounding can leave into 0.0.
    return f"{round(100 * fraction, 1) + 0.0:{sign}.1f}".replace("-", "\N{MINUS SIGN}")


def interval(estimate: Estimate, sign: str = "") -> str:
    """Both ends of the interval in brackets; nothing if a bootstrap of too few images gives no interval."""
    if estimate.low == estimate.high:
        return ""
    return f"[{percent(estimate.low, sign)}, {percent(estimate.high, sign)}]"


def with_interval(estimate: Estimate, sign: str = "") -> str:
    return f"{percent(estimate.value, sign)} {interval(estimate, sign)}".rstrip()


def p_value(p: float) -> str:
    """Three decimals without the leading zero: <.001, .042, 1.00."""
    if p < 0.001:
        return "<.001"
    return f"{p:.3f}".removeprefix("0") if p < 0.9995 else "1.00"


def p_text(test: PairedDifference) -> str:
    """The corrected p-value, such as "p = .042"."""
    p = p_value(test.p_holm)
    return f"p {p}" if p.startswith("<") else f"p = {p}"
