"""The completions of published runs, small enough for the repository: one file of each sweep in benchmarks/published/.

A file is JSON, compressed with xz. Of each run it has the settings, the completions of all conditions in the order of
the test records, and the curves of validation. The test records are phantoms and are drawn again; a digest guards that
they are those of the runs. docs/med-r1/results.md is computed from these files by ``benchmarks.results``.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import shlex
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import medr1.workflows.components  # noqa: F401  registers the settings of all groups, which stored runs have
from medr1.atomic_write import atomic_write, read_json
from medr1.config.naming import is_below
from medr1.config.schema import marked_keys
from medr1.config.settings import TrainConfig
from medr1.data.sources.phantoms import PhantomsConfig
from medr1.data.sources.phantoms.records import World, fingerprinted, make_records
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Modality, Record
from medr1.evaluation.predictions import Condition, Prediction, prediction, read_predictions
from medr1.runs.run_directory import RunDirectory
from medr1.runs.sweep import State, SweepDirectory
from medr1.tracking.metrics_file import MetricsFile
from medr1.workflows.sweep_report import typed_command

FOLDER = Path(__file__).parent / "published"
_SIDE = 84  # pixels of the drawings in the digest
_CURVES = "validation/"


@dataclass(frozen=True, slots=True)
class PublishedRun:
    """One finished run. ``texts``: the completions by condition. ``curves``: (step, value) by metric of validation.

    ``axes``: the values of the settings that the sweep varies. ``modality`` and ``question_type``: of the training
    records. ``best_step``: the step whose model was tested, or None for the last one. ``seconds``: its duration.
    """

    name: str
    axes: Mapping[str, str]
    algorithm: str
    modality: str
    question_type: str
    reasoning: str
    texts: Mapping[str, Sequence[str]]
    curves: Mapping[str, Sequence[tuple[int, float]]]
    best_step: int | None
    seconds: float | None

    def predictions(self, records: Sequence[Record]) -> dict[str, list[Prediction]]:
        """The completions, read as in the run. Their lengths are not stored and are 0."""
        mode = ReasoningMode(self.reasoning)
        return {
            condition: [
                prediction(record, condition, mode, text, length=0, truncated=False)
                for record, text in zip(records, texts, strict=True)
            ]
            for condition, texts in self.texts.items()
        }


@dataclass(frozen=True, slots=True)
class PublishedSweep:
    """The runs of a sweep. ``rows`` and ``columns``: the axes of its tables. ``commits``: those that the runs used.

    ``version``: ``data.question_version``, 1 in files that do not name it.
    """

    name: str
    commands: Sequence[str]
    rows: str
    columns: str
    seed: int
    images_per_modality: int
    version: int
    digest: str
    commits: Sequence[str]
    runs: Sequence[PublishedRun]

    def records(self) -> list[Record]:
        """The test records.

        Raises:
            SystemExit: they are not those of the runs.
        """
        world = (self.seed, self.images_per_modality, self.version)
        if _digest(*world) != self.digest:
            raise SystemExit(f"{self.name}: phantoms have changed since these runs; repeat {'; '.join(self.commands)}")
        return _records(*world)


def finished_runs(sweep: SweepDirectory) -> dict[str, RunDirectory]:
    """The runs of the latest command and all other finished ones by name.

    Raises:
        SystemExit: a run of the latest command is not finished.
    """
    manifest = sweep.read()
    states = sweep.states(manifest.jobs)
    for name in manifest.wanted:
        if states[name] != State.FINISHED:
            raise SystemExit(f"{sweep.path}: the run {name} is {states[name].value}; repeat the command of the sweep")
    return {name: sweep.run(name) for name, state in states.items() if state == State.FINISHED}


def store(name: str, places: Sequence[Path]) -> Path:
    """Writes the finished runs of one or several sweeps on the same test records as ``name``; returns the file.

    ``places``: directories of sweeps, and files that were stored before, to which more seeds may be added. An axis that
    only one of the sweeps varies has, in the runs of the others, the value of their configuration. So has a setting
    that the commands of two sweeps fix to different values. Runs of a directory that a file already has are left out.

    Raises:
        SystemExit: a run is not finished, is not the one that was stored, is on other data than phantoms, or did not
            answer every test record; a sweep is given twice, two have other rows, columns or test records, or two runs
            have the same axes; or stored runs have other settings than those that are added.
    """
    if len({place.resolve() for place in places}) < len(places):
        raise SystemExit(f"{', '.join(map(str, places))}: a sweep is named twice; leave one out")
    stored = [load(place) for place in places if place.is_file()]
    directories = [SweepDirectory(place) for place in places if not place.is_file()]
    manifests = [directory.read() for directory in directories]
    sources = [
        (directory, run_name, run, manifest.jobs[run_name].axes)
        for directory, manifest in zip(directories, manifests, strict=True)
        for run_name, run in finished_runs(directory).items()
    ]
    configurations = [run.stored_config(TrainConfig) for _, _, run, _ in sources]
    unhashed = {key for cfg in configurations for key in marked_keys(cfg, "is_hashed", False)}
    commands = [*dict.fromkeys([*(c for before in stored for c in before.commands), *map(typed_command, manifests)])]
    typed = [_settings(command, unhashed) for command in commands]
    if stored and (different := set.union(*typed) - set.intersection(*typed)):
        raise SystemExit(f"the runs to be stored have other settings: {', '.join(sorted(different))}")
    keys = sorted({word.partition("=")[0] for of in typed for word in of})
    fixed = [key for key in keys if len({_configured(cfg, key) for cfg in configurations}) > 1]
    runs = {run.name: run for before in stored for run in before.runs}
    if len(runs) < sum(len(before.runs) for before in stored):
        raise SystemExit(f"{', '.join(map(str, places))}: runs of the same name; store them from their sweeps")
    varied = (axis for axes in (*(run.axes for run in runs.values()), *(axes for *_, axes in sources)) for axis in axes)
    all_axes = dict.fromkeys([*varied, *fixed])
    for run_before in runs.values():
        if lacking := all_axes.keys() - run_before.axes.keys():
            raise SystemExit(
                f"{run_before.name} was stored without {', '.join(sorted(lacking))}; store it from its sweep"
            )
    worlds = {(before.seed, before.images_per_modality, before.version) for before in stored}
    commits = {commit for before in stored for commit in before.commits}
    by_axes = {tuple(sorted(run.axes.items())): run for run in runs.values()}
    for (directory, run_name, run, axes), cfg in zip(sources, configurations, strict=True):
        # GRPO after SFT has the name of GRPO, because its own settings are the same.
        name_here = f"{directory.path.name}/{run_name}" if run_name in runs else run_name
        if not isinstance(cfg.data, PhantomsConfig):
            raise SystemExit(f"{directory.path}: {run_name} is on data={cfg.data.name}; only phantoms are drawn again")
        world = (cfg.data.seed, cfg.data.test_images_per_modality, cfg.data.question_version)
        worlds.add(world)
        records = _records(*world)
        own_axes = {axis: axes.get(axis, _configured(cfg, axis)) for axis in all_axes}
        texts = {
            str(condition): _texts(run.predictions(condition), records)
            for condition in Condition
            if run.predictions(condition).is_file()
        }
        if before := by_axes.get(tuple(sorted(own_axes.items()))):
            if before.texts != texts:
                raise SystemExit(
                    f"{directory.path}: {run_name} has other completions than those stored as {before.name}"
                )
            continue
        curves = MetricsFile(run.metrics).read()
        runs[name_here] = PublishedRun(
            name=name_here,
            axes=own_axes,
            algorithm=cfg.algorithm.name,
            modality=cfg.modality.name,
            question_type=cfg.question_type.name,
            reasoning=str(cfg.reasoning.mode),
            texts=texts,
            curves={metric: values for metric, values in curves.items() if metric.startswith(_CURVES)},
            best_step=run.best_step(),
            seconds=directory.seconds(run_name),
        )
        commits.add(str(read_json(run.environment)["git_commit"]))
    layouts = {(of.rows, of.columns) for of in (*manifests, *stored)}
    for several, what in ((worlds, "test sets"), (layouts, "pairs of rows and columns")):
        if len(several) != 1:
            raise SystemExit(
                f"{', '.join(map(str, places))}: {len(several)} different {what}; store them by themselves"
            )
    with_axes: dict[tuple[tuple[str, str], ...], str] = {}
    for found in runs.values():
        other = with_axes.setdefault(tuple(found.axes.items()), found.name)
        if other != found.name:
            raise SystemExit(
                f"{', '.join(map(str, places))}: {other} and {found.name} have the same axes ({dict(found.axes)}); "
                "store them by themselves"
            )
    ((seed, images, version),), ((rows, columns),) = worlds, layouts
    sweep = PublishedSweep(
        name=name,
        commands=commands,
        rows=rows,
        columns=columns,
        seed=seed,
        images_per_modality=images,
        version=version,
        digest=_digest(seed, images, version),
        commits=sorted(commits),
        runs=list(runs.values()),
    )
    target = FOLDER / f"{name}.json.xz"
    with atomic_write(target) as file:
        file.write(lzma.compress(json.dumps(asdict(sweep), sort_keys=True).encode(), preset=9))
    return target


def _settings(command: str, unhashed: Container[str]) -> set[str]:
    """The overrides of dotted keys in a command, except those that cannot change a number."""
    words = {word: word.partition("=")[0] for word in shlex.split(command) if "=" in word}
    return {word for word, key in words.items() if "." in key and not is_below(key, unhashed)}


def _configured(cfg: TrainConfig, axis: str) -> str:
    """The value of an axis as in an override, or nothing if the configuration lacks it, as GRPO lacks a rationale."""
    if axis == "reasoning":
        return str(cfg.reasoning.mode)
    value: Any = cfg
    for part in axis.split("."):
        value = getattr(value, part, "")
    return str(value).lower() if isinstance(value, bool) else str(getattr(value, "name", value))


def load(file: Path) -> PublishedSweep:
    stored: dict[str, Any] = json.loads(lzma.decompress(file.read_bytes()))
    return PublishedSweep(**{"version": 1, **stored, "runs": [PublishedRun(**run) for run in stored["runs"]]})


def _texts(file: Path, records: Sequence[Record]) -> list[str]:
    text = {line.record: line.text for line in read_predictions(file)}
    if text.keys() != {record.id for record in records}:
        raise SystemExit(f"{file}: {len(text)} predictions for {len(records)} test records; leave out evaluation.limit")
    return [text[record.id] for record in records]


@cache
def _records(seed: int, images_per_modality: int, version: int) -> list[Record]:
    return make_records(World.TEST, seed, images_per_modality, version=version)


@cache
def _digest(seed: int, images_per_modality: int, version: int) -> str:
    """Of all questions and of one drawn image of each modality."""
    records = _records(seed, images_per_modality, version)
    digest = hashlib.sha256("".join(map(fingerprinted, records)).encode())
    for record in records[:: len(records) // len(Modality)]:
        digest.update(record.images[0].load(_SIDE).tobytes())
    return digest.hexdigest()[:16]
