"""The published runs and the page that is computed from them."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from benchmarks import published, results
from benchmarks.claims import Claim, claims
from benchmarks.outcomes import RATIONALE, Square, Sweep, at_plateau, crossing, false_claims
from benchmarks.published import PublishedRun, PublishedSweep
from benchmarks.result_figures import MAPS
from benchmarks.results import claims_part, map_part, parts, write_page
from medr1.atomic_write import write_json
from medr1.data.sources.phantoms.records import NAMES, Phantom, choices
from medr1.domain.reasoning import ReasoningMode, target_text
from medr1.domain.records import QuestionType, Record
from medr1.evaluation.predictions import Condition, prediction, write_predictions
from medr1.evaluation.statistics import Estimate
from medr1.runs.run_directory import RunDirectory
from medr1.runs.sweep import Job, Manifest, SweepDirectory
from tests.composing import composed

ROOT = Path(__file__).resolve().parents[3]
IMAGES = 3
RECORDS, DIGEST = published._records(0, IMAGES, 2), published._digest(0, IMAGES, 2)
RISING = {"validation/accuracy": [(50 * i, 0.1 * i) for i in range(9)]}
FLAT = {"validation/accuracy": [(50 * i, min(0.1 * i, 0.1)) for i in range(9)]}


def texts(right: float, seed: int) -> list[str]:
    """Completions of which about this share is correct; a tenth can only be parsed leniently."""
    rng = random.Random(seed)
    found = []
    for record in RECORDS:
        wrong = next(letter for letter in record.options if letter != record.answer)
        letter = record.answer if rng.random() < right else wrong
        found.append(target_text(ReasoningMode.NO_THINK, letter) if rng.random() < 0.9 else f"The answer is {letter}")
    return found


def run(number: int, axes: dict[str, str], right: float) -> PublishedRun:
    conditions = {"base": texts(0.3, 100), "trained": texts(right, number), "blank_image": texts(0.25, 200 + number)}
    method = axes["algorithm"]
    return PublishedRun(str(number), axes, method, "mri", "all", "no_think", conditions, FLAT, 300, 1.0)


@pytest.fixture(scope="module")
def scarcity() -> Sweep:
    """GRPO is better with few images, SFT with many."""
    right = {("10", "grpo"): 0.7, ("10", "sft"): 0.4, ("400", "grpo"): 0.5, ("400", "sft"): 0.9}
    runs = [
        run(2 * number + seed, {"data.max_train_images": images, "algorithm": method, "seed": str(seed)}, share)
        for number, ((images, method), share) in enumerate(right.items())
        for seed in (0, 1)
    ]
    rows = "data.max_train_images"
    return Sweep(PublishedSweep("scarcity", ["python"], rows, "modality", 0, IMAGES, 2, DIGEST, ["c"], runs))


def share(run: PublishedRun, condition: str, records: list[Record]) -> float:
    """Counted without any function of the page."""
    places = [RECORDS.index(record) for record in records]
    return sum(f"<answer>{RECORDS[i].answer}</answer>" == run.texts[condition][i] for i in places) / len(places)


def test_the_numbers_of_a_map_are_counts_of_the_completions(scarcity: Sweep) -> None:
    home = [record for record in RECORDS if record.modality == "mri"]
    away = [record for record in RECORDS if record.modality != "mri"]
    axis = "data.max_train_images"
    table = map_part(scarcity, MAPS["scarcity"]).split("\n\n")[1].splitlines()
    for line in table[2:]:
        value, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        numbers = [float(cell.split()[0].replace("\N{MINUS SIGN}", "-")) for cell in cells]
        for column, records in ((0, home), (3, away)):
            grpo, sft = (
                np.mean([share(run, "trained", records) for run in scarcity.seeds(**{axis: value}, algorithm=method)])
                for method in ("grpo", "sft")
            )
            expected = [100 * grpo, 100 * sft, 100 * (grpo - sft)]
            assert numbers[column : column + 3] == pytest.approx(expected, abs=0.051)
    assert table[2].startswith("| 10 |") and table[3].startswith("| 400 |")


def test_the_map_says_where_the_curves_cross(scarcity: Sweep) -> None:
    text = map_part(scarcity, MAPS["scarcity"])
    assert "On the others: the curves cross at" in text and "100 % of the resamples" in text
    assert "The base with lenient parsing: " in text and "neither is the crossing" not in text


def test_a_crossing_of_undecided_differences_is_not_decided(scarcity: Sweep) -> None:
    equal = [replace(r, texts={**r.texts, "trained": texts(0.5, i % 2)}) for i, r in enumerate(scarcity.published.runs)]
    text = map_part(Sweep(replace(scarcity.published, runs=equal)), MAPS["scarcity"])
    assert text.count("None of these differences is decided, so neither is the crossing.") == 2


def test_crossings_are_interpolated_on_a_log_scale() -> None:
    assert crossing([10, 1000], np.array([1.0, -1.0])) == pytest.approx(100)
    assert crossing([10, 100, 1000], np.array([3.0, 2.0, -1.0])) == pytest.approx(10 ** (2 + 2 / 3))
    assert crossing([10, 100], np.array([3.0, 2.0])) is None


def test_a_run_that_still_rises_is_not_at_a_plateau(scarcity: Sweep) -> None:
    first = scarcity.published.runs[0]
    assert at_plateau(first) and not at_plateau(replace(first, curves=RISING))
    assert not at_plateau(replace(first, curves={"validation/accuracy": [(50 * i, 0.5) for i in range(6)]})), "too few"
    late = [0.0, 0.4, 0.4, 0.5, 0.5, 0.51, 0.51]  # the last third of six is one point above the third before
    assert at_plateau(replace(first, curves={"validation/accuracy": [(50 * i, v) for i, v in enumerate(late)]}))
    late[-1] = 0.52
    assert not at_plateau(replace(first, curves={"validation/accuracy": [(50 * i, v) for i, v in enumerate(late)]}))
    rising = Sweep(replace(scarcity.published, runs=[replace(r, curves=RISING) for r in scarcity.published.runs]))
    assert map_part(rising, MAPS["scarcity"]).count("not at a plateau") == 2


@pytest.mark.parametrize(
    ("low", "high", "verdict", "as_equivalence"),
    [
        (0.001, 0.2, "holds", "cannot"),
        (0.04, 0.2, "holds", "does not hold"),
        (-0.2, -0.001, "does not hold", "cannot"),
        (-0.02, 0.02, "does not hold", "holds"),
        (-0.02, 0.05, "cannot", "cannot"),
        (-0.08, 0.02, "cannot", "cannot"),
    ],
)
def test_the_interval_decides(low: float, high: float, verdict: str, as_equivalence: str) -> None:
    effect = Estimate((low + high) / 2, low, high)
    assert claim(effect).verdict.startswith(verdict)
    assert replace(claim(effect), is_equivalence=True).verdict.startswith(as_equivalence)


def claim(effect: Estimate, half_over_images: float = 0.0) -> Claim:
    over_images = Estimate(effect.value, effect.value - half_over_images, effect.value + half_over_images)
    return Claim("c", effect, over_images, 3)


@pytest.mark.parametrize(
    ("effect", "half_over_images", "needed"),
    [
        (Estimate(0.02, -0.02, 0.06), 0.0, "13 seeds"),  # half width 4 points to below 2: more than 12
        (Estimate(0.02, -0.01, 0.05), 0.01, "9 seeds"),  # variance of seeds 8 to below 3: more than 8
        (Estimate(0.02, -0.001, 0.0305), 0.0, "4 seeds"),  # the short side decides, and three seeds did not
        (Estimate(0.02, -0.02, 0.06), 0.04, "5 times as many test images"),  # the images alone hide it
        (Estimate(0.02, -0.03, 0.07), 0.04, "7 times as many seeds and test images"),  # so do seeds: 25 to below 4
        (Estimate(0.0, -0.04, 0.04), 0.0, "6 seeds"),  # no difference that matters: 4 to below 3
    ],
)
def test_what_would_settle_a_claim(effect: Estimate, half_over_images: float, needed: str) -> None:
    assert claim(effect, half_over_images).verdict == f"cannot be settled here; about {needed} would"


def test_nothing_settles_an_equivalence_at_its_limit() -> None:
    at_limit = replace(claim(Estimate(0.03, -0.03, 0.09)), is_equivalence=True)
    assert at_limit.needed == "no number of seeds or images would"


def test_a_claim_without_runs_says_so(scarcity: Sweep) -> None:
    assert claims_part(claims({"scarcity": scarcity})).count("| | | not run yet |") == 13


def test_the_page_keeps_what_stands_around_its_parts(scarcity: Sweep, tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    sweeps = {"scarcity": scarcity}
    found, names = claims(sweeps), parts({}, [])
    page.write_text("# Title\n" + "".join(f"Text {n}.\n<!-- results: {n} -->\nold\n<!-- end -->\n" for n in names))
    write_page(page, parts(sweeps, found))
    once = page.read_text()
    assert "old" not in once and all(f"Text {name}.\n<!-- results: {name} -->" in once for name in names)
    assert map_part(scarcity, MAPS["scarcity"]).splitlines()[2] in once
    write_page(page, parts(sweeps, found))
    assert page.read_text() == once
    page.write_text("# Title\n")
    with pytest.raises(SystemExit, match="no place for claims"):
        write_page(page, parts({}, []))


def test_the_summary_counts_the_claims(scarcity: Sweep) -> None:
    sweeps = {"scarcity": scarcity}
    summary = results.summary_part(sweeps, claims(sweeps))
    assert "docs/images/scarcity.png" in summary
    assert (
        "The 13 tests of the [claims of the paper](docs/med-r1/results.md#claims-of-the-paper): not run yet: 13."
        in summary
    )
    effects = ((0.02, 0.05), (-0.05, -0.02), (-0.02, 0.02), (-0.1, 0.1))
    found = [claim(Estimate((low + high) / 2, low, high)) for low, high in effects]
    expected = ": holds: 1; does not hold: 2; cannot be settled: 1; not run yet: 1."
    assert expected in results.summary_part({}, [*found, "not run"])


def test_false_claims_are_counted_over_the_seeds() -> None:
    """The base names one false attribute beside the modality, GRPO none in one seed and three in the other."""

    def said(values: Callable[[Phantom], str]) -> list[str]:
        return [f"<answer>A</answer><think>{values(record.images[0])}</think>" for record in RECORDS]  # type: ignore[arg-type]

    def other(phantom: Phantom, question_type: QuestionType) -> str:
        return next(v for v in choices(question_type, phantom.modality) if v != phantom.value(question_type))

    types = list(QuestionType)
    base = said(lambda p: f"{NAMES[p.modality]} {other(p, types[0])}")
    trained = [
        said(lambda p: NAMES[p.modality]),
        said(lambda p: f"{NAMES[p.modality]} {' '.join(other(p, t) for t in types[:3])}"),
    ]
    runs = [
        PublishedRun(
            *(str(seed), {"reasoning": "think_after", "algorithm": "grpo", "seed": str(seed)}, "grpo", "all", "all"),
            *("think_after", {"base": base, "trained": texts}, FLAT, None, 1.0),
        )
        for seed, texts in enumerate(trained)
    ]
    sweep = Sweep(PublishedSweep("m", ["python"], "reasoning", "modality", 0, IMAGES, 2, DIGEST, ["c"], runs))
    effect, over_images = (false_claims(sweep, runs, draw_seeds=draw).estimate(0) for draw in (True, False))
    assert effect.value == pytest.approx((0 + 3 / 4) / 2 - 1 / 2)  # 0 of 1 and 3 of 4 claims; the base 1 of 2
    assert over_images.value == over_images.low == over_images.high == effect.value  # all images have the same claims
    assert (effect.low, effect.high) == pytest.approx((-1 / 2, 3 / 4 - 1 / 2))  # one of the two seeds is drawn
    table = results.reasoning_part(sweep).splitlines()
    assert table[2].startswith("| Think-After, GRPO |") and "\u221212.5" in table[2]


def trained_on(modality: str, method: str, number: int) -> PublishedRun:
    return replace(run(number, {"modality": modality, "algorithm": method, "seed": "0"}, 0.5), modality=modality)


@pytest.fixture(scope="module")
def square() -> Sweep:
    """Trained on CT or MRI, with two seeds. GRPO is better where it was not trained, SFT where it was."""
    runs = []
    for i, (modality, method, seed) in enumerate(product(("ct", "mri"), ("sft", "grpo"), ("0", "1"))):
        home, away = texts(0.9 if method == "sft" else 0.6, 50 + i), texts(0.3 if method == "sft" else 0.8, 90 + i)
        trained = [h if record.modality == modality else a for record, h, a in zip(RECORDS, home, away, strict=True)]
        one = run(i, {"modality": modality, "algorithm": method, "seed": seed}, 0.5)
        runs.append(replace(one, modality=modality, texts={**one.texts, "trained": trained}))
    axis = "modality"
    return Sweep(PublishedSweep("cross_modality", ["python"], axis, axis, 0, IMAGES, 2, DIGEST, ["c"], runs))


def test_a_square_has_the_means_over_what_was_trained_on(square: Sweep) -> None:
    lines = [line for line in results.square_part(square, "modality").splitlines() if line.startswith("| GRPO")]
    lenient = [
        f"<answer>{r.answer}</answer>" == text or text == f"The answer is {r.answer}"
        for r, text in zip(RECORDS, square.published.runs[0].texts["base"], strict=True)
    ]
    for place in (0, 1):  # on the modality trained on, and on the seven others

        def mean(method: str, condition: str = "trained", place: int = place) -> float:
            shares = [
                share(r, condition, [record for record in RECORDS if (record.modality != r.modality) == bool(place)])
                for r in square.seeds(algorithm=method)
            ]
            return 100 * float(np.mean(shares))

        base = 100 * np.mean(
            [
                np.mean([lenient[i] for i, r in enumerate(RECORDS) if (r.modality != run.modality) == bool(place)])
                for run in square.seeds(algorithm="grpo")
            ]
        )
        expected = [mean("grpo"), mean("grpo") - mean("sft"), mean("grpo") - base, mean("grpo", "blank_image")]
        found = [float(line.split("|")[2 + place].split()[0].replace("\N{MINUS SIGN}", "-")) for line in lines]
        assert found == pytest.approx(expected, abs=0.051)


def test_the_summary_has_the_means_of_the_page(square: Sweep) -> None:
    name = square.published.name
    line = results.summary_part({name: square}, []).splitlines()[-1]
    cells = [cell.strip() for cell in line.split("|")]
    page = {
        row.split("|")[1].split(" (")[0].strip(): row.split("|")
        for row in parts({name: square}, [])[name].splitlines()
        if "|" in row
    }
    between, gain = page["GRPO - SFT"], page["GRPO - base with lenient parsing"]
    assert cells[2:5] == [between[2].strip(), gain[3].strip(), between[3].strip()]
    assert cells[1] == f"modality of {len(square.values('modality'))}, in No-Think ({square.seed_count} seeds)"


def test_both_kinds_of_sft_are_compared_and_the_claims_take_the_letters(square: Sweep) -> None:
    """SFT with rationales has the answers of GRPO, so that their difference is 0."""
    letters = [replace(r, axes={**r.axes, RATIONALE: "false" if r.algorithm == "sft" else ""}) for r in square.seeds()]
    rationales = [
        replace(r, name=f"r{r.name}", algorithm="sft", axes={**r.axes, "algorithm": "sft", RATIONALE: "true"})
        for r in square.seeds(algorithm="grpo")
    ]
    both = Sweep(replace(square.published, runs=[*letters, *rationales]))
    alone = results.square_part(square, "modality").splitlines()
    lines = results.square_part(both, "modality").splitlines()
    assert [line.replace("SFT on letters", "SFT") for line in lines if "with rationales" not in line] == alone
    assert (
        sum(line.startswith("| GRPO - SFT with rationales") and line.endswith("| +0.0 | +0.0 |") for line in lines) == 1
    )
    assert claims({"cross_modality": both})[3] == claims({"cross_modality": square})[3]


def test_the_rows_of_a_square_share_their_resampled_images(square: Sweep) -> None:
    """As in medr1.evaluation.matrices: with a draw for each row the interval of the mean would be too narrow."""
    runs = [replace(r, texts={**r.texts, "trained": square.published.runs[0].texts["trained"]}) for r in square.seeds()]
    equal = Square(Sweep(replace(square.published, runs=[r for r in runs if r.axes["seed"] == "0"])), "modality")
    ct, mri = (equal.sweep.columns("modality") == i for i in (0, 1))
    right = np.array([r == "1" for r in map(str, map(int, equal.sweep.outcomes["0", "trained"]))])
    assert equal.accuracy("grpo").value[0] == pytest.approx((right[ct].mean() + right[mri].mean()) / 2)
    # Both rows have the same predictions, so the six modalities that are away from both have one draw.
    rng = np.random.default_rng(1)
    images = np.array([record.image_key for record in RECORDS])
    modality = np.array([record.modality for record in RECORDS])
    sums = []
    for _ in range(2000):
        accuracy = {}
        for value in np.unique(modality):
            keys = np.unique(images[modality == value])
            drawn = rng.choice(keys, len(keys))
            accuracy[value] = np.mean([right[images == key].mean() for key in drawn])
        total = sum(accuracy.values())
        sums.append(np.mean([(total - accuracy[row]) / 7 for row in ("ct", "mri")]))
    expected = np.subtract(*np.quantile(sums, [0.975, 0.025]))
    found = equal.accuracy("grpo").estimate(1)
    assert found.high - found.low == pytest.approx(expected, rel=0.06)


def test_each_claim_has_its_effect(square: Sweep, modes: Sweep) -> None:
    """Counted without any function of the page."""
    found = {c.text: c for c in claims({"cross_modality": square, "reasoning_modes": modes}) if isinstance(c, Claim)}
    away = {
        method: np.mean(
            [
                share(r, "trained", [x for x in RECORDS if x.modality != r.modality])
                for r in square.seeds(algorithm=method)
            ]
        )
        for method in ("grpo", "sft")
    }
    effect = found["RL generalizes better than SFT to other modalities (No-Think)"].effect.value
    assert effect == pytest.approx(away["grpo"] - away["sft"]) and effect > 0.2
    gain = found["RL generalizes to other modalities (No-Think)"].effect.value
    assert gain == pytest.approx(Square(square, "modality").gain().value[1]) and gain > 0.2
    assert found["RL improves the base model (Think-Before)"].effect.value == pytest.approx(0.5 - 0.25)
    assert found["RL improves the base model (No-Think)"].effect.value == pytest.approx(0.75 - 0.25)
    assert found["RL improves the base model (Think-After)"].effect.value == pytest.approx(0.75 - 0.25)
    assert found["No-Think is better than Think-Before after RL"].effect.value == pytest.approx(0.25)
    same = found["Think-After keeps the accuracy of No-Think"]
    assert same.is_equivalence and same.effect.value == pytest.approx(0)
    assert len(found) == 9 and {c.seeds for c in found.values()} == {2, 1}


@pytest.fixture(scope="module")
def modes() -> Sweep:
    """GRPO in three modes: half of the answers are correct in Think-Before, three quarters in the others."""

    def said(mode: ReasoningMode, right: int) -> list[str]:
        letters = [
            r.answer if i % 4 < right else next(x for x in r.options if x != r.answer) for i, r in enumerate(RECORDS)
        ]
        return [target_text(mode, letter, NAMES[r.modality]) for letter, r in zip(letters, RECORDS, strict=True)]

    right = {ReasoningMode.THINK_BEFORE: 2, ReasoningMode.NO_THINK: 3, ReasoningMode.THINK_AFTER: 3}
    runs = [
        PublishedRun(
            *(mode, {"reasoning": mode, "algorithm": "grpo", "seed": "0"}, "grpo", "all", "all", mode),
            *({"base": said(mode, 1), "trained": said(mode, number)}, RISING, None, 1.0),
        )
        for mode, number in right.items()
    ]
    return Sweep(PublishedSweep("m", ["python"], "reasoning", "modality", 0, IMAGES, 2, DIGEST, ["c"], runs))


def test_runs_that_still_rise_are_marked(square: Sweep, modes: Sweep) -> None:
    rows = claims_part(claims({"cross_modality": square, "reasoning_modes": modes})).splitlines()
    assert sum("not at a plateau)" in row for row in rows) == 7 and "not at a plateau" not in rows[5] + rows[6]


def test_figures_are_drawn(scarcity: Sweep, tmp_path: Path) -> None:
    headline = Sweep(
        replace(scarcity.published, runs=[run for run in scarcity.published.runs if "10" in run.axes.values()])
    )
    square = [trained_on(modality, method, i) for i, modality in enumerate(("ct", "mri")) for method in ("sft", "grpo")]
    cross_modality = Sweep(replace(scarcity.published, rows="modality", runs=square))
    results.write_figures(tmp_path, {"scarcity": scarcity, "headline": headline, "cross_modality": cross_modality})
    figures = {"scarcity.png", "headline_curves.png", "cross_modality_grpo.png", "cross_modality_sft.png"}
    assert {file.name for file in tmp_path.iterdir()} == figures


def test_values_of_a_map_end_with_a_number() -> None:
    assert MAPS["base"].label("models/step-2200") == "step 2200" and MAPS["shortcut"].number("0.5") == 0.5
    with pytest.raises(SystemExit, match="models/last does not end with a number"):
        MAPS["base"].number("models/last")


def test_a_crossing_with_zero_is_interpolated_linearly() -> None:
    assert crossing([0, 0.5], np.array([1.0, -3.0])) == pytest.approx(0.125)


def test_a_difference_of_zero_lies_on_the_way_to_a_crossing() -> None:
    assert crossing([0, 1, 2], np.array([1.0, 0.0, -1.0])) == pytest.approx(1)
    assert crossing([0, 1, 2], np.array([1.0, 0.0, 0.5])) is None


def test_values_of_a_map_rise_in_any_order_of_storing(scarcity: Sweep) -> None:
    reverse = Sweep(replace(scarcity.published, runs=scarcity.published.runs[::-1]))
    assert map_part(reverse, MAPS["scarcity"]) == map_part(scarcity, MAPS["scarcity"])


def test_runs_with_other_seeds_are_not_compared(scarcity: Sweep) -> None:
    grpo, sft = (scarcity.seeds(algorithm=method, **{"data.max_train_images": "10"}) for method in ("grpo", "sft"))
    with pytest.raises(ValueError, match="have the seeds"):
        scarcity.difference(grpo[:1], sft)
    with pytest.raises(ValueError, match=r"\['0'\], 6 and others \['1'\]|have the seeds"):
        scarcity.difference(grpo[:1], sft[1:])


def test_one_seed_is_marked(scarcity: Sweep) -> None:
    one = Sweep(replace(scarcity.published, runs=[r for r in scarcity.published.runs if r.axes["seed"] == "0"]))
    assert results.ONE_SEED in parts({"scarcity": one}, [])["scarcity"]
    assert results.ONE_SEED not in parts({"scarcity": scarcity}, [])["scarcity"]


def test_image_dependence_is_that_of_validation_and_test(scarcity: Sweep) -> None:
    """Two seeds, of which the dependence rises to 0.4 and 0.2."""
    runs = [
        replace(
            run(seed, {"algorithm": "grpo", "seed": str(seed)}, 0.7),
            curves={**FLAT, "validation/image_dependence": [(50 * i, top * i / 8) for i in range(9)]},
        )
        for seed, top in enumerate((0.4, 0.2))
    ]
    shuffled = [replace(r, texts={**r.texts, "shuffled_image": r.texts["blank_image"]}) for r in runs]
    sweep = Sweep(replace(scarcity.published, runs=[replace(r, modality="all") for r in shuffled]))
    head, _, line = results.image_dependence_part(sweep).splitlines()
    assert "step 0 | step 100 | step 200 | step 300 | step 400 |" in head
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == "+0.0 (+0.0 to +0.0)" and cells[5] == "+30.0 (+20.0 to +40.0)"
    expected = np.mean([share(r, "trained", RECORDS) - share(r, "blank_image", RECORDS) for r in sweep.published.runs])
    assert float(cells[6].split()[0]) == pytest.approx(100 * expected, abs=0.051) and cells[7] == cells[6]


def test_a_method_on_the_model_of_sft_gains_over_the_base_of_the_others(scarcity: Sweep) -> None:
    grpo, after_sft = (
        run(i, {"algorithm": name, "seed": "0"}, 0.7) for i, name in enumerate(("grpo", "sft_then_grpo"))
    )
    after_sft = replace(after_sft, texts={**after_sft.texts, "base": texts(0.95, 7)})
    runs = [replace(r, modality="all") for r in (grpo, after_sft)]
    line = results.headline_part(Sweep(replace(scarcity.published, runs=runs))).splitlines()[-1]
    lenient = sum(
        f"<answer>{r.answer}</answer>" == text or text == f"The answer is {r.answer}"
        for r, text in zip(RECORDS, grpo.texts["base"], strict=True)
    ) / len(RECORDS)
    gain = 100 * (share(after_sft, "trained", RECORDS) - lenient)
    assert line.startswith("| SFT, then GRPO |") and float(line.split("|")[4].split()[0]) == pytest.approx(
        gain, abs=0.051
    )


def test_a_method_with_fewer_seeds_is_compared_on_those_that_both_have(scarcity: Sweep) -> None:
    grpo = [run(seed, {"algorithm": "grpo", "seed": str(seed)}, 0.2 + 0.3 * seed) for seed in (0, 1)]
    papo = run(2, {"algorithm": "papo", "seed": "1"}, 0.9)
    sweep = Sweep(replace(scarcity.published, runs=[replace(r, modality="all") for r in (*grpo, papo)]))
    cells = [cell.strip() for cell in results.headline_part(sweep).splitlines()[-1].split("|")]
    assert cells[1:3] == ["PAPO", "1"]
    difference = 100 * (share(papo, "trained", RECORDS) - share(grpo[1], "trained", RECORDS))
    assert float(cells[5].split()[0]) == pytest.approx(difference, abs=0.051)


def test_sft_of_equal_compute_is_compared_with_grpo_of_the_headline(scarcity: Sweep) -> None:
    """Its runs have the names of the shorter ones."""
    shares = {"grpo": 0.4, "sft": 0.5}
    runs = [
        replace(run(i, {"algorithm": name, "seed": "0"}, right), name=name, modality="all")
        for i, (name, right) in enumerate(shares.items())
    ]
    longer = [replace(run(7, {"algorithm": "sft", "seed": "0"}, 0.9), name="sft", modality="all")]
    sweeps = {
        name: Sweep(replace(scarcity.published, name=name, runs=of))
        for name, of in (("headline", runs), ("equal_compute", longer))
    }
    line = results.equal_compute_part(sweeps["headline"], sweeps["equal_compute"]).splitlines()[2]
    assert line.startswith("| SFT, 400 steps | 1 | ")
    other = Sweep(replace(sweeps["equal_compute"].published, digest="of other records"))
    with pytest.raises(SystemExit, match="other test records than headline"):
        results.equal_compute_part(sweeps["headline"], other)
    accuracy, difference = (float(cell.split()[0].replace("\N{MINUS SIGN}", "-")) for cell in line.split("|")[3:5])
    right = share(longer[0], "trained", RECORDS)
    assert accuracy == pytest.approx(100 * right, abs=0.051)
    assert difference == pytest.approx(100 * (right - share(runs[0], "trained", RECORDS)), abs=0.051)


def test_rationales_are_compared_with_letters(scarcity: Sweep) -> None:
    """Of the rationales every second is cut off, so that its answer is missing."""
    letters = [target_text(ReasoningMode.THINK_AFTER, record.answer, NAMES[record.modality]) for record in RECORDS]
    cut = [text if i % 2 else "" for i, text in enumerate(letters)]
    answers = {("think_after", "false"): letters, ("think_after", "true"): cut, ("no_think", "true"): cut}
    runs = [
        PublishedRun(
            *(f"{mode} {value}", {"reasoning": mode, "algorithm": "sft", "algorithm.rationale": value, "seed": "0"}),
            *("sft", "all", "all", mode, {"base": letters, "trained": of}, FLAT, None, 1.0),
        )
        for (mode, value), of in answers.items()
    ]
    sweep = Sweep(replace(scarcity.published, runs=runs))
    (line,) = results.rationales_part(sweep).splitlines()[2:]
    assert line.startswith("| Think-After | \N{MINUS SIGN}50.0 ")
    names = [line.split("|")[1].strip() for line in results.reasoning_part(sweep).splitlines()[2:]]
    assert names == ["Think-After, SFT on letters", "Think-After, SFT with rationales", "No-Think, SFT"]


def test_a_finished_sweep_is_stored_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "FOLDER", tmp_path / "published")
    sweep = SweepDirectory(tmp_path / "sweep")
    words = [f"data.test_images_per_modality={IMAGES}", "modality=mri", "reasoning=no_think"]
    jobs = {name: Job(name, {"algorithm": name, "seed": "0"}, [f"algorithm={name}"]) for name in ("sft", "grpo")}
    sweep.add(Manifest("headline", "algorithm", "modality", ["sweep=headline"], list(jobs), jobs))
    expected = texts(0.5, 1)
    for name in jobs:
        run = RunDirectory(sweep.path / name)
        cfg = composed("train", *words, f"algorithm={name}")
        run.create(OmegaConf.structured(cfg), [], {"data_fingerprint": "-"})
        lines = [
            prediction(record, Condition.TRAINED, ReasoningMode.NO_THINK, text, 5, False)
            for record, text in zip(RECORDS, expected, strict=True)
        ]
        (run.path / "predictions").mkdir()
        write_predictions(run.predictions("trained"), lines[::-1])  # in any order
        run.metrics.write_text('{"step": 0, "train/loss": 1.0}\n{"step": 50, "validation/accuracy": 0.25}\n')
    with pytest.raises(SystemExit, match="sft is interrupted"):
        published.store("headline", [sweep.path])
    for name in jobs:
        write_json(sweep.run(name).finished, {})
    # A process of its own knows no settings but those that the module imports.
    code = "import sys; from pathlib import Path; from benchmarks import published; "
    code += "published.FOLDER = Path(sys.argv[1]); published.store('headline', [Path(sys.argv[2])])"
    subprocess.run([sys.executable, "-c", code, tmp_path / "published", sweep.path], check=True, cwd=ROOT)
    found = published.load(tmp_path / "published" / "headline.json.xz")
    assert [run.name for run in found.runs] == ["sft", "grpo"] and found.commands == [
        "python train.py -m sweep=headline"
    ]
    assert found.runs[0].texts == {"trained": expected} and found.runs[0].modality == "mri"
    assert found.runs[0].curves == {"validation/accuracy": [[50, 0.25]]}
    assert found.records() == RECORDS
    (line,) = {line for line in found.runs[1].predictions(RECORDS)["trained"] if line.record == RECORDS[7].id}
    assert line.text == expected[7] and line.image == RECORDS[7].image_key
    with pytest.raises(SystemExit, match="phantoms have changed"):
        replace(found, digest="other").records()
    with pytest.raises(SystemExit, match="a sweep is named twice"):
        published.store("headline", [sweep.path, sweep.path])


def finished_sweep(place: Path, command: list[str], jobs: dict[str, Job]) -> SweepDirectory:
    """Adds runs in Think-After that answered nothing to the sweep in ``place``."""
    sweep = SweepDirectory(place)
    sweep.add(Manifest("m", "reasoning", "modality", command, list(jobs), jobs))
    for name, job in jobs.items():
        run = RunDirectory(sweep.path / name)
        words = [f"data.test_images_per_modality={IMAGES}", "reasoning=think_after", *job.overrides]
        run.create(OmegaConf.structured(composed("train", *words)), [], {"data_fingerprint": "-"})
        (run.path / "predictions").mkdir()
        lines = [prediction(record, Condition.TRAINED, ReasoningMode.THINK_AFTER, "", 5, False) for record in RECORDS]
        write_predictions(run.predictions("trained"), lines)
        run.metrics.write_text("")
        write_json(run.finished, {})
    return sweep


def job(name: str, axes: dict[str, str], *overrides: str) -> dict[str, Job]:
    return {name: Job(name, axes, overrides)}


def test_sweeps_are_stored_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GRPO, and SFT with and without rationales, which GRPO does not have."""
    monkeypatch.setattr(published, "FOLDER", tmp_path / "published")
    sft = {}
    for value in ("false", "true"):
        sft |= job(value, {"algorithm.rationale": value}, "algorithm=sft", f"algorithm.rationale={value}")
    finished_sweep(tmp_path / "a", ["sweep=a"], job("g", {"reasoning": "think_after"}, "algorithm=grpo"))
    finished_sweep(tmp_path / "b", ["sweep=b"], sft)
    found = published.load(published.store("reasoning_modes", [tmp_path / "a", tmp_path / "b"]))
    assert found.commands == ["python train.py -m sweep=a", "python train.py -m sweep=b"]
    assert [run.axes for run in found.runs] == [
        {"reasoning": "think_after", "algorithm.rationale": value} for value in ("", "false", "true")
    ]


