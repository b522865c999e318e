"""Checks that the finished runs of a repeated sweep had the plugins, reward functions and data that it names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from medr1 import rewards
from medr1.atomic_write import read_json
from medr1.config.settings import DataConfig, TrainConfig
from medr1.data.tables import SUFFIXES
from medr1.errors import ConfigError
from medr1.runs.run_directory import RunDirectory
from medr1.workflows import plugin_sources, reward_sources
from medr1.workflows.plugin_sources import PLUGINS_VARIABLE

_PLACES = ("path", "root", "splits")  # settings of data that name files or folders


def check_inputs(runs: Iterable[tuple[RunDirectory, TrainConfig]], advice: str) -> None:
    """Refuses finished runs that had other code or data than their settings name now.

    Data are loaded only if a file with questions was written after a run began; other images under the same names are
    not noticed.

    Raises:
        ConfigError: names the run, what has changed, and ``advice``. DataError: see ``load_dataset``.
    """
    latest: dict[str, tuple[float, Path | None]] = {}
    fingerprints: dict[str, str] = {}
    for run, settings in runs:
        if changed := [*_changed_code(run, settings)]:
            raise ConfigError(f"{run.path} had other code: {', '.join(changed)} changed since; {advice}")
        before = read_json(run.environment).get("loaded_fingerprint")  # absent in runs of earlier versions
        if before is None:
            continue
        place = repr(settings.data)
        if place not in latest:
            latest[place] = _latest_file(settings.data)
        written, newer = latest[place]
        if written <= run.environment.stat().st_mtime:
            continue
        key = repr((settings.data, settings.modality, settings.question_type, settings.model))
        if key not in fingerprints:
            from medr1.workflows.session import load_data

            fingerprints[key] = load_data(settings).fingerprint
        if fingerprints[key] != before:
            raise ConfigError(f"{run.path} had other data: {newer} was written since; {advice}")


def _changed_code(run: RunDirectory, settings: TrainConfig) -> Iterator[str]:
    if folder := os.environ.get(PLUGINS_VARIABLE):
        yield from (str(Path(folder) / name) for name in plugin_sources.changed(run, Path(folder)))
    for name, own in rewards.locate_own(settings.reward).items():
        stored = run.reward_sources(name)
        if stored and not reward_sources.is_latest(own, stored):
            yield str(own.file)


def _latest_file(data: DataConfig) -> tuple[float, Path | None]:
    """When the file with questions that was written or replaced last was, in seconds since the epoch, and the file."""
    stats = ((file.stat(), file) for file in _question_files(data))
    # A copy may keep the time of its source.
    written = ((max(status.st_mtime, status.st_ctime), file) for status, file in stats)
    return max(written, default=(0.0, None), key=lambda item: item[0])


def _question_files(data: DataConfig) -> Iterator[Path]:
    for one in (vars(data), *getattr(data, "sets", {}).values()):
        for name in _PLACES:
            place = Path(str(one.get(name) or ""))
            if place.is_file():
                yield place
            elif str(place) != "." and place.is_dir():
                yield from (file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES)
