"""The audit of data on records that can be counted by eye."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from medr1.data.dataset import Dataset
from medr1.domain.records import Record
from medr1.evaluation.data_audit import audit_data
from medr1.reporting.data_audit_table import metric_items, render_data_audit


@dataclass(frozen=True)
class Drawn:
    """An image of noise. Two with the same seed look the same, whatever their keys."""

    key: str
    seed: int

    def load(self, side: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(self.seed).integers(0, 255, (side, side, 3), np.uint8))


def record(name: str, benchmark: str, seeds: tuple[int, ...], answer: str = "A", options: str = "ABCD") -> Record:
    return Record(
        id=f"{benchmark}/{name}",
        images=tuple(Drawn(f"{benchmark}/{name}/{seed}", seed) for seed in seeds),
        modality="ct",
        question_type="lesion",
        question="?",
        options={letter: f"option {letter}" for letter in options},
        answer=answer,
        benchmark=benchmark,
    )


TRAIN = [record("t1", "x", (1,), "B"), record("t2", "x", (2,), "B"), record("t3", "y", (5,), "A")]
TEST = [
    record("1", "x", (1,), "B"),
    record("2", "x", (3,), "C", "ABC"),
    record("3", "x", (4, 2), "B"),
    record("4", "y", (3,), "A"),
    record("5", "y", (1,), "A"),
]


def test_counts_and_accuracies_without_a_model() -> None:
    audit = audit_data(Dataset(TRAIN, TEST, "f", {}, []), "benchmarks")
    x, y = audit.sets["x"], audit.sets["y"]
    assert (x.train, x.test, x.images, y.train, y.test, y.images) == (2, 3, 4, 1, 2, 2)
    assert x.options == {3: 1, 4: 2} and x.answers == {"B": 2, "C": 1}
    assert x.chance == pytest.approx((1 / 4 + 1 / 3 + 1 / 4) / 3)
    assert x.letter_prior == pytest.approx(2 / 3) and y.letter_prior == 1
    assert x.option_prior == pytest.approx(2 / 3)  # "option B" is always correct in training
    assert (x.leaked_images, x.leaked_records) == (2, 2)  # images 1 and 2; records 1 and 3
    assert (y.leaked_images, y.leaked_records) == (0, 0)
    assert audit.images == 5


def test_images_that_two_sets_share_are_found_by_content() -> None:
    audit = audit_data(Dataset(TRAIN, TEST, "f", {}, []), "benchmarks")
    found = {(o.test, o.other): (o.images, o.in_training, o.in_test) for o in audit.overlaps}
    assert found == {("x", "y"): (4, 0, 2), ("y", "x"): (2, 1, 2)}
    _, overlaps = render_data_audit(audit)
    assert overlaps.rows == (("x: test images", "4", "y", "0", "2"), ("y: test images", "2", "x", "1", "2"))
    assert dict(metric_items(audit))["audit/y/images_in/x"] == 2


def test_data_of_one_set_has_its_own_name_and_no_overlaps() -> None:
    only = [r for r in TEST if r.benchmark == "y"]
    plain = [Record(**{**{k: getattr(r, k) for k in r.__slots__}, "benchmark": "unspecified"}) for r in only]
    audit = audit_data(Dataset([], plain, "f", {}, []), "slake")
    assert audit.sets.keys() == {"slake"} and audit.sets["slake"].option_prior is None and not audit.overlaps
    (table,) = render_data_audit(audit)
    assert table.rows[0][0] == "slake" and "-" in table.rows[0]


def test_sets_that_share_nothing_are_said_to() -> None:
    apart = [record("1", "x", (7,)), record("2", "y", (8,))]
    (table,) = render_data_audit(audit_data(Dataset([], apart, "f", {}, []), "benchmarks"))
    assert "No benchmark shows a test image" in table.notes[-1]
