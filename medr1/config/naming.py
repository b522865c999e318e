"""What runs and sweeps are called on disk. Imported before anything heavy."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from medr1.config.paths import PACKAGE

# What a run's numbers do not depend on: where it is written and tracked, and how often.
_INDIFFERENT = ("hydra", "output_dir", "plugins", "tracking", "sweep", "resume", "plan", "plan_memory")
_INDIFFERENT_WITHIN = {"trainer": ("save_steps", "logging_steps"), "data": ("cache_dir",)}
# What tells a process of a launcher its number; Lightning knows its processes by the same.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "NODE_RANK")
_PACKAGE = str(PACKAGE)


def run_directory(output_dir: str, given: str | None, *parts: Any) -> str:
    """The directory of a training: the one given (a run that is resumed), or a new one named by time and settings.

    Where torchrun or SLURM starts all processes of a run, only the first one has a new directory: by their clocks the
    others would name another one, and all that they write is their log.
    """
    if given:
        return str(Path(given).absolute())
    if any(os.environ.get(name, "0").strip("0") for name in _RANKS):
        return str(Path(output_dir).absolute() / ".processes")
    return _new_directory(output_dir, *parts)


def _new_directory(output_dir: str, *parts: Any) -> str:
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return str(Path(output_dir).absolute() / f"{stamp}_{_safe('_'.join(map(str, parts)))}")


def evaluate_directory(
    output_dir: str,
    resume: str | None,
    sweep: str | None,
    audit: str | None,
    export: str | None,
    run: str | None,
    *parts: Any,
) -> str:
    """The directory of an evaluation: its own when resumed, the sweep's, the exported run's, or a new one named by what
    is done."""
    own = resume or sweep or (run if export and run and Path(run).is_dir() else None)
    if own:
        return str(Path(own).absolute())
    return _new_directory(output_dir, *(("audit", Path(audit).name) if audit else ("evaluate", *parts)))


def job_name(cfg: DictConfig) -> str:
    """The directory of a run in its sweep: a few words for the reader, and a hash of all that its numbers depend on."""
    matters: dict[str, Any] = {}
    for key in map(str, cfg):
        if key not in _INDIFFERENT:
            value = OmegaConf.select(cfg, key)
            plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            if isinstance(plain, dict):
                plain = {k: v for k, v in plain.items() if k not in _INDIFFERENT_WITHIN.get(key, ())}
            matters[key] = plain
    # What is shipped is the same wherever the project lies.
    text = json.dumps(matters, sort_keys=True, default=str).replace(_PACKAGE, "")
    words = [cfg.algorithm.name, cfg.modality.name, cfg.question_type.name, cfg.reasoning.mode, f"seed{cfg.seed}"]
    return f"{_safe('_'.join(map(str, words)))}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def sweep_name(title: str, fixed: Iterable[str]) -> str:
    """The directory of a sweep: its title and the overrides that are the same for all its runs."""
    parts = [title, *(text.replace("=", "-", 1) for text in fixed)]
    name = _safe("_".join(parts))
    return name if len(name) <= 100 else f"{name[:90]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)
