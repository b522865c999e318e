"""``evaluate.py audit=DIR``: flaws of question files as text, JSON and in MLflow. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from medr1.atomic_write import write_json, write_text
from medr1.config.settings import EvaluateConfig
from medr1.errors import ConfigError
from medr1.evaluation.audit import audit
from medr1.reporting.audit_text import metric_items, render
from medr1.runs.run_directory import environment
from medr1.tracking.tracker import Tracker


def audit_files(cfg: EvaluateConfig, directory: Path) -> None:
    """Audits ``cfg.audit`` into ``directory``.

    Raises:
        ConfigError: no such place. DataError: no usable file there.
    """
    assert cfg.audit is not None
    place = Path(cfg.audit)
    if not place.exists():
        raise ConfigError(f"audit={place}: no such file or folder (looked from {Path.cwd()})")
    console = Console(width=100)
    result = audit(place, cache_dir=Path(cfg.output_dir).absolute() / "cache")
    text = render(result)
    write_json(directory / "audit.json", {**result.to_dict(), "environment": environment()})
    write_text(directory / "audit.txt", text)
    print(text)
    console.print(f"audit: {directory}", soft_wrap=True, highlight=False)
    if not cfg.tracking.enabled:
        return
    tags = {"audit": str(place)}
    with Tracker.start(cfg.tracking.uri, cfg.tracking.experiment, directory.name, directory, tags=tags) as tracker:
        tracker.log_metrics(dict(metric_items(result)), 0)
        for name in ("audit.json", "audit.txt"):
            tracker.log_artifact(directory / name)
        console.print(f"MLflow: {tracker.ui_command()}", soft_wrap=True, highlight=False)
