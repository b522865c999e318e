"""The results on phantoms, from the published runs: docs/med-r1/results.md, its figures, and the README's summary.

    python -m benchmarks.results                       writes them
    python -m benchmarks.results store NAME DIR [DIR]  adds the finished sweeps in DIR to the published runs as NAME;
                                                       a DIR may also be a published file, to which seeds are added

docs/med-r1/protocol.md says what is compared, and which result counts for or against a claim. A part of the page whose
runs are missing says so.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.claims import SQUARES, Claim, claims, plateau_mark
from benchmarks.outcomes import AWAY, HOME, LENIENT, RATIONALE, Square, Sweep, crossing, false_claims, false_share
from benchmarks.published import FOLDER, PublishedRun, PublishedSweep, load, store
from benchmarks.result_figures import MAPS, Map, curves_figure, gain_figures, map_figure
from medr1.atomic_write import write_text
from medr1.data.sources.phantoms import PhantomsConfig
from medr1.domain.reasoning import ReasoningMode
from medr1.evaluation.bootstrap import Scores
from medr1.evaluation.predictions import Condition
from medr1.reporting.figures import save_png
from medr1.reporting.formatting import axis_label, label, percent, with_interval

ROOT = Path(__file__).resolve().parents[1]
README, PAGE, IMAGES = ROOT / "README.md", ROOT / "docs" / "med-r1" / "results.md", ROOT / "docs" / "images"
NO_RUNS = "Not run yet."
ONE_SEED = "One seed: the intervals are over images alone."
EQUAL_COMPUTE = "equal_compute"  # the sweep of SFT alone that is compared with GRPO of the headline
DEPENDENCE = "validation/image_dependence"
METHODS = {  # by algorithm and algorithm.rationale
    ("sft", "false"): "SFT on letters",
    ("sft", "true"): "SFT with rationales",
}


def figure(name: str, text: str) -> str:
    """The link of the page to a figure that ``write_figures`` draws."""
    return f"![{text}](../images/{name}.png)"


def crossing_text(x: Sequence[float], differences: Sequence[Scores], column: int) -> str:
    """The crossing with its interval, from the differences at each x."""
    found = crossing(x, np.array([scores.value[column] for scores in differences]))
    resampled = [crossing(x, of_all) for of_all in np.stack([s.resampled[column] for s in differences], axis=1)]
    crossed = [value for value in resampled if value is not None]
    share = f"{100 * len(crossed) / len(resampled):.0f} % of the resamples"
    if found is None:
        text = f"the curves do not cross (they do in {share})."
    else:
        low, high = np.quantile(crossed, [0.025, 0.975])
        text = f"the curves cross at {found:.3g}; they do in {share}, 95 % of these at {low:.3g} to {high:.3g}."
    undecided = [scores.estimate(column).is_inconclusive for scores in differences]
    if all(undecided):
        return f"{text} None of these differences is decided, so neither is the crossing."
    if found is not None:
        below = [is_open for is_open, at in zip(undecided, x, strict=True) if at < found]
        above = [is_open for is_open, at in zip(undecided, x, strict=True) if at > found]
        for where, side in (("below", below), ("above", above)):
            if all(side):
                text += f" No difference {where} it is decided, so an advantage of either method there is not shown."
    return text


def map_part(sweep: Sweep, of: Map) -> str:
    """GRPO against SFT at home and away, as a function of the values of an axis."""
    rows = [f"| {of.title} | GRPO | SFT | GRPO - SFT | GRPO, others | SFT, others | GRPO - SFT, others |"]
    rows.append("|---|---|---|---|---|---|---|")
    values = of.values(sweep)
    bases = [_base(sweep, sweep.seeds(**{of.axis: value})) for value in values]
    is_one_base = len(set(bases)) == 1
    differences = []
    for value, base in zip(values, bases, strict=True):
        grpo, sft = (sweep.seeds(**{of.axis: value, "algorithm": method}) for method in ("grpo", "sft"))
        accuracies, between = [sweep.accuracy(runs) for runs in (grpo, sft)], sweep.difference(sft, grpo)
        differences.append(between)
        cells = []
        for column in (HOME, AWAY):
            cells += [with_interval(scores.estimate(column)) for scores in accuracies]
            cells.append(with_interval(between.estimate(column), "+"))
        mark = ("" if is_one_base else f" (base {base})") + plateau_mark((*grpo, *sft))
        rows.append(f"| {of.label(value)}{mark} | {' | '.join(cells)} |")
    text = [figure(sweep.published.name, f"GRPO and SFT: {of.title.lower()}"), "\n".join(rows)]
    if is_one_base:
        text.append(f"The base with lenient parsing: {bases[0]}.")
    for column, where in ((HOME, "On the modality trained on"), (AWAY, "On the others")):
        text.append(f"{where}: {crossing_text([of.number(value) for value in values], differences, column)}")
    return "\n\n".join(text)


def shortcut_part(sweep: Sweep, of: Map) -> str:
    """The map, and what the shortcut costs each method: the accuracy with the largest share minus that without it."""
    values = of.values(sweep)
    costs = {
        method: sweep.difference(*(sweep.seeds(**{of.axis: v, "algorithm": method}) for v in (values[0], values[-1])))
        for method in ("grpo", "sft")
    }
    rows = {label(method): cost for method, cost in costs.items()} | {"GRPO - SFT": costs["grpo"] - costs["sft"]}
    titles = f"Share {of.label(values[-1])} minus share {of.label(values[0])}"
    lines = [f"| {titles} | the modality trained on | the others |", "|---|---|---|"]
    for name, cost in rows.items():
        lines.append(f"| {name} | {' | '.join(with_interval(cost.estimate(c), '+') for c in (HOME, AWAY))} |")
    return "\n\n".join([map_part(sweep, of), "\n".join(lines)])


def _base(sweep: Sweep, runs: Sequence[PublishedRun]) -> str:
    scores = sweep.accuracy(runs[:1], LENIENT)
    return f"{percent(float(scores.value[HOME]))}, on the others {percent(float(scores.value[AWAY]))}"


def headline_part(sweep: Sweep) -> str:
    """The methods side by side, with controls and what is left of the gain when the base is parsed leniently.

    A method is compared with GRPO on the seeds that both have.
    """
    grpo = sweep.seeds(algorithm="grpo")
    first = grpo[:1]  # its base is that of all, where a method that goes on from SFT has the model of SFT
    titles = ("", "seeds", "accuracy", "gain over the base with lenient parsing", "minus GRPO")
    lines = [f"| {' | '.join((*titles, 'blank image', 'shuffled image'))} |", "|---|---|---|---|---|---|---|"]
    for name, condition in (("base", Condition.BASE), ("base with lenient parsing", LENIENT)):
        lines.append(f"| {name} | | {with_interval(sweep.accuracy(first, condition).estimate(HOME))} | | | | |")
    for method in sweep.values("algorithm"):
        runs = sweep.seeds(algorithm=method)
        gain = sweep.difference(first * len(runs), runs, (LENIENT, Condition.TRAINED))
        accuracy = sweep.accuracy(runs).estimate(HOME)
        cells = [str(len(runs)), with_interval(accuracy), with_interval(gain.estimate(HOME), "+")]
        cells.append("" if method == "grpo" else _minus(sweep, grpo, runs))
        for control in (Condition.BLANK_IMAGE, Condition.SHUFFLED_IMAGE):
            has = all((run.name, control) in sweep.outcomes for run in runs)
            cells.append(percent(float(sweep.accuracy(runs, control).value[HOME])) if has else "")
        lines.append(f"| {method_name(method)}{plateau_mark(runs)} | {' | '.join(cells)} |")
    text = [figure("headline_curves", "Validation accuracy along training"), "\n".join(lines)]
    if sft := sweep.seeds(algorithm="sft"):
        text.append(_seconds(grpo, sft))
    return "\n\n".join(text)


def _minus(sweep: Sweep, a: Sequence[PublishedRun], b: Sequence[PublishedRun]) -> str:
    """``b`` minus ``a`` on the seeds that both have."""
    common = {run.axes["seed"] for run in a} & {run.axes["seed"] for run in b}
    of_a, of_b = ([run for run in runs if run.axes["seed"] in common] for runs in (a, b))
    return with_interval(sweep.difference(of_a, of_b).estimate(HOME), "+")


def _seconds(grpo: Sequence[PublishedRun], sft: Sequence[PublishedRun]) -> str:
    """How long runs took, and what the protocol says of training SFT for as many seconds as GRPO."""
    grpo_minutes, sft_minutes = (median(run.seconds or math.nan for run in runs) / 60 for runs in (grpo, sft))
    times = f"A run of GRPO took {grpo_minutes:.0f} min, one of SFT {sft_minutes:.0f} min (medians, with evaluation)."
    if plateau_mark(sft):
        return f"{times} SFT was not at its plateau, so training it for as long as GRPO could change the comparison."
    return f"{times} SFT was at its plateau, so it was not trained for as long as GRPO."


def equal_compute_part(headline: Sweep, longer: Sweep) -> str:
    """SFT of ``longer``, trained for as many seconds as GRPO of ``headline``, against the latter."""
    if headline.published.digest != longer.published.digest:
        raise SystemExit(f"{longer.published.name} has other test records than {headline.published.name}")
    sft = [replace(run, name=f"{longer.published.name}/{run.name}") for run in longer.seeds()]
    both = Sweep(replace(headline.published, runs=[*headline.seeds(algorithm="grpo"), *sft]))
    steps = sft[0].curves["validation/accuracy"][-1][0]
    lines = ["| | seeds | accuracy | minus GRPO |", "|---|---|---|---|"]
    accuracy = with_interval(both.accuracy(sft).estimate(HOME))
    minus = _minus(both, both.seeds(algorithm="grpo"), sft)
    lines.append(f"| SFT, {steps:,} steps{plateau_mark(sft)} | {len(sft)} | {accuracy} | {minus} |")
    return "\n".join(lines)


def image_dependence_part(sweep: Sweep) -> str:
    """What the own image is worth: accuracy with it minus that with a blank or a shuffled image."""
    steps = [step for step, _ in sweep.published.runs[0].curves[DEPENDENCE]]
    shown = [steps[0], *steps[len(steps) // 4 :: max(1, len(steps) // 4)]]
    shown = [*dict.fromkeys([*shown, steps[-1]])]
    lines = ["| | " + " | ".join(f"step {step}" for step in shown) + " | test, own - blank | test, own - shuffled |"]
    lines.append("|---" * (len(shown) + 3) + "|")
    for method in sweep.values("algorithm"):
        runs = sweep.seeds(algorithm=method)
        curves = [dict(run.curves[DEPENDENCE]) for run in runs]
        cells = [_range([curve[step] for curve in curves]) for step in shown]
        for control in (Condition.BLANK_IMAGE, Condition.SHUFFLED_IMAGE):
            cells.append(with_interval(sweep.difference(runs, runs, (control, Condition.TRAINED)).estimate(HOME), "+"))
        lines.append(f"| {method_name(method)}{plateau_mark(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _range(values: Sequence[float]) -> str:
    """The mean over the seeds, with the smallest and the largest value."""
    mean = percent(float(np.mean(values)), "+")
    return mean if len(values) == 1 else f"{mean} ({percent(min(values), '+')} to {percent(max(values), '+')})"


def square_part(sweep: Sweep, axis: str) -> str:
    """Means over the values that are trained on, and the matrices of gains with one scale of colours."""
    kinds = [value for value in ("false", "true") if any(run.axes.get(RATIONALE) == value for run in sweep.seeds())]
    letters = sweep.by_sft["false"]
    square = Square(letters, axis)
    grpo, sft = (letters.seeds(algorithm=method) for method in ("grpo", "sft"))
    rows = {"GRPO": (square.accuracy("grpo"), grpo, "")}
    for kind in kinds or ["false"]:
        of_kind, name = sweep.by_sft[kind], method_name("sft", kind if kinds else "")
        runs = of_kind.seeds(algorithm="sft")
        rows[name] = (Square(of_kind, axis).accuracy("sft"), runs, "")
        rows[f"GRPO - {name}"] = (Square(of_kind, axis).difference(), [*grpo, *runs], "+")
    rows["GRPO - base with lenient parsing"] = (square.gain(), grpo, "+")
    for method, runs in (("grpo", grpo), ("sft", sft)):
        if all((run.name, Condition.BLANK_IMAGE) in sweep.outcomes for run in runs):
            name = method_name(method, "false" if kinds and method == "sft" else "")
            rows[f"{name}, blank image"] = (square.accuracy(method, Condition.BLANK_IMAGE), [], "")
    lines = ["| | trained on | others |", "|---|---|---|"]
    for name, (scores, runs, sign) in rows.items():
        cells = [with_interval(scores.estimate(c), sign) for c in (HOME, AWAY)]
        lines.append(f"| {name}{plateau_mark(runs)} | {' | '.join(cells)} |")
    lines += ["", "| trained on | GRPO - SFT on it | GRPO - SFT on the others |", "|---|---|---|"]
    for row in sweep.values(axis):
        of_row = square.differences(row)
        lines.append(f"| {label(row)} | {' | '.join(with_interval(of_row.estimate(c), '+') for c in (HOME, AWAY))} |")
    links = [
        figure(f"{sweep.published.name}_{method}", f"{label(method)}: gain over the base")
        for method in sweep.values("algorithm")
    ]
    return "\n\n".join(["\n".join(lines), *links])


def reasoning_part(sweep: Sweep) -> str:
    """Each mode and method: accuracy, gain over the base, and false claims in rationales."""
    lines = [
        "| | base with lenient parsing | accuracy | gain | false claims minus those of the base |",
        "|---|---|---|---|---|",
    ]
    methods = {(run.reasoning, *_method(run)): None for run in sweep.published.runs}
    for mode, *method in methods:
        runs = [run for run in sweep.seeds(reasoning=mode) if _method(run) == tuple(method)]
        before, after = (sweep.accuracy(of, c).estimate(HOME) for of, c in ((runs[:1], LENIENT), (runs, "trained")))
        gain = sweep.gain(runs).estimate(HOME)
        has_claims = mode != ReasoningMode.NO_THINK and method != ["sft", "false"]  # letters alone teach no rationale
        false = ""
        if has_claims:
            base = percent(false_share(sweep, runs[:1], Condition.BASE))
            false = f"{with_interval(false_claims(sweep, runs).estimate(0), '+')}, base {base}"
        cells = [with_interval(before), with_interval(after), with_interval(gain, "+"), false]
        lines.append(f"| {label(mode)}, {method_name(*method)}{plateau_mark(runs)} | {' | '.join(cells)} |")
    for mode in dict.fromkeys(run.reasoning for run in sweep.published.runs):
        grpo = sweep.seeds(reasoning=mode, algorithm="grpo")
        letters = sweep.seeds(reasoning=mode, algorithm="sft", **{RATIONALE: "false"})
        if grpo and letters:
            difference = with_interval(sweep.difference(letters, grpo).estimate(HOME), "+")
            mark = plateau_mark([*grpo, *letters])
            lines.append(f"| {label(mode)}, GRPO - {method_name(*_method(letters[0]))}{mark} | | {difference} | | |")
    return "\n".join(lines)


def rationales_part(sweep: Sweep) -> str:
    """What rationales are worth to SFT: with rationales minus on letters, in each thinking mode."""
    lines = ["| | SFT with rationales - SFT on letters |", "|---|---|"]
    for mode in (ReasoningMode.THINK_BEFORE, ReasoningMode.THINK_AFTER):
        letters, rationales = (
            sweep.seeds(reasoning=mode, algorithm="sft", **{RATIONALE: value}) for value in ("false", "true")
        )
        if letters and rationales:
            effect = sweep.difference(letters, rationales).estimate(HOME)
            mark = plateau_mark([*letters, *rationales])
            lines.append(f"| {label(mode)}{mark} | {with_interval(effect, '+')} |")
    return "\n".join(lines) if len(lines) > 2 else NO_RUNS


def _method(run: PublishedRun) -> tuple[str, str]:
    """The algorithm and what SFT is trained on. In No-Think there are letters alone, whatever is set."""
    has_rationale = run.reasoning != ReasoningMode.NO_THINK
    return run.axes["algorithm"], run.axes.get(RATIONALE, "") if has_rationale else ""


def method_name(algorithm: str, rationale: str = "") -> str:
    return METHODS.get((algorithm, rationale), label(algorithm))


def claims_part(found: Sequence[Claim | str]) -> str:
    lines = ["| claim | effect in points | of each seed | verdict |", "|---|---|---|---|"]
    for claim in found:
        if isinstance(claim, str):
            lines.append(f"| {claim} | | | {NO_RUNS.lower().rstrip('.')} |")
        else:
            verdict = claim.verdict if "cannot" in claim.verdict else f"**{claim.verdict}**"
            effect = with_interval(claim.effect, "+") + claim.mark
            verdict += f", {claim.detail}" if claim.detail else ""
            seeds = ", ".join(percent(value, "+") for value in claim.each_seed) if claim.seeds > 1 else "one seed"
            lines.append(f"| {claim.text} | {effect} | {seeds} | {verdict} |")
    return "\n".join(lines)


PARTS: dict[str, tuple[str, Callable[[Sweep], str]]] = {  # marker: the sweep and how its part is written
    **{name: (name, partial(map_part, of=of)) for name, of in MAPS.items()},
    "shortcut": ("shortcut", partial(shortcut_part, of=MAPS["shortcut"])),
    "headline": ("headline", headline_part),
    "image_dependence": ("headline", image_dependence_part),
    "reasoning_modes": ("reasoning_modes", reasoning_part),
    "rationales": ("reasoning_modes", rationales_part),
    **{name: (name, partial(square_part, axis=axis)) for name, (axis, _) in SQUARES.items()},
}


def parts(sweeps: Mapping[str, Sweep], found: Sequence[Claim | str]) -> dict[str, str]:
    """The parts of the page by their marker. ``found``: the claims."""
    texts = {"claims": claims_part(found)}
    for marker, (name, part) in PARTS.items():
        texts[marker] = NO_RUNS
        if name in sweeps:
            texts[marker] = part(sweeps[name]) + (f"\n\n{ONE_SEED}" if sweeps[name].seed_count == 1 else "")
            if marker == name:
                texts[marker] += f"\n\n{commands_text(sweeps[name].published)}"
    texts[EQUAL_COMPUTE] = NO_RUNS
    if {"headline", EQUAL_COMPUTE} <= sweeps.keys():
        longer = sweeps[EQUAL_COMPUTE]
        table = equal_compute_part(sweeps["headline"], longer)
        texts[EQUAL_COMPUTE] = f"{table}\n\n{commands_text(longer.published)}"
    return texts


def commands_text(sweep: PublishedSweep) -> str:
    """The commit that has made the runs, and the commands that make them again."""
    is_latest = sweep.version == PhantomsConfig().question_version
    version = "" if is_latest else f" data.question_version={sweep.version}"
    commands = "\n".join(c if "question_version" in c else f"{c}{version}" for c in sweep.commands)
    made = f"Runs of commit {', '.join(commit[:7] for commit in sweep.commits)}."
    return f"{made} The command that makes them again with this version:\n\n```bash\n{commands}\n```"


def summary_part(sweeps: Mapping[str, Sweep], found: Sequence[Claim | str]) -> str:
    """The first thing to know, for the README: the map of the number of images, how many claims are decided, and what
    is left of training on one value of an axis on its other values."""
    verdicts = Counter("not run yet" if isinstance(claim, str) else claim.verdict.split(" here")[0] for claim in found)
    counts = "; ".join(f"{name}: {count}" for name, count in verdicts.items())
    lines = [
        f"The {len(found)} tests of the [claims of the paper](docs/med-r1/results.md#claims-of-the-paper): {counts}."
    ]
    if "scarcity" in sweeps:
        lines = ["![GRPO and SFT by number of training images](docs/images/scarcity.png)", *lines]
    if rows := [_square_row(sweeps[name], axis) for name, (axis, _) in SQUARES.items() if name in sweeps]:
        titles = (
            "GRPO minus SFT on it",
            "GRPO minus base (lenient parsing) on the others",
            "GRPO minus SFT on the others",
        )
        lines.append("\n".join([f"| trained on one | {' | '.join(titles)} |", "|---|---|---|---|", *rows]))
    return "\n\n".join(lines)


def _square_row(sweep: Sweep, axis: str) -> str:
    letters = sweep.by_sft["false"]
    square, values = Square(letters, axis), len(sweep.values(axis))
    seeds = "one seed" if sweep.seed_count == 1 else f"{sweep.seed_count} seeds"
    mode = label(sweep.published.runs[0].reasoning)
    difference, gain = square.difference(), square.gain()
    shown = difference.estimate(HOME), gain.estimate(AWAY), difference.estimate(AWAY)
    cells = " | ".join(with_interval(estimate, "+") for estimate in shown)
    return f"| {axis_label(axis)} of {values}, in {mode} ({seeds}) | {cells} |"


def write_page(page: Path, found: Mapping[str, str]) -> None:
    """Replaces what stands between ``<!-- results: NAME -->`` and ``<!-- end -->`` by the part of that name."""
    text = page.read_text(encoding="utf-8")
    for name, part in found.items():
        pattern = rf"(<!-- results: {name} -->\n).*?(<!-- end -->)"
        if not re.search(pattern, text, re.DOTALL):
            raise SystemExit(f"{page} has no place for {name}: <!-- results: {name} --> and <!-- end -->")
        text = re.sub(pattern, lambda found, part=part: f"{found[1]}\n{part}\n\n{found[2]}", text, flags=re.DOTALL)  # type: ignore[misc]
    write_text(page, text)


def write_figures(folder: Path, sweeps: Mapping[str, Sweep]) -> None:
    for name, of in MAPS.items():
        if name in sweeps:
            save_png(map_figure(sweeps[name], of), folder / f"{name}.png")
    for name in SQUARES:
        if name in sweeps:
            for method, figure in gain_figures(sweeps[name]).items():
                save_png(figure, folder / f"{name}_{method}.png")
    if "headline" in sweeps:
        save_png(curves_figure(sweeps["headline"]), folder / "headline_curves.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    stored = commands.add_parser("store")
    stored.add_argument("name", help="name of the file in benchmarks/published")
    stored.add_argument(
        "directories", type=Path, nargs="+", metavar="directory", help="directory of a sweep, or a published file"
    )
    given = parser.parse_args()
    if given.command == "store":
        print(store(given.name, given.directories))
        return
    sweeps = {file.name.removesuffix(".json.xz"): Sweep(load(file)) for file in sorted(FOLDER.glob("*.json.xz"))}
    found = claims(sweeps)
    write_page(PAGE, parts(sweeps, found))
    write_page(README, {"summary": summary_part(sweeps, found)})
    write_figures(IMAGES, sweeps)
    print(f"{PAGE}, {README}")


if __name__ == "__main__":
    main()
