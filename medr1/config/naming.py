"""Names: the directories of runs and sweeps, and dotted keys."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from medr1.config.paths import PACKAGE
from medr1.config.settings import BEFORE

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
    if is_other_process():
        return str(Path(output_dir).absolute() / ".processes")
    return _new_directory(output_dir, *parts)


def is_other_process() -> bool:
    """Whether torchrun or SLURM has started this process as another than the first one of a run."""
    return any(os.environ.get(name, "0").strip("0") for name in _RANKS)


def _new_directory(output_dir: str, *parts: Any) -> str:
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return str(Path(output_dir).absolute() / f"{stamp}_{_safe('_'.join(map(str, parts)))[:150]}")


def evaluate_directory(
    output_dir: str,
    resume: str | None,
    sweep: str | None,
    audit: str | None,
    compare: list[str] | None,
    export: str | None,
    run: str | None,
    *parts: Any,
) -> str:
    """The directory of an evaluation: that of the resumed evaluation, the sweep or the exported run, else a new one."""
    own = resume or sweep or (run if export else None)
    if own:
        return str(Path(own).absolute())
    if audit:
        return _new_directory(output_dir, "audit", Path(audit).name)
    return _new_directory(output_dir, *(["compare"] if compare else ["evaluate", *parts]))


def job_name(cfg: DictConfig) -> str:
    """The directory of a run in its sweep: its main settings, and a hash of all settings that its numbers depend on."""
    # The shipped base has the same hash wherever medr1 is installed.
    text = json.dumps(_hashed(cfg), sort_keys=True, default=str).replace(_PACKAGE, "")
    words = [cfg.algorithm.name, cfg.modality.name, cfg.question_type.name, cfg.reasoning.mode, f"seed{cfg.seed}"]
    return f"{_safe('_'.join(map(str, words)))[:150]}-{short_hash(text)}"


def _hashed(cfg: DictConfig) -> dict[str, Any]:
    """The values of a config that a run's numbers depend on.

    Those marked ``is_hashed=False`` are left out, and so is a setting that was added later while the run does what it
    did without it.
    """
    schema = OmegaConf.get_type(cfg)
    metadata = {item.name: item.metadata for item in fields(schema)} if is_dataclass(schema) else {}
    found: dict[str, Any] = {}
    for key in map(str, cfg):
        marks: Mapping[str, Any] = metadata.get(key, {})
        if key == "hydra" or marks.get("is_hashed") is False:
            continue
        value = None if OmegaConf.is_missing(cfg, key) else cfg[key]
        if BEFORE in marks and value == marks[BEFORE]:
            continue
        if isinstance(value, DictConfig) and is_dataclass(OmegaConf.get_type(value)):
            value = _hashed(value)
        elif OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True)
        found[key] = value
    return found


def sweep_name(title: str, fixed: Iterable[str]) -> str:
    """The directory of a sweep: its title and the overrides that all its runs share."""
    return safe_name("_".join([title, *(text.replace("=", "-", 1) for text in fixed)]))


def safe_name(text: str, longest: int = 100) -> str:
    """The text as the name of a file or directory. A changed text gets a hash, so that no two are equal."""
    name = _safe(text)
    return name if name == text and len(name) <= longest else f"{name[: longest - 10]}-{short_hash(text)}"


def distinct_names(texts: Iterable[str], name: Callable[[str], str]) -> dict[str, str]:
    """The ``name`` of each text. Texts with the same one, in upper or lower case, get a hash each."""
    names = {text: name(text) for text in texts}
    count = Counter(name.lower() for name in names.values())
    return {text: n if count[n.lower()] == 1 else f"{n}-{short_hash(text)}" for text, n in names.items()}


def metric_part(value: str) -> str:
    """A value as a part of a metric's name, for which MLflow takes few characters. A changed value gets a hash."""
    if re.fullmatch(r"[A-Za-z0-9_. -]+", value) and value.strip(". ") == value:
        return value
    return f"{_safe(value)}-{short_hash(value)}"


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)


def is_below(key: str, places: Container[str]) -> bool:
    """Whether a dotted key, or one above it, is among ``places``. A ``+`` in front of it does not count."""
    parts = key.lstrip("+~").split(".")
    return any(".".join(parts[:end]) in places for end in range(1, len(parts) + 1))
