"""Numbers of docs/med-r1/results.md, counted from the published completions without the code that computes the page."""

from __future__ import annotations

import json
import lzma
import re
from statistics import fmean
from typing import Any

import pytest

from benchmarks.claims import claims
from benchmarks.outcomes import Sweep
from benchmarks.published import FOLDER, load
from benchmarks.results import parts, summary_part
from medr1.data.sources.phantoms.records import World, make_records
from tests.command_lines import ROOT

PAGE = (ROOT / "docs" / "med-r1" / "results.md").read_text(encoding="utf-8")


def published(name: str) -> dict[str, Any]:
    file = ROOT / "benchmarks" / "published" / f"{name}.json.xz"
    return json.loads(lzma.decompress(file.read_bytes()))  # type: ignore[no-any-return]


def row(marker: str, first: str) -> list[float]:
    """The numbers of a row, without their intervals."""
    part = PAGE.split(f"<!-- results: {marker} -->")[1].split("<!-- end -->")[0]
    (line,) = re.findall(rf"^\| {first}(?: \(\d+ of \d+ runs not at a plateau\))? \|(.*)\|$", part, re.MULTILINE)
    return [float(cell.split()[0].replace("\N{MINUS SIGN}", "-")) for cell in line.split("|") if cell.strip()]


@pytest.mark.parametrize("images", ["10", "30", "100", "400"])
def test_the_accuracies_by_number_of_images_are_shares_of_the_completions(images: str) -> None:
    sweep = published("scarcity")
    records = make_records(World.TEST, sweep["seed"], sweep["images_per_modality"], version=sweep.get("version", 1))

    def accuracy(method: str, *, at_home: bool) -> float:
        """Mean over the seeds. In No-Think a completion that is not exactly its answer block is wrong."""
        shares = [
            fmean(
                text == f"<answer>{record.answer}</answer>"
                for record, text in zip(records, run["texts"]["trained"], strict=True)
                if (record.modality == "mri") == at_home
            )
            for run in sweep["runs"]
            if run["axes"] == {"algorithm": method, "data.max_train_images": images, "seed": run["axes"]["seed"]}
        ]
        assert len(shares) == 3
        return 100 * fmean(shares)

    grpo, sft, difference, *others = row("scarcity", images)
    assert grpo == pytest.approx(accuracy("grpo", at_home=True), abs=0.051)
    assert sft == pytest.approx(accuracy("sft", at_home=True), abs=0.051)
    assert difference == pytest.approx(accuracy("grpo", at_home=True) - accuracy("sft", at_home=True), abs=0.051)
    assert others[0] == pytest.approx(accuracy("grpo", at_home=False), abs=0.051)
    assert others[1] == pytest.approx(accuracy("sft", at_home=False), abs=0.051)


FORMATS = {
    "think_before": "<think>.*</think><answer>{}</answer>",
    "no_think": "<answer>{}</answer>",
    "think_after": "<answer>{}</answer><think>.*</think>",
}
METHODS = {
    "GRPO": {"algorithm": "grpo"},
    "SFT on letters": {"algorithm": "sft", "algorithm.rationale": "false"},
    "SFT with rationales": {"algorithm": "sft", "algorithm.rationale": "true"},
}


@pytest.mark.parametrize("mode", FORMATS)
def test_the_accuracies_of_the_reasoning_modes_are_shares_of_the_completions(mode: str) -> None:
    sweep = published("reasoning_modes")
    records = make_records(World.TEST, sweep["seed"], sweep["images_per_modality"], version=sweep["version"])
    label = {"think_before": "Think-Before", "no_think": "No-Think", "think_after": "Think-After"}[mode]
    found: dict[str, float] = {}
    for method, axes in METHODS.items():
        shares = [
            fmean(
                bool(re.fullmatch(FORMATS[mode].format(record.answer), text))
                for record, text in zip(records, run["texts"]["trained"], strict=True)
            )
            for run in sweep["runs"]
            if {**axes, "reasoning": mode}.items() <= run["axes"].items()
        ]
        if method == "SFT with rationales" and mode == "no_think":
            assert not shares
            continue
        assert len(shares) == 3
        found[method] = 100 * fmean(shares)
        shown = "SFT" if method == "SFT on letters" and mode == "no_think" else method
        _, accuracy, *_ = row("reasoning_modes", f"{label}, {shown}")
        assert accuracy == pytest.approx(found[method], abs=0.051)
    sft = "SFT" if mode == "no_think" else "SFT on letters"
    (difference,) = row("reasoning_modes", f"{label}, GRPO - {sft}")
    assert difference == pytest.approx(found["GRPO"] - found["SFT on letters"], abs=0.051)


@pytest.mark.long
def test_the_pages_are_those_that_the_command_writes() -> None:
    """Intervals, crossings, marks and claims too, in the results and in the README."""
    sweeps = {file.name.removesuffix(".json.xz"): Sweep(load(file)) for file in sorted(FOLDER.glob("*.json.xz"))}
    found = claims(sweeps)
    expected = {**parts(sweeps, found), "summary": summary_part(sweeps, found)}
    text = PAGE + (ROOT / "README.md").read_text(encoding="utf-8")
    for name, part in expected.items():
        assert text.split(f"<!-- results: {name} -->\n\n")[1].split("\n\n<!-- end -->")[0] == part, name
