"""``evaluate.py audit=DIR`` and ``audit=data``: flaws of data as text, JSON and in MLflow. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from medr1.atomic_write import write_json, write_text
from medr1.config.settings import ALL, EvaluateConfig
from medr1.data.dataset import load_dataset
from medr1.errors import ConfigError
from medr1.evaluation.audit import audit
from medr1.evaluation.data_audit import audit_data
from medr1.reporting.audit_text import metric_items, render
from medr1.reporting.data_audit_table import metric_items as metric_items_of_data
from medr1.reporting.data_audit_table import render_data_audit
from medr1.runs.run_directory import environment
from medr1.workflows.track_files import track_files

DATA = "data"  # audit=data: the data of the command, not question files in a folder


def audit_records(cfg: EvaluateConfig, directory: Path) -> None:
    """Audits the data that ``cfg.data`` chooses into ``directory``.

    Raises:
        DataError: the data cannot be used.
    """
    data = load_dataset(cfg.data, ALL, ALL)
    result = audit_data(data, cfg.data.name)
    tables = render_data_audit(result)
    console = Console(width=100, markup=False)
    for line in data.messages:
        console.print(line, soft_wrap=True, highlight=False)
    for table in tables:
        console.print(table)
    text = "\n".join([*data.messages, "", *(table.to_markdown() for table in tables)])
    details = {**result.to_dict(), "facts": data.facts}
    _store(cfg, directory, details, text, dict(metric_items_of_data(result)), console)


def audit_files(cfg: EvaluateConfig, directory: Path) -> None:
    """Audits the question files in ``cfg.audit`` into ``directory``.

    Raises:
        ConfigError: no such place. DataError: no usable file there.
    """
    assert cfg.audit is not None
    place = Path(cfg.audit)
    if not place.exists():
        raise ConfigError(f"audit={place}: no such file or folder (looked from {Path.cwd()})")
    console = Console(width=100, markup=False)
    result = audit(place, cache_dir=Path(cfg.output_dir).absolute() / "cache")
    text = render(result)
    print(text)
    _store(cfg, directory, result.to_dict(), text, dict(metric_items(result)), console)


def _store(
    cfg: EvaluateConfig,
    directory: Path,
    details: Mapping[str, Any],
    text: str,
    metrics: Mapping[str, float],
    console: Console,
) -> None:
    """Writes an audit to files and to MLflow."""
    write_json(directory / "audit.json", {**details, "environment": environment()})
    write_text(directory / "audit.txt", text)
    console.print(f"audit: {directory}", soft_wrap=True, highlight=False)
    tags = {"audit": str(cfg.audit)}
    track_files(cfg.tracking, directory, ("audit.json", "audit.txt"), metrics, tags, console)
