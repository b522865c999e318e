"""The sources of a run's plugins: stored with the run, and compared before a resumed run executes them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from medr1.runs.run_directory import RunDirectory

log = logging.getLogger(__name__)

PLUGINS_VARIABLE = "MEDR1_PLUGINS"  # the folder of plugins=, also for the processes that a command starts


def changed(run: RunDirectory, folder: Path) -> list[str]:
    """The names of the files of a plugin folder that are not as the run has stored them last, or are on one side only.

    Nothing has changed for a run without stored plugins.
    """
    stored = run.plugin_sources()
    if not stored:
        return []
    before, now = _sources(stored[-1]), _sources(folder)
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def store(run: RunDirectory) -> None:
    """Stores the sources of the plugins that this process has imported, and says where they have changed."""
    if not (folder := os.environ.get(PLUGINS_VARIABLE)):
        return
    stored = run.plugin_sources()
    if stored and not (names := changed(run, Path(folder))):
        return
    place = run.plugin_source(len(stored) + 1)
    place.mkdir(parents=True)
    for name, source in _sources(Path(folder)).items():
        (place / name).write_bytes(source)
    if stored:
        since = run.stands_at
        log.warning("plugins have changed (%s): from %s on they are those in %s", ", ".join(names), since, place)


def _sources(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.py"))}
