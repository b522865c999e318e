"""Names of the directories of runs and sweeps."""

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

# Settings that cannot change a run's numbers: where it is written and tracked, and how often.
_IRRELEVANT = ("hydra", "output_dir", "plugins", "tracking", "sweep", "resume", "plan", "plan_memory")
_IRRELEVANT_WITHIN = {"trainer": ("save_steps", "logging_steps"), "data": ("cache_dir",)}
# Environment variables in which launchers give a process its rank; Lightning reads the same ones.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "NODE_RANK")
_PACKAGE = str(PACKAGE)


def run_directory(output_dir: str, given: str | None, *parts: Any) -> str:
    """The directory of a training run: ``given`` if it is resumed, else a new one named by time and settings.

    If torchrun or SLURM starts all processes of a run, only the first one gets the new directory. The clocks of the
    others differ, and they write nothing but logs.
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
    """The directory of an evaluation: that of the resumed evaluation, the sweep or the exported run, else a new one."""
    own = resume or sweep or (run if export and run and Path(run).is_dir() else None)
    if own:
        return str(Path(own).absolute())
    return _new_directory(output_dir, *(("audit", Path(audit).name) if audit else ("evaluate", *parts)))


def job_name(cfg: DictConfig) -> str:
    """The directory of a run in its sweep: its main settings, and a hash of all settings that its numbers depend on."""
    relevant: dict[str, Any] = {}
    for key in map(str, cfg):
        if key not in _IRRELEVANT:
            value = OmegaConf.select(cfg, key)
            plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            if isinstance(plain, dict):
                plain = {k: v for k, v in plain.items() if k not in _IRRELEVANT_WITHIN.get(key, ())}
            relevant[key] = plain
    # The shipped base has the same hash wherever medr1 is installed.
    text = json.dumps(relevant, sort_keys=True, default=str).replace(_PACKAGE, "")
    words = [cfg.algorithm.name, cfg.modality.name, cfg.question_type.name, cfg.reasoning.mode, f"seed{cfg.seed}"]
    return f"{_safe('_'.join(map(str, words)))}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def sweep_name(title: str, fixed: Iterable[str]) -> str:
    """The directory of a sweep: its title and the overrides that all its runs share."""
    parts = [title, *(text.replace("=", "-", 1) for text in fixed)]
    name = _safe("_".join(parts))
    return name if len(name) <= 100 else f"{name[:90]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)
