"""Writes the tables, figures and report of a sweep, and logs them to its own run in MLflow. Loads no torch."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from medr1.atomic_write import read_json, write_json, write_text
from medr1.config.naming import distinct_names, metric_part, safe_name
from medr1.config.override_text import shell_word
from medr1.config.paths import PACKAGE
from medr1.config.settings import TrainConfig, greater_is_better
from medr1.data.image_size import drawn_side
from medr1.data.sources import SOURCES
from medr1.domain.records import Record
from medr1.errors import ConfigError, DataError, TrackingError
from medr1.evaluation.matrices import tabulate
from medr1.evaluation.measures import read_measured
from medr1.evaluation.predictions import Condition, read_predictions
from medr1.evaluation.sweep_tables import SweepRun, SweepTables
from medr1.reporting.findings import findings, verdict
from medr1.reporting.formatting import markdown
from medr1.reporting.matrix_tables import render_matrices, to_csv
from medr1.reporting.report import RunLink, Section, write_report
from medr1.reporting.sections import (
    measure_section,
    rationale_section,
    search_section,
    selection_section,
    trend_section,
)
from medr1.rewards import max_reward
from medr1.runs.run_directory import RunDirectory
from medr1.runs.search import Cell, Trial, read_trials
from medr1.runs.selection import Choice, choose, validation_value
from medr1.runs.sweep import Manifest, State, SweepDirectory
from medr1.tracking.address import StoredRun, stored_run, without_password
from medr1.tracking.metrics_file import MetricsFile
from medr1.tracking.tracker import Tracker
from medr1.workflows.conditions import conditions
from medr1.workflows.session import send_pending

log = logging.getLogger(__name__)

_LOG_LINES = 100  # of a failed run in the report


def report_sweep(place: Path, tracking_uri: str | None = None, *, tracks: bool = True) -> None:
    """Writes the report of a sweep from the files of its finished runs, and logs it if the sweep was tracked.

    ``tracking_uri``: the database or server that the sweep is in now, or None if it has not moved. ``tracks``: whether
    anything is sent there.

    Raises:
        ConfigError: the directory holds no sweep. DataError: no run is finished, or the runs have other test records.
    """
    directory = SweepDirectory(place.absolute())
    manifest = directory.read()
    states = directory.states(manifest.jobs)
    finished = [name for name, state in states.items() if state == State.FINISHED]
    if not finished:
        raise DataError(f"{directory.path}: none of its {len(states)} runs is finished; see the job.log of each")
    if tracks:
        _send_pending(directory, finished, tracking_uri)
    axes, selection = {name: manifest.jobs[name].axes for name in finished}, list[Section]()
    choices: list[Choice] = []
    trials = read_trials(directory, manifest, manifest.jobs) if manifest.searched else {}
    if manifest.select:
        if manifest.searched:  # a trial counts if the runs of all its seeds are finished
            whole = [t for of_cell in trials.values() for t in of_cell if t.value is not None]
            axes = {name: axes[name] for trial in whole for name in trial.runs.values()}
            if not axes:
                raise DataError(f"{directory.path}: no trial has finished all its runs; repeat the command")
        values = {name: validation_value(directory.run(name), manifest.select) for name in axes}
        choices = choose(axes, values, manifest.rows, manifest.select, manifest.searched)
        selection.append(
            search_section(trials, choices, manifest.select, manifest.searched)
            if manifest.searched
            else selection_section(choices, manifest.select, len(states) - len(finished))
        )
        # Of the options that were not chosen nothing is shown but their validation.
        axes = {name: {**choice.cell, "seed": axes[name]["seed"]} for choice in choices for name in choice.chosen.runs}
        finished = list(axes)
    configs = {name: directory.run(name).stored_config(TrainConfig) for name in finished}
    runs = [_read(directory.run(name), axes[name], configs[name]) for name in finished]
    tables = tabulate(runs, manifest.rows, manifest.columns)
    sentences = findings(tables)
    measures = measure_section(runs, manifest.rows)
    report = write_report(
        directory.report,
        title=manifest.title,
        command=typed_command(manifest),
        tables=tables,
        verdict=verdict(tables),
        findings=sentences,
        conditions=conditions((directory.run(name), cfg) for name, cfg in configs.items()),
        runs=[_link(directory, manifest, name, state) for name, state in states.items()],
        curves={name: MetricsFile(directory.run(name).metrics).read() for name in finished},
        max_rewards={name: max_reward(cfg.reward) for name, cfg in configs.items()},
        sections=[
            *selection,
            *(
                section
                for section in (trend_section(tables), measures, _rationales(configs, manifest.rows, runs))
                if section
            ),
        ],
        facts=_facts(directory, finished),
    )
    write_json(directory.report / "matrices.json", {**asdict(tables), "findings": sentences})
    shown = [*(paragraph for section in selection for paragraph in section.paragraphs), *sentences]
    text = ["\n".join(f"- {markdown(sentence)}" for sentence in shown) + "\n"]
    console = Console(width=100, markup=False)
    for method, table in render_matrices(tables):
        text.append(f"## {markdown(method)}\n\n{table.to_markdown()}")
        console.print(f"\n{method}", style="bold")
        console.print(table)
    for title, table in chain.from_iterable(section.tables for section in (*selection, measures) if section):
        text.append(f"## {markdown(title)}\n\n{table.to_markdown()}")
    names = distinct_names((m.method for m in tables.matrices), lambda method: safe_name(method.replace(" ", "_")))
    for matrix in tables.matrices:
        write_text(directory.report / f"{names[matrix.method]}.csv", to_csv(matrix))
    write_text(directory.report / "results.md", "\n".join(text))
    for sentence in shown:
        console.print(f"- {sentence}", highlight=False)
    console.print(f"report: {report}", soft_wrap=True, highlight=False)
    if tracks and (stored := stored_run(directory.path)):
        try:
            _track(
                directory,
                stored,
                tracking_uri or _uri(directory, stored),
                states,
                tables,
                console,
                choices,
                trials,
                manifest.select,
            )
        except (ConfigError, TrackingError) as error:  # the report is written
            log.warning("the report is not in MLflow: %s", error)


def typed_command(manifest: Manifest) -> str:
    """The command of the sweep as it can be typed, without the password of its tracking URI."""
    words = (word.partition("=") for word in manifest.command)
    shown = [f"{key}{sign}{without_password(value)}" for key, sign, value in words]
    return shlex.join(["python", "train.py", "-m", *shown])


def _read(run: RunDirectory, axes: Mapping[str, str], cfg: TrainConfig) -> SweepRun:
    files = {condition: run.predictions(condition) for condition in Condition}
    found = {str(condition): read_predictions(file) for condition, file in files.items() if file.is_file()}
    models = [condition for condition in (Condition.BASE, Condition.TRAINED) if condition in found]
    measured = {str(condition): read_measured(run.predictions, condition, cfg.evaluation.k) for condition in models}
    return SweepRun(run.path.name, axes, found, measured)


def _send_pending(directory: SweepDirectory, finished: Sequence[str], uri: str | None) -> None:
    for name in finished:
        try:
            send_pending(directory.run(name), uri)
        except TrackingError as error:
            command = f"python evaluate.py {shell_word('sweep', directory.path)}"
            log.warning("%s; metrics of %s wait in the queue: %s", error, name, command)


def _uri(directory: SweepDirectory, stored: StoredRun) -> str:
    """The tracking URI of the sweep. mlflow.json leaves out a password, which the configs of the runs have."""
    runs = [directory.run(name) for name in directory.read().jobs]
    uris = [run.stored_config(TrainConfig).tracking.uri for run in runs if run.config.is_file()]
    return next((uri for uri in uris if without_password(uri) == stored.uri), stored.uri)


def _link(directory: SweepDirectory, manifest: Manifest, name: str, state: State) -> RunLink:
    run = directory.run(name)
    stored = stored_run(run.path)
    failed = state == State.FAILED and run.log.is_file()
    return RunLink(
        name=name,
        axes=manifest.jobs[name].axes,
        state=state.value,
        seconds=directory.seconds(name),
        directory=os.path.relpath(run.path, directory.report),
        page=stored.shared_url if stored else "",
        error=_last_lines(run, directory) if failed else "",
    )


def _last_lines(run: RunDirectory, directory: SweepDirectory) -> str:
    """The end of what a run has printed, without the folders of this machine: the report may be passed on."""
    lines = run.log.read_text(encoding="utf-8", errors="replace").splitlines()
    text = "\n".join(lines[-_LOG_LINES:])
    folders = {directory.path: "SWEEP", Path(sys.prefix): "PYTHON", PACKAGE.parent: "MEDR1", Path.home(): "~"}
    for folder, name in folders.items():
        text = text.replace(f"{folder}{os.sep}", f"{name}{os.sep}")
    return text


def _rationales(configs: Mapping[str, TrainConfig], row_axis: str, runs: list[SweepRun]) -> Section | None:
    """How many claims of the rationales are true, where the data source knows the truth about every image."""
    records: dict[str, Record] = {}
    image_size = 0
    for cfg in configs.values():
        data = cfg.data
        annotated = SOURCES[data.kind].annotated_test_records(data)
        if not annotated:
            return None
        records |= {record.id: record for record in annotated}
        image_size = drawn_side(data.resize, data.image_size, data.max_pixels)
    return rationale_section(runs, records, image_size, row_axis)


def _facts(directory: SweepDirectory, finished: list[str]) -> dict[str, str]:
    """Versions and data of the runs. More than one value means that runs of different versions or data are mixed."""
    found: dict[str, set[str]] = {}
    for name in finished:
        environment: dict[str, Any] = read_json(directory.run(name).path / "environment.json")
        found.setdefault("commit", set()).add(str(environment["git_commit"]))
        found.setdefault("data fingerprint", set()).add(str(environment["data_fingerprint"]))
        if weights := environment.get("model_fingerprint"):
            found.setdefault("weights of model.path", set()).add(str(weights))
        for library, version in environment["versions"].items():
            found.setdefault(library, set()).add(str(version))
    return {key: ", ".join(sorted(values)) for key, values in found.items()}


def _track(
    directory: SweepDirectory,
    stored: StoredRun,
    uri: str,
    states: Mapping[str, State],
    tables: SweepTables,
    console: Console,
    choices: Sequence[Choice],
    trials: Mapping[Cell, Sequence[Trial]],
    metric: str,
) -> None:
    """Logs the report, its summary metrics and the chosen settings to the sweep's own run in MLflow."""
    with Tracker.start(
        uri,
        stored.experiment,
        directory.path.name,
        directory.path,
        run_id=stored.run_id,
        resend_command=f"python evaluate.py {shell_word('sweep', directory.path)}",
        require_server=False,
    ) as tracker:
        numbers: dict[str, float] = {"finished": list(states.values()).count(State.FINISHED), "runs": len(states)}
        for matrix in tables.matrices:
            method = metric_part(matrix.method.replace(" ", "_"))
            for row, mean in matrix.means.items():
                numbers[f"mean/{method}/{metric_part(row)}"] = mean.value
            if g := matrix.generalization:
                parts = {"diagonal": g.diagonal, "off_diagonal": g.off_diagonal, "gap": g.gap}
                numbers |= {f"{name}/{method}": estimate.value for name, estimate in parts.items()}
        tracker.log_metrics(numbers, 0, replaces=True)  # more runs may be finished than at the last report
        _track_choices(tracker, choices, trials, metric)
        tracker.log_artifact(directory.report)
        tracker.end_run("FINISHED" if set(states.values()) == {State.FINISHED} else "FAILED")
        console.print(f"MLflow: {tracker.ui_command()}", soft_wrap=True, highlight=False)


