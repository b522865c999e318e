"""Reward functions. A reward function is one file, in this package or in the plugin folder, and one YAML file.

    @reward_function("brevity")
    def brevity(completions, records, *, reasoning, max_characters=200):
        return [float(len(text) <= max_characters) for text in completions]

``reward.functions`` names the functions of a run with their weights and settings:
``{accuracy: {weight: 1.0}, brevity: {weight: 0.1, max_characters: 100}}``.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from medr1.config.settings import RewardConfig
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.errors import ConfigError, RewardError

# (completions, records, *, reasoning, **settings) -> a number for each completion; ``records`` are their questions.
RewardFunction = Callable[..., list[float]]

REWARDS: dict[str, RewardFunction] = {}


def reward_function(name: str) -> Callable[[RewardFunction], RewardFunction]:
    """Registers a reward function under a name."""

    def register(function: RewardFunction) -> RewardFunction:
        REWARDS[name] = function
        return function

    return register


@dataclass(frozen=True, slots=True)
class Rewards:
    """Rewards of n completions: those of each function by its name, and their weighted sum."""

    parts: Mapping[str, list[float]]
    total: list[float]


def compute_rewards(
    config: RewardConfig, completions: Sequence[str], records: Sequence[Record], reasoning: ReasoningMode
) -> Rewards:
    """Rewards of completions, each for its own record.

    Raises:
        RewardError: a function returned no finite number for a completion.
    """
    parts: dict[str, list[float]] = {}
    total = [0.0] * len(completions)
    for name, settings in config.functions.items():
        arguments = {key: value for key, value in settings.items() if key != "weight"}
        values = _find(name)(completions, records, reasoning=reasoning, **arguments)
        if len(values) != len(completions):
            raise RewardError(f"reward {name} returned {len(values)} values for {len(completions)} completions")
        for value, record in zip(values, records, strict=True):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise RewardError(f"reward {name} returned {value!r} for record {record.id}; return a finite number")
        parts[name] = [float(value) for value in values]
        total = [sum_ + settings["weight"] * value for sum_, value in zip(total, parts[name], strict=True)]
    return Rewards(parts, total)


def check(config: RewardConfig) -> None:
    """Checks the settings of all reward functions.

    Raises:
        ConfigError: an unknown function or setting, a wrong value, or no function with a positive weight.
    """
    for name, settings in config.functions.items():
        key, parameters = f"reward.functions.{name}", inspect.signature(_find(name)).parameters.values()
        own = {p.name: p for p in parameters if p.kind == p.KEYWORD_ONLY and p.name != "reasoning"}
        weight = settings.get("weight")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ConfigError(f"{key}.weight={weight}: must be a number, at least 0")
        for setting, value in settings.items():
            if setting != "weight" and setting not in own:
                raise ConfigError(f"{key}.{setting}: no such setting. {_nearest(str(setting), ['weight', *own])}")
            default = own[setting].default if setting != "weight" else None
            expected = int | float if isinstance(default, float) else type(default)
            if isinstance(default, int | float | str) and not isinstance(value, expected):
                raise ConfigError(f"{key}.{setting}={value}: must be of the type of its default, {default!r}")
        if missing := [p.name for p in own.values() if p.default is p.empty and p.name not in settings]:
            raise ConfigError(f"reward {name} needs {key}.{missing[0]}")
    if not any(settings["weight"] for settings in config.functions.values()):
        raise ConfigError("reward.functions: no weight is above 0, so that all advantages would be zero; give one")


def _find(name: str) -> RewardFunction:
    """A registered function; files of this package are imported by name, so that unused ones are not loaded."""
    files = [module.name for module in pkgutil.iter_modules(__path__)]
    if name not in REWARDS and name in files:
        importlib.import_module(f"{__name__}.{name}")
    if name not in REWARDS:
        raise ConfigError(f"reward.functions.{name}: no such reward function. {_nearest(name, {*files, *REWARDS})}")
    return REWARDS[name]


def _nearest(wrong: str, valid: Iterable[str]) -> str:
    valid = sorted(valid)
    near = difflib.get_close_matches(wrong, valid, n=1, cutoff=0.4)
    return f"{f'Did you mean {near[0]}? ' if near else ''}Valid: {', '.join(valid)}"
