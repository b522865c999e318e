"""``evaluate.py compare=[A,B]``: a paired test of two runs on the records that both answered. Loads no torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from medr1.atomic_write import read_json, write_json, write_text
from medr1.config.override_text import shell_word
from medr1.config.settings import EvaluateConfig
from medr1.errors import ConfigError, DataError
from medr1.evaluation.metrics import compare, summarise
from medr1.evaluation.predictions import Condition, Prediction, read_predictions
from medr1.reporting.comparison_table import render_comparison
from medr1.runs.run_directory import RunDirectory
from medr1.workflows.track_files import track_files

_CONTROLS = (Condition.BLANK_IMAGE, Condition.OPTION_PRIOR)


def compare_runs(cfg: EvaluateConfig, directory: Path) -> None:
    """Compares the models of the two runs ``cfg.compare`` and writes the result into ``directory``.

    The model of a training is compared after training, that of an evaluation as it was evaluated. Only records that
    both runs answered are compared; how many of each run are left out is part of the result.

    Raises:
        ConfigError: not two run directories. DataError: a run without predictions, no record in common, or a record
            that is another question in the other run.
    """
    assert cfg.compare is not None
    if len({Path(path).resolve() for path in cfg.compare}) != 2 or len(cfg.compare) != 2:
        raise ConfigError(f"compare={cfg.compare}: compares two different runs; give compare=[RUN_A,RUN_B]")
    runs = [RunDirectory(Path(path).absolute()) for path in cfg.compare]
    conditions = [_condition(run) for run in runs]
    predictions = [_predictions(run, condition) for run, condition in zip(runs, conditions, strict=True)]
    common = predictions[0].keys() & predictions[1].keys()
    if not common:
        raise DataError(
            f"{runs[0].path} and {runs[1].path} have no test record in common; evaluate both on the same data: "
            f"evaluate.py {shell_word('run', runs[1].path)} with the data of the other one"
        )
    a, b = ([line for record, line in of_run.items() if record in common] for of_run in predictions)
    comparison = replace(compare(a, b), a=runs[0].path.name, b=runs[1].path.name)
    summaries = summarise(a), summarise(b)
    controls = [
        {condition: summarise(lines) for condition in _CONTROLS if (lines := _control(run, condition, common))}
        for run in runs
    ]
    left_out = [len(of_run) - len(common) for of_run in predictions]
    fingerprints = [str(read_json(run.environment)["data_fingerprint"]) for run in runs]
    table = render_comparison(summaries, controls, comparison, left_out, fingerprints[0] == fingerprints[1])
    sides = [
        {
            "run": str(run.path),
            "condition": str(condition),
            "data_fingerprint": data,
            "records_left_out": missing,
            "summary": summary.to_dict(),
            "controls": {name: control.to_dict() for name, control in of_run.items()},
        }
        for run, condition, data, missing, summary, of_run in zip(
            runs, conditions, fingerprints, left_out, summaries, controls, strict=True
        )
    ]
    write_json(directory / "comparison.json", {"a": sides[0], "b": sides[1], "comparison": comparison.to_dict()})
    write_text(directory / "results.md", table.to_markdown())
    console = Console(width=100, markup=False)
    console.print(table)
    console.print(f"comparison: {directory}", soft_wrap=True, highlight=False)
    overall = comparison.overall
    metrics = {
        "compare/difference": overall.difference.value,
        "compare/p": overall.p,
        "compare/records": float(overall.n),
        "compare/a/accuracy": summaries[0].overall.accuracy.value,
        "compare/b/accuracy": summaries[1].overall.accuracy.value,
    }
    tags = {"compare": f"{runs[0].path} {runs[1].path}"}
    track_files(cfg.tracking, directory, ("comparison.json", "results.md"), metrics, tags, console)


def _condition(run: RunDirectory) -> Condition:
    """``trained`` of a training or of the evaluation of one, ``base`` of a model that was evaluated as it is."""
    if not run.config.is_file():
        raise ConfigError(f"compare: {run.path} is no run directory: it has no config.yaml")
    found = [c for c in (Condition.TRAINED, Condition.BASE) if run.predictions(c).is_file()]
    if not found or not run.finished.is_file():
        raise DataError(f"compare: {run.path} is not finished; continue it with {shell_word('resume', run.path)}")
    return found[0]


def _predictions(run: RunDirectory, condition: Condition) -> dict[str, Prediction]:
    return {line.record: line for line in read_predictions(run.predictions(condition))}


def _control(run: RunDirectory, condition: Condition, records: Collection[str]) -> list[Prediction]:
    """The predictions of a control for these records; none if the run does not have it."""
    if not run.predictions(condition).is_file():
        return []
    return [line for record, line in _predictions(run, condition).items() if record in records]
