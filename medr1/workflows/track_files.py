"""Logs to MLflow what a command has written that is no run: an audit, or a comparison of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from medr1.config.settings import TrackingConfig
from medr1.tracking.tracker import Tracker


def track_files(
    tracking: TrackingConfig,
    directory: Path,
    files: Sequence[str],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    console: Console,
) -> None:
    """Logs ``files`` of a directory and ``metrics`` as one run, if tracking is enabled, and prints how to see it."""
    if not tracking.enabled:
        return
    with Tracker.start(tracking.uri, tracking.experiment, directory.name, directory, tags=dict(tags)) as tracker:
        tracker.log_metrics(dict(metrics), 0)
        for name in files:
            tracker.log_artifact(directory / name)
        console.print(f"MLflow: {tracker.ui_command()}", soft_wrap=True, highlight=False)