def _track_choices(
    tracker: Tracker, choices: Sequence[Choice], trials: Mapping[Cell, Sequence[Trial]], metric: str
) -> None:
    """Logs the best settings of each row and algorithm as tags, its value, and for a search that of each trial.

    The names have the row and the algorithm where there are several.
    """
    best_of = max if greater_is_better(metric) else min
    for choice in choices:
        differing = [axis for axis in choice.cell if len({other.cell[axis] for other in choices}) > 1]
        cell = [metric_part(choice.cell[axis]) for axis in differing]
        tracker.set_tags(
            {
                ".".join(["best", *cell, metric_part(key.lstrip("+"))]): value
                for key, value in choice.chosen.settings.items()
            }
        )
        best = "/".join(["best", *cell, metric])
        if not trials:
            tracker.log_metrics({best: choice.chosen.value}, 0, replaces=True)
            continue
        so_far: list[float] = []
        for number, trial in enumerate(trials[tuple(choice.cell.items())], 1):
            if trial.value is not None:
                values = {"/".join(["trial", *cell, metric]): trial.value}
                if choice.has_compared(trial.settings):
                    so_far.append(trial.value)
                    values[best] = best_of(so_far)
                tracker.log_metrics(values, number, replaces=True)  # a trial may have failed, or lacked a seed, before
