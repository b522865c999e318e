"""Reward functions. A reward function is one file, in this package or in the plugin folder, and one YAML file.

    @reward_function("brevity")
    def brevity(completions, records, *, completion_ids, longest=200):
        return [float(len(ids) <= longest) for ids in completion_ids]

``reward.functions`` names the functions of a run with their weights and settings:
``{accuracy: {weight: 1.0}, brevity: {weight: 0.1, longest: 100}}``.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import math
import pkgutil
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from medr1.config.registry import source_file
from medr1.config.settings import RewardConfig
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.errors import ConfigError, RewardError

# (completions, records, ...) -> a number for each completion.
Function = Callable[..., Sequence[float]]
_PER_COMPLETION = ("completion_ids", "truncated")
_GIVEN = ("reasoning", *_PER_COMPLETION)  # by name, to functions that have them
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True)
class RewardFunction:
    """A registered reward function, and what checks its settings before anything is loaded, if it has that."""

    function: Function
    check: Callable[..., None] | None

    @property
    def settings(self) -> dict[str, inspect.Parameter]:
        """The parameters that are settings: all but completions, records and the arguments that are given by name."""
        named = [p for p in inspect.signature(self.function).parameters.values() if p.kind not in _VARIADIC]
        positional = [p.name for p in named if p.kind != inspect.Parameter.KEYWORD_ONLY][:2]
        return {p.name: p for p in named if p.name not in (*positional, *_GIVEN)}


REWARDS: dict[str, RewardFunction] = {}


def reward_function(name: str, check: Callable[..., None] | None = None) -> Callable[[Function], Function]:
    """Registers a reward function under a name.

    The function gets the texts of n completions and their n records, in this order, and by name those of the following
    arguments that it has: ``reasoning``, the mode; ``completion_ids``, the token ids of each completion with its EOS
    token; ``truncated``, whether each reached the maximum length without an EOS token. Its other parameters are its
    settings. It returns n finite numbers.

    ``check`` gets those of the settings, by name, that it has as parameters, and raises ValueError if they cannot work.

    Raises:
        ConfigError: the name is taken by another file, or the function does not take completions and records.
    """

    def register(function: Function) -> Function:
        reward = RewardFunction(function, check)
        try:
            inspect.signature(function).bind_partial([], [])
        except TypeError as error:
            raise ConfigError(f"reward function {name} must take completions and records first: {error}") from error
        if "weight" in reward.settings:
            raise ConfigError(f"reward function {name}: weight is a setting of every function; rename this parameter")
        file, own_module = source_file(function), f"{__name__}.{name}"
        other = source_file(REWARDS[name].function) if name in REWARDS else file
        if name in _files() and (spec := importlib.util.find_spec(own_module)) is not None:
            other = str(spec.origin)
        if other != file:
            raise ConfigError(f"reward function {name} is defined twice, in {other} and in {file}; rename one of them")
        REWARDS[name] = reward
        return function

    return register


@dataclass(frozen=True, slots=True)
class Rewards:
    """Rewards of n completions: those of each function by its name, and their weighted sum."""

    parts: Mapping[str, list[float]]
    total: list[float]


def compute_rewards(
    config: RewardConfig,
    completions: Sequence[str],
    records: Sequence[Record],
    reasoning: ReasoningMode,
    *,
    completion_ids: Sequence[Sequence[int]] | None = None,
    truncated: Sequence[bool] | None = None,
) -> Rewards:
    """Rewards of n completions, each for its own record.

    ``completion_ids``, ``truncated``: as in ``reward_function``. None: functions that need them cannot be used.

    Raises:
        RewardError: a function raised an exception, or returned no finite number for a completion.
        ValueError: there are not as many records as completions.
    """
    if len(records) != len(completions):
        raise ValueError(f"{len(completions)} completions, {len(records)} records: one is shorter")
    given = {"reasoning": reasoning, "completion_ids": completion_ids, "truncated": truncated}
    parts: dict[str, list[float]] = {}
    total = [0.0] * len(completions)
    for name, settings in config.functions.items():
        parts[name] = _values(name, settings, completions, records, given)
        total = [sum_ + settings["weight"] * value for sum_, value in zip(total, parts[name], strict=True)]
    return Rewards(parts, total)


def _values(
    name: str,
    settings: Mapping[str, Any],
    completions: Sequence[str],
    records: Sequence[Record],
    given: Mapping[str, Any],
) -> list[float]:
    """The values of one function."""
    function = _find(name).function
    arguments = _named(function, given) | {key: value for key, value in settings.items() if key != "weight"}
    if lacking := [key for key in arguments if key in given and arguments[key] is None]:
        raise RewardError(f"reward {name} needs {lacking[0]}, which the algorithm does not pass to compute_rewards")

    def score(rows: Sequence[int]) -> Any:
        own = {
            key: [value[row] for row in rows] if key in _PER_COMPLETION else value for key, value in arguments.items()
        }
        returned = function([completions[row] for row in rows], [records[row] for row in rows], **own)
        return list(returned) if isinstance(returned, Iterable) else returned

    try:
        values = score(range(len(completions)))
    except Exception as error:
        own_lines = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == source_file(function)]
        place = f" ({own_lines[-1].filename}, line {own_lines[-1].lineno})" if own_lines else ""
        which = _failing_record(score, records)
        raise RewardError(f"reward {name} raised {type(error).__name__} for {which}: {error}{place}") from error
    if not isinstance(values, list):
        raise RewardError(f"reward {name} returned {values!r}; return a list with a number for each completion")
    if len(values) != len(completions):
        raise RewardError(f"reward {name} returned {len(values)} values for {len(completions)} completions")
    for value, record in zip(values, records, strict=True):
        if not isinstance(value, Real) or not math.isfinite(value):
            raise RewardError(f"reward {name} returned {value!r} for record {record.id}; return a finite number")
    return [float(value) for value in values]


def _failing_record(score: Callable[[Sequence[int]], Any], records: Sequence[Record]) -> str:
    """Whose completion a function fails on: it scores all together, so each is scored alone until it fails again."""
    for row, record in enumerate(records):
        try:
            score([row])
        except Exception:
            return f"record {record.id}"
    return f"the records {', '.join(record.id for record in records)} together"


def check(config: RewardConfig) -> None:
    """Checks the settings of all reward functions.

    Raises:
        ConfigError: an unknown function or setting, a wrong value, or no function with a positive weight.
    """
    for name, settings in config.functions.items():
        key, reward = f"reward.functions.{name}", _find(name)
        own = reward.settings
        weight = settings.get("weight")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            hint = "; for a penalty, let the function return negative numbers" if weight is not None else ""
            raise ConfigError(f"{key}.weight={weight}: must be a number, at least 0{hint}")
        for setting, value in settings.items():
            if setting != "weight" and setting not in own:
                raise ConfigError(_no_setting(name, setting))
            default = own[setting].default if setting != "weight" else None
            expected = int | float if isinstance(default, float) else type(default)
            if isinstance(default, int | float | str) and not isinstance(value, expected):
                raise ConfigError(f"{key}.{setting}={value}: must be of the type of its default, {default!r}")
        if missing := [p.name for p in own.values() if p.default is p.empty and p.name not in settings]:
            raise ConfigError(f"reward {name} needs {key}.{missing[0]}")
        if reward.check is not None:
            values = {setting: settings.get(setting, p.default) for setting, p in own.items()}
            try:
                reward.check(**_named(reward.check, values))
            except Exception as error:
                problem = str(error) if isinstance(error, ValueError | ConfigError) else f"its check raised {error!r}"
                raise ConfigError(f"{key}: {problem}") from error
    if not any(settings["weight"] for settings in config.functions.values()):
        raise ConfigError("reward.functions: no weight is above 0, so that all advantages would be zero; give one")


def explain_key(key: str) -> str:
    """Why ``reward.functions.NAME[.SETTING]`` cannot be overridden or deleted, with the nearest valid name."""
    name, _, setting = key.removeprefix("reward.functions.").partition(".")
    try:
        own = _find(name).settings
    except ConfigError as error:
        return str(error)
    if setting and setting not in ("weight", *own):
        return _no_setting(name, setting)
    example = key if setting else f"{key}.weight"
    return f"{key} is not in the chosen reward; a plus sign adds it: +{example}=..."


def _named(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that a function has parameters for: all, if it has ``**kwargs``."""
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    return {key: value for key, value in values.items() if takes_all or key in parameters}


def _files() -> list[str]:
    """The reward functions of this package."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def _find(name: str) -> RewardFunction:
    """A registered function; files of this package are imported by name, so that unused ones are not loaded."""
    if name not in REWARDS and name in _files():
        importlib.import_module(f"{__name__}.{name}")
    if name not in REWARDS:
        raise ConfigError(f"reward.functions.{name}: no such reward function. {_nearest(name, {*_files(), *REWARDS})}")
    return REWARDS[name]


def _no_setting(name: str, setting: str) -> str:
    valid = ["weight", *_find(name).settings]
    return f"reward.functions.{name}.{setting}: no such setting. {_nearest(setting, valid)}"


def _nearest(wrong: str, valid: Iterable[str]) -> str:
    valid = sorted(valid)
    near = difflib.get_close_matches(wrong, valid, n=1, cutoff=0.4)
    return f"{f'Did you mean {near[0]}? ' if near else ''}Valid: {', '.join(valid)}"
