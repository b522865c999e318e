"""From the runs of a sweep to its tables, figures and report, and to its own run in MLflow. Loads no torch."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from medr1.data.sources.phantoms.records import World, make_records
from medr1.domain.records import Record
from medr1.errors import DataError
from medr1.evaluation.matrices import tabulate
from medr1.evaluation.predictions import Condition, read_predictions
from medr1.evaluation.sweep_tables import SweepRun, SweepTables
from medr1.reporting.findings import findings
from medr1.reporting.matrix_tables import render_matrices, to_csv
from medr1.reporting.report import RunLink, Section, write_report
from medr1.reporting.sections import rationale_section, trend_section
from medr1.runs.run_directory import RunDirectory, read_json, write_json, write_text
from medr1.runs.sweep import Manifest, State, SweepDirectory
from medr1.tracking.address import stored_run, without_password
from medr1.tracking.history import History
from medr1.tracking.tracker import Tracker
from medr1.workflows.session import send_rest

log = logging.getLogger(__name__)

_CURVES = ("train/reward", "train/completions/mean_length", "train/loss")


def report_sweep(place: Path) -> None:
    """Makes everything that a sweep shows, from the files of those of its runs that are finished.

    Raises:
        ConfigError: no sweep there. DataError: none of its runs is finished, or their predictions do not go together.
    """
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # matplotlib writes PDF with it
    directory = SweepDirectory(place.absolute())
    manifest = directory.read()
    states = directory.states(manifest.jobs)
    finished = [name for name, state in states.items() if state == State.FINISHED]
    if not finished:
        raise DataError(f"{directory.path}: none of its {len(states)} runs is finished; see the job.log of each")
    history = _history(directory)
    if history is not None:  # the curves of the report come from MLflow
        for name in finished:
            send_rest(directory.run(name))
    runs = [_read(directory.run(name), manifest.jobs[name].axes) for name in finished]
    tables = tabulate(runs, manifest.rows, manifest.columns)
    sentences = findings(tables)
    report = write_report(
        directory.report,
        title=manifest.title,
        command=" ".join(["python train.py", *manifest.command]),
        tables=tables,
        findings=sentences,
        runs=[_link(directory, manifest, name, state, history) for name, state in states.items()],
        curves={name: _curves(directory.run(name), history) for name in finished},
        sections=[s for s in (trend_section(tables), _rationales(directory, manifest.rows, finished, runs)) if s],
        facts=_facts(directory, finished),
    )
    write_json(directory.report / "matrices.json", {**asdict(tables), "findings": sentences})
    text = ["\n".join(f"- {sentence}" for sentence in sentences) + "\n"]
    console = Console(width=100)
    for method, table in render_matrices(tables):
        text.append(f"## {method}\n\n{table.to_markdown()}")
        console.print(f"\n{method}", style="bold")
        console.print(table)
    for matrix in tables.matrices:
        write_text(directory.report / f"{matrix.method.replace(' ', '_').replace('/', '-')}.csv", to_csv(matrix))
    write_text(directory.report / "results.md", "\n".join(text))
    for sentence in sentences:
        console.print(f"- {sentence}", highlight=False)
    console.print(f"report: {report}", soft_wrap=True, highlight=False)
    _track(directory, states, tables, console)


def _read(run: RunDirectory, axes: Mapping[str, str]) -> SweepRun:
    files = {condition: run.predictions(condition) for condition in Condition}
    found = {str(condition): read_predictions(file) for condition, file in files.items() if file.is_file()}
    return SweepRun(run.path.name, axes, found)


def _history(directory: SweepDirectory) -> History | None:
    if stored_run(directory.path) is None:
        return None
    uri = _uri(directory)
    history = History(uri)
    if not history.there:
        log.warning(
            "MLflow at %s does not answer: the report has no curves; python evaluate.py sweep=%s makes it whole",
            *(without_password(uri), directory.path),
        )
        return None
    return history


def _uri(directory: SweepDirectory) -> str:
    """Where the sweep is tracked. Its own note leaves out a password, which the configs of its runs have."""
    stored = stored_run(directory.path)
    assert stored is not None
    runs = [directory.run(name) for name in directory.read().jobs]
    uris = [str(_config(run).tracking.uri) for run in runs if run.config.is_file()]
    return next((uri for uri in uris if without_password(uri) == stored.uri), stored.uri)


def _curves(run: RunDirectory, history: History | None) -> dict[str, list[tuple[int, float]]]:
    stored = stored_run(run.path)
    return history.curves(stored, _CURVES) if history and stored else {}


def _link(directory: SweepDirectory, manifest: Manifest, name: str, state: State, history: History | None) -> RunLink:
    run = directory.run(name)
    stored = stored_run(run.path)
    failed = state == State.FAILED and run.log.is_file()
    return RunLink(
        name=name,
        axes=manifest.jobs[name].axes,
        state=state.value,
        seconds=directory.seconds(name),
        directory=os.path.relpath(run.path, directory.report),
        page=history.page(stored) if history and stored else "",
        error=run.log.read_text(encoding="utf-8", errors="replace") if failed else "",
    )


def _rationales(directory: SweepDirectory, row_axis: str, finished: list[str], runs: list[SweepRun]) -> Section | None:
    """On the phantoms, where the truth about every picture is known, what the rationales are worth."""
    records: dict[str, Record] = {}
    for name in finished:
        data: DictConfig = _config(directory.run(name)).data
        if data.name != "phantoms":
            return None
        records |= {r.id: r for r in make_records(World.TEST, data.seed, data.test_images_per_modality)}
    return rationale_section(runs, records, int(data.image_size), row_axis)


def _config(run: RunDirectory) -> DictConfig:
    stored = OmegaConf.load(run.config)
    assert isinstance(stored, DictConfig)
    return stored


def _facts(directory: SweepDirectory, finished: list[str]) -> dict[str, str]:
    """What made the numbers; more than one value means that runs of different versions or data stand together."""
    load_if_exists: dict[str, set[str]] = {}
    for name in finished:
        environment: dict[str, Any] = read_json(directory.run(name).path / "environment.json")
        load_if_exists.setdefault("commit", set()).add(str(environment["git_commit"]))
        load_if_exists.setdefault("data fingerprint", set()).add(str(environment["data_fingerprint"]))
        for library, version in environment["versions"].items():
            load_if_exists.setdefault(library, set()).add(str(version))
    return {key: ", ".join(sorted(values)) for key, values in load_if_exists.items()}


def _track(directory: SweepDirectory, states: Mapping[str, State], tables: SweepTables, console: Console) -> None:
    """The sweep's own run in MLflow: the report, its figures and files, and the numbers that sum it up."""
    stored = stored_run(directory.path)
    if stored is None:
        return
    with Tracker.start(
        _uri(directory),
        stored.experiment,
        directory.path.name,
        directory.path,
        run_id=stored.run_id,
        remedy=f"python evaluate.py sweep={directory.path}",
        must_answer=False,
    ) as tracker:
        numbers: dict[str, float] = {"finished": list(states.values()).count(State.FINISHED), "runs": len(states)}
        for matrix in tables.matrices:
            method = matrix.method.replace(" ", "_")
            for row, mean in matrix.means.items():
                numbers[f"mean/{method}/{row}"] = mean.value
            if g := matrix.generalization:
                parts = {"diagonal": g.diagonal, "off_diagonal": g.off_diagonal, "gap": g.gap}
                numbers |= {f"{name}/{method}": estimate.value for name, estimate in parts.items()}
        tracker.metrics(numbers, 0)
        tracker.artifact(directory.report)
        tracker.finish("FINISHED" if set(states.values()) == {State.FINISHED} else "FAILED")
        console.print(f"MLflow: {tracker.ui_command()}", soft_wrap=True, highlight=False)
