"""The methods side by side, on the embedded world: ``python -m benchmarks.methods``.

    curves SWEEP   what the runs of a sweep over algorithm and seed measured on their validation records, at the last
                   evaluation: means over seeds with the lowest and the highest seed
    seconds        seconds a training step. The methods take turns, round after round, in one process; medians with
                   quartiles over the steps of all rounds, and the ratio to GRPO in the same round

The table of docs/guides/algorithms.md is from

    python train.py -m sweep=headline algorithm=grpo,gdpo,papo,sapo,rloo,reinforce_pp,drpo,noisy_rollout,sft \\
        seed=0,1,2 reasoning=no_think trainer.max_steps=300 trainer.eval_steps=50 data.validation_fraction=0.1 \\
        evaluation.validation_limit=10 evaluation.limit=20 evaluation.shuffled_image=false
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean, median

from benchmarks.published import finished_runs
from benchmarks.quartiles import spread
from medr1.config.settings import TrainConfig
from medr1.runs.run_directory import RunDirectory
from medr1.runs.sweep import SweepDirectory
from medr1.tracking.metrics_file import MetricsFile
from medr1.workflows.components import checked
from medr1.workflows.compose import train_config
from medr1.workflows.library_logs import silence_library_logs

METHODS = ("grpo", "gdpo", "papo", "sapo", "rloo", "reinforce_pp", "drpo", "noisy_rollout", "sft")
COLUMNS = {
    "accuracy": "validation/accuracy",
    "blank image": "validation/blank_image_accuracy",
    "image dependence": "validation/image_dependence",
    "length": "validation/completion_length",
}


def last_values(sweep: SweepDirectory) -> dict[str, dict[str, list[float]]]:
    """For each method and column, the last value of each seed's finished run."""
    manifest = sweep.read()
    found: dict[str, dict[str, list[float]]] = {}
    for name, run in finished_runs(sweep).items():
        curves = MetricsFile(run.metrics).read()
        of_method = found.setdefault(manifest.jobs[name].axes["algorithm"], {column: [] for column in COLUMNS})
        for column, metric in COLUMNS.items():
            of_method[column].append(curves[metric][-1][1])
    return found


def print_curves(sweep: SweepDirectory) -> None:
    print(f"| `algorithm=` | {' | '.join(COLUMNS)} |")
    print(f"|---|{'---|' * len(COLUMNS)}")
    for method, columns in last_values(sweep).items():
        cells = []
        for column, values in columns.items():
            scale = 1 if column == "length" else 100
            low, middle, high = (scale * pick(values) for pick in (min, mean, max))
            cells.append(f"{middle:.1f} [{low:.1f}, {high:.1f}]")
        print(f"| `{method}` | {' | '.join(cells)} |")


def step_seconds(method: str, steps: int, reasoning: str) -> list[float]:
    """Seconds of each step but the first two of a training from the default base."""
    from medr1.workflows.train import train

    words = [
        *(f"algorithm={method}", f"reasoning={reasoning}", f"trainer.max_steps={steps}", f"trainer.save_steps={steps}"),
        *("evaluation.limit=1", "evaluation.blank_image=false", "evaluation.shuffled_image=false"),
        *("data.test_images_per_modality=1", "tracking=none"),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        run = RunDirectory(Path(scratch) / "run")
        train(checked(train_config(words), TrainConfig), run.path, words)
        return [value for _, value in MetricsFile(run.metrics).read()["step_time"]][2:]


def print_seconds(methods: list[str], rounds: int, steps: int, reasoning: str) -> None:
    times: dict[str, list[list[float]]] = {method: [] for method in methods}
    for _ in range(rounds):
        for method in methods:
            times[method].append(step_seconds(method, steps, reasoning))
    print("| `algorithm=` | seconds a step | divided by GRPO's |")
    print("|---|---|---|")
    for method, of_rounds in times.items():
        ratios = [median(own) / median(grpo) for own, grpo in zip(of_rounds, times["grpo"], strict=True)]
        row = spread([second for of_round in of_rounds for second in of_round], ".2f")
        print(f"| `{method}` | {row} | {median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] |")


def main() -> None:
    silence_library_logs()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("curves").add_argument("sweep", type=Path, help="directory of the sweep")
    seconds = commands.add_parser("seconds")
    seconds.add_argument("--method", choices=METHODS[1:], action="append", help="beside grpo; default: all")
    seconds.add_argument("--rounds", type=int, default=5)
    seconds.add_argument("--steps", type=int, default=12, help="of each training; the first two are not counted")
    seconds.add_argument("--reasoning", default="no_think", help="think_before, no_think or think_after")
    given = parser.parse_args()
    if given.command == "curves":
        print_curves(SweepDirectory(given.sweep))
    else:
        print_seconds(["grpo", *(given.method or METHODS[1:])], given.rounds, given.steps, given.reasoning)


if __name__ == "__main__":
    main()
