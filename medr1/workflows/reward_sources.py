"""The sources of a run's own reward functions: stored with the run, and compared before a resumed run executes them.

A run directory may come from someone else, and its config names files. ``resume=`` therefore executes a file that its
own command line does not name only if its text is that which the run has stored, and if it lies outside of the run
directory. ``evaluate.py`` computes no rewards and executes none.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from medr1 import rewards
from medr1.atomic_write import write_text
from medr1.config.override_text import shell_word
from medr1.config.own_function import OwnFunction
from medr1.config.settings import CommonConfig, TrainConfig
from medr1.errors import ConfigError
from medr1.runs.run_directory import RunDirectory

log = logging.getLogger(__name__)


def function_keys(cfg: CommonConfig) -> list[str]:
    """The settings that name a function of the user's own. They may be given again when a run is resumed."""
    functions = cfg.reward.functions if isinstance(cfg, TrainConfig) else {}
    return [f"reward.functions.{name}.function" for name, settings in functions.items() if "function" in settings]


def function_overrides(cfg: CommonConfig) -> str:
    """The functions of the user's own as overrides of a command, each after a space."""
    assert isinstance(cfg, TrainConfig)
    return "".join(
        f" {shell_word(key, cfg.reward.functions[key.split('.')[2]]['function'])}" for key in function_keys(cfg)
    )


def give_again(cfg: CommonConfig, key: str, function: Any) -> None:
    """Sets one of ``function_keys``."""
    assert isinstance(cfg, TrainConfig)
    cfg.reward.functions[key.split(".")[2]]["function"] = function


def check_before_resume(cfg: CommonConfig, run: RunDirectory, typed: Collection[str]) -> None:
    """Checks the functions of a resumed run that are not named by its command line, the keys ``typed``.

    Raises:
        ConfigError: a source is not that which the run has stored, or lies in the run directory; says how to go on.
    """
    for name, own in (rewards.locate_own(cfg.reward) if isinstance(cfg, TrainConfig) else {}).items():
        if own.key in typed:
            continue
        stored = run.reward_sources(name)
        if own.file.is_relative_to(run.path.resolve()):
            problem = "lies in the run directory"
        elif not is_latest(own, stored):
            problem = f"has changed since the run began ({stored[-1] if stored else 'nothing is stored'})"
        else:
            continue
        raise ConfigError(
            f"{own.file}, the reward {name} of {run.path}, {problem}. It is executed only if you name it: add "
            f"{shell_word(own.key, own.name)}"
        )


def is_latest(own: OwnFunction, stored: Sequence[Path]) -> bool:
    """Whether a function is as the last of its ``stored`` sources."""
    return bool(stored) and stored[-1].read_text(encoding="utf-8") == own.source


def store(cfg: CommonConfig, run: RunDirectory) -> list[Path]:
    """Stores the sources that are not stored yet, and says where one has changed. Returns the new files."""
    new = []
    for name, own in (rewards.checked_own(cfg.reward) if isinstance(cfg, TrainConfig) else {}).items():
        stored = run.reward_sources(name)
        if is_latest(own, stored):
            continue
        file = run.reward_source(name, len(stored) + 1)
        write_text(file, own.source)
        new.append(file)
        if stored:
            since = run.stands_at
            log.warning("reward %s has changed: from %s on it is %s, before it was %s", name, since, file, stored[-1])
    return new
