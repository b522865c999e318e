"""The audit of data as tables, and as flat metrics for a tracker."""

from __future__ import annotations

from collections.abc import Iterator

from medr1.evaluation.data_audit import DataAudit
from medr1.reporting.formatting import percent
from medr1.reporting.result_table import ABSENT, ResultTable


def render_data_audit(audit: DataAudit) -> list[ResultTable]:
    """A row for each data set, and with several sets a row for each pair of them that shares images."""
    rows = tuple(
        (
            name,
            *(str(of_set.train), str(of_set.test), str(of_set.images)),
            *(percent(of_set.chance), percent(of_set.letter_prior)),
            ABSENT if of_set.option_prior is None else percent(of_set.option_prior),
            percent(of_set.surface_cues),
            *(str(of_set.leaked_images), str(of_set.leaked_records)),
        )
        for name, of_set in audit.sets.items()
    )
    titles = (
        *("", "train", "test", "test\nimages", "chance", "letter\nprior", "option\nprior", "surface\ncues"),
        *("leaked\nimages", "leaked\nrecords"),
    )
    notes: tuple[str, ...] = (
        "train, test: records. Accuracies in %, without image and question:",
        "letter prior: always the letter that is most often correct; option prior: the option text that is",
        "most often correct in training; surface cues: the option that stands out by case or full stop.",
        "leaked: test images whose content is also in training, and the test records that show one.",
    )
    if len(audit.sets) > 1 and not any(o.in_training or o.in_test for o in audit.overlaps):
        notes += ("No benchmark shows a test image of another one.",)
    tables = [ResultTable(titles, rows, notes)]
    if len(audit.sets) > 1:
        shared = tuple(
            (f"{o.test}: test images", str(o.images), o.other, str(o.in_training), str(o.in_test))
            for o in audit.overlaps
            if o.in_training or o.in_test
        )
        if shared:
            titles_of_pairs = ("", "images", "found in", "training\nimages", "test\nimages")
            tables.append(ResultTable(titles_of_pairs, shared, ()))
    return tables


def metric_items(audit: DataAudit) -> Iterator[tuple[str, float]]:
    """Names and values of the audit's metrics, such as ``audit/slake/option_prior``."""
    for name, of_set in audit.sets.items():
        for key in ("train", "test", "chance", "letter_prior", "option_prior", "surface_cues", "leaked_images"):
            if (value := getattr(of_set, key)) is not None:
                yield f"audit/{name}/{key}", float(value)
    for o in audit.overlaps:
        yield f"audit/{o.test}/images_in/{o.other}", float(o.in_either)