def test_a_setting_that_two_commands_fix_differently_is_an_axis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "FOLDER", tmp_path / "published")
    for value in ("false", "true"):
        words = ["algorithm=sft", f"algorithm.rationale={value}"]
        finished_sweep(tmp_path / value, [*words, "reasoning=think_after"], job("s", {"seed": "0"}, *words))
    found = published.load(published.store("reasoning_modes", [tmp_path / "false", tmp_path / "true"]))
    assert [run.axes for run in found.runs] == [
        {"seed": "0", "algorithm.rationale": value} for value in ("false", "true")
    ]


def test_runs_that_nothing_distinguishes_are_not_stored_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "FOLDER", tmp_path / "published")
    for place in ("a", "b"):
        finished_sweep(tmp_path / place, ["sweep=m"], job("s", {"seed": "0"}, "algorithm=sft"))
    with pytest.raises(SystemExit, match="s and b/s have the same axes"):
        published.store("reasoning_modes", [tmp_path / "a", tmp_path / "b"])


def test_seeds_are_added_to_what_was_stored_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "FOLDER", tmp_path / "published")
    for seed in ("0", "1"):
        finished_sweep(tmp_path / seed, [f"seed={seed}"], job(f"s{seed}", {"seed": seed}, "algorithm=sft"))
    file = published.store("m", [tmp_path / "0"])
    both = published.load(published.store("m", [file, tmp_path / "1"]))
    assert [run.axes for run in both.runs] == [{"seed": "0"}, {"seed": "1"}]
    assert both.commands == ["python train.py -m seed=0", "python train.py -m seed=1"] and len(both.records()) > 0
    assert published.load(published.store("m", [file, tmp_path / "1"])) == both  # it has these runs
    lines = [prediction(record, Condition.TRAINED, ReasoningMode.THINK_AFTER, "A", 5, False) for record in RECORDS]
    write_predictions(RunDirectory(tmp_path / "1" / "s1").predictions("trained"), lines)
    with pytest.raises(SystemExit, match="s1 has other completions than those stored as s1"):
        published.store("m", [file, tmp_path / "1"])
    finished_sweep(tmp_path / "2", ["x"], job("s2", {"seed": "2", "reasoning": "no_think"}, "algorithm=sft"))
    with pytest.raises(SystemExit, match="s0 was stored without reasoning"):
        published.store("m", [file, tmp_path / "2"])


def test_the_runs_of_earlier_commands_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "FOLDER", tmp_path / "published")
    for seed in ("0", "1"):
        sweep = finished_sweep(tmp_path, [f"seed={seed}"], job(seed, {"seed": seed}, "algorithm=sft"))
    waiting = job("2", {"seed": "2"}, "algorithm=sft")
    sweep.add(Manifest("m", "reasoning", "modality", ["seed=2"], ["2"], waiting))
    sweep.add(Manifest("m", "reasoning", "modality", ["seed=1"], ["1"]))
    assert [run.axes for run in published.load(published.store("m", [tmp_path])).runs] == [{"seed": "0"}, {"seed": "1"}]
