"""Reward functions. A reward function is one file, in this package or in the plugin folder, and one YAML file.

    @reward_function("brevity")
    def brevity(completions, records, *, completion_ids, longest=200):
        return [float(len(ids) <= longest) for ids in completion_ids]

``reward.functions`` names the functions of a run with their weights and settings:
``{accuracy: {weight: 1.0}, brevity: {weight: 0.1, longest: 100}}``.

A function that is registered nowhere is named by its file or module: ``{brevity: {function: my_file.py:brevity, weight:
0.1, longest: 100}}``. It gets all arguments by name, and has no YAML file.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import math
import pkgutil
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from medr1.config.messages import closest
from medr1.config.own_function import OwnFunction, load, locate
from medr1.config.registry import source_file
from medr1.config.settings import RewardConfig
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.errors import ConfigError, RewardError

# (completions, records, ...) -> a number for each completion.
Function = Callable[..., Sequence[float]]
_FIRST = ("completions", "records")  # by position, to registered functions
_PER_COMPLETION = (*_FIRST, "answers", "completion_ids", "truncated")
_GIVEN = ("reasoning", *_PER_COMPLETION[2:])  # by name, to functions that have them
_OF_EVERY_FUNCTION = ("weight", "function")
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True)
class RewardFunction:
    """A reward function, and what checks its settings before anything is loaded, if it has that.

    ``by_name``: it gets completions and records by name too, as one of the user's own does, if it has them.
    ``maximum``: the highest number it returns, or None if that is not known.
    """

    function: Function
    check: Callable[..., None] | None
    by_name: bool = False
    maximum: float | None = None

    @property
    def settings(self) -> dict[str, inspect.Parameter]:
        """The parameters that are settings: all but completions, records and the arguments that are given by name."""
        named = [p for p in inspect.signature(self.function).parameters.values() if p.kind not in _VARIADIC]
        positional = [p.name for p in named if p.kind != inspect.Parameter.KEYWORD_ONLY][:2]
        return {p.name: p for p in named if p.name not in (*(_FIRST if self.by_name else positional), *_GIVEN)}

    @property
    def takes_any_setting(self) -> bool:
        """Whether settings that it has no parameter for reach it as ``**kwargs``."""
        parameters = inspect.signature(self.function).parameters.values()
        return self.by_name and any(p.kind == p.VAR_KEYWORD for p in parameters)


REWARDS: dict[str, RewardFunction] = {}
# The user's own by what finds them, as checked: a file that is changed during a run does not change its reward.
_OWN: dict[str, tuple[OwnFunction, RewardFunction]] = {}


def reward_function(
    name: str, check: Callable[..., None] | None = None, maximum: float | None = None
) -> Callable[[Function], Function]:
    """Registers a reward function under a name.

    The function gets the texts of n completions and their n records, in this order, and by name those of the following
    arguments that it has: ``reasoning``, the mode; ``answers``, the letter of the correct option of each record;
    ``completion_ids``, the token ids of each completion with its EOS token; ``truncated``, whether each reached the
    maximum length without an EOS token. Its other parameters are its settings. It returns n finite numbers.

    ``check`` gets those of the settings, by name, that it has as parameters, and raises ValueError if they cannot work.
    ``maximum`` is the highest number that the function returns; figures show it.

    Raises:
        ConfigError: the name is taken by another file, or the function does not take completions and records.
    """

    def register(function: Function) -> Function:
        reward = RewardFunction(function, check, maximum=maximum)
        try:
            bound = inspect.signature(function).bind_partial([], [])
        except TypeError as error:
            raise ConfigError(f"reward function {name} must take completions and records first: {error}") from error
        if by_name := [parameter for parameter in bound.arguments if parameter in _GIVEN]:
            raise ConfigError(
                f"reward function {name} must take completions and records first, and gets {', '.join(by_name)} by name"
            )
        _refuse_shared_settings(f"reward function {name}", reward)
        file, own_module = source_file(function), f"{__name__}.{name}"
        other = source_file(REWARDS[name].function) if name in REWARDS else file
        if name in _files() and (spec := importlib.util.find_spec(own_module)) is not None:
            other = str(spec.origin)
        if other != file:
            raise ConfigError(f"reward function {name} is defined twice, in {other} and in {file}; rename one of them")
        REWARDS[name] = reward
        return function

    return register


def locate_own(config: RewardConfig) -> dict[str, OwnFunction]:
    """The functions of the user's own by name, with their sources as they are now. Executes none of them.

    Raises:
        ConfigError: there is no such file or module.
    """
    named = {name: settings["function"] for name, settings in config.functions.items() if "function" in settings}
    return {name: locate(_key(name), function) for name, function in named.items()}


def checked_own(config: RewardConfig) -> dict[str, OwnFunction]:
    """The functions of the user's own by name, with the sources that ``check`` has executed."""
    return {name: _OWN[s["function"]][0] for name, s in config.functions.items() if "function" in s}


@dataclass(frozen=True, slots=True)
class Rewards:
    """Rewards of n completions: those of each function by its name, and their weighted sum."""

    parts: Mapping[str, list[float]]
    total: list[float]

    def __add__(self, others: Rewards) -> Rewards:
        """These, and then those of other completions."""
        parts = {name: [*values, *others.parts[name]] for name, values in self.parts.items()}
        return Rewards(parts, [*self.total, *others.total])

    def select(self, rows: Sequence[int]) -> Rewards:
        parts = {name: [values[row] for row in rows] for name, values in self.parts.items()}
        return Rewards(parts, [self.total[row] for row in rows])


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
    given = {
        "completions": completions,
        "records": records,
        "answers": [record.answer for record in records],
        "reasoning": reasoning,
        "completion_ids": completion_ids,
        "truncated": truncated,
    }
    parts: dict[str, list[float]] = {}
    total = [0.0] * len(completions)
    for name, settings in config.functions.items():
        parts[name] = _values(name, settings, records, given)
        total = [sum_ + settings["weight"] * value for sum_, value in zip(total, parts[name], strict=True)]
    return Rewards(parts, total)


def _values(name: str, settings: Mapping[str, Any], records: Sequence[Record], given: Mapping[str, Any]) -> list[float]:
    """The values of one function."""
    reward = _find(name, settings)
    function, first = reward.function, () if reward.by_name else _FIRST
    own = {key: value for key, value in settings.items() if key not in _OF_EVERY_FUNCTION}
    arguments = _named(function, {key: value for key, value in given.items() if key not in first}) | own
    if lacking := [key for key in arguments if key in given and arguments[key] is None]:
        raise RewardError(f"reward {name} needs {lacking[0]}, which the algorithm does not pass to compute_rewards")

    def score(rows: Sequence[int]) -> Any:
        def of_rows(key: str, value: Any) -> Any:
            return [value[row] for row in rows] if key in given and key in _PER_COMPLETION else value

        by_position = [of_rows(key, given[key]) for key in first]
        returned = function(*by_position, **{key: of_rows(key, value) for key, value in arguments.items()})
        return list(returned) if isinstance(returned, Iterable) else returned

    try:
        values = score(range(len(records)))
    except Exception as error:
        own_lines = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == source_file(function)]
        place = f" ({own_lines[-1].filename}, line {own_lines[-1].lineno})" if own_lines else ""
        which = _failing_record(score, records)
        raise RewardError(
            f"reward {name} raised {type(error).__name__} for {which}: {error}{place}; let it return a number for "
            "every completion, such as 0 for one that it cannot score"
        ) from error
    if not isinstance(values, list):
        raise RewardError(f"reward {name} returned {values!r}; return a list with a number for each completion")
    if len(values) != len(records):
        raise RewardError(
            f"reward {name} returned {len(values)} values for {len(records)} completions, the first of record "
            f"{records[0].id}; return one for each, in order"
        )
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

    Executes the files of the user's own, and makes their paths in ``config`` absolute.

    Raises:
        ConfigError: an unknown function or setting, a wrong value, or no function with a positive weight.
    """
    for name, settings in config.functions.items():
        if "function" in settings:
            settings["function"] = _import_own(name, settings["function"])
        key, reward = f"reward.functions.{name}", _find(name, settings)
        own = reward.settings
        weight = settings.get("weight")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            hint = "; for a penalty, let the function return negative numbers" if weight is not None else ""
            if weight is None and (near := closest("weight", settings, cutoff=0.7)):
                hint = f"; {near[0]} is given, which is no weight"
            raise ConfigError(f"{key}.weight={weight}: must be a number, at least 0{hint}")
        for setting, value in settings.items():
            if setting in _OF_EVERY_FUNCTION or (setting not in own and reward.takes_any_setting):
                continue
            if setting not in own:
                raise ConfigError(_no_setting(name, setting, reward))
            default = own[setting].default
            expected = int | float if isinstance(default, float) else type(default)
            if isinstance(default, int | float | str) and not isinstance(value, expected):
                raise ConfigError(f"{key}.{setting}={value}: must be of the type of its default, {default!r}")
        if missing := [p.name for p in own.values() if p.default is p.empty and p.name not in settings]:
            raise ConfigError(
                f"reward {name} needs {key}.{missing[0]}: it is a parameter without a default and none of the "
                f"arguments that are passed, {', '.join((*_FIRST, *_GIVEN))}"
            )
        if reward.check is not None:
            values = {setting: settings.get(setting, p.default) for setting, p in own.items()}
            try:
                reward.check(**_named(reward.check, values))
            except Exception as error:
                problem = str(error) if isinstance(error, ValueError | ConfigError) else f"its check raised {error!r}"
                raise ConfigError(f"{key}: {problem}") from error
    if not any(settings["weight"] for settings in config.functions.values()):
        raise ConfigError("reward.functions: no weight is above 0, so that all advantages would be zero; give one")


def max_reward(config: RewardConfig) -> float | None:
    """The highest reward that a completion can get, or None if that of a function is not known."""
    total = 0.0
    for name, settings in config.functions.items():
        try:
            maximum = None if "function" in settings else _find(name).maximum
        except ConfigError:  # a plugin of a stored run that is no longer there
            maximum = None
        if maximum is None:
            return None
        total += settings["weight"] * maximum
    return total


def explain_key(key: str) -> str:
    """Why ``reward.functions.NAME[.SETTING]`` cannot be overridden or deleted, with the nearest valid name."""
    name, _, setting = key.removeprefix("reward.functions.").partition(".")
    try:
        reward = _find(name)
    except ConfigError as error:
        if setting != "function":
            return str(error)
        return f"{key} is not in the chosen reward; a plus sign adds it: +{key}=..."
    if setting and setting not in ("weight", *reward.settings):
        return _no_setting(name, setting, reward)
    example = key if setting else f"{key}.weight"
    return f"{key} is not in the chosen reward; a plus sign adds it: +{example}=..."


def _named(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that a function has parameters for: all, if it has ``**kwargs``."""
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    return {key: value for key, value in values.items() if takes_all or key in parameters}


def registered() -> dict[str, RewardFunction]:
    """The reward functions of this package by name, all of them imported."""
    return {name: _find(name) for name in _files()}


def _files() -> list[str]:
    """The reward functions of this package."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def _find(name: str, settings: Mapping[str, Any] | None = None) -> RewardFunction:
    """A registered function, or the one that the settings name.

    Files of this package are imported by name, so that unused ones are not loaded.
    """
    if settings is not None and "function" in settings:
        if settings["function"] not in _OWN:
            return _OWN[_import_own(name, settings["function"])][1]
        return _OWN[settings["function"]][1]
    if name not in REWARDS and name in _files():
        importlib.import_module(f"{__name__}.{name}")
    if name not in REWARDS:
        raise ConfigError(
            f"reward.functions.{name}: no such reward function. {_nearest(name, {*_files(), *REWARDS})}. A function of "
            f"your own is given as +reward.functions.{name}.function=FILE.py:FUNCTION"
        )
    return REWARDS[name]


def _key(name: str) -> str:
    return f"reward.functions.{name}.function"


def _import_own(reward: str, name: Any) -> str:
    """Imports a function of the user's own. Returns what finds it from any working directory.

    Raises:
        ConfigError: it cannot be found, imported or called with arguments by name.
    """
    key = _key(reward)
    if reward in REWARDS or reward in _files():
        raise ConfigError(f"{key}: medr1 has a reward {reward} already; choose another name for your own")
    function = load(own := locate(key, name))
    problem = ""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise ConfigError(f"{key}: the parameters of {own.name} are unknown; define it with def") from None
    by_position = [p.name for p in parameters if p.kind == p.POSITIONAL_ONLY]
    if inspect.iscoroutinefunction(function):
        problem = "is asynchronous; define it with def"
    elif by_position:
        problem = f"takes {by_position[0]} by position only; all arguments are passed by name"
    elif not any(
        p.name in ("completions", "completion_ids", "truncated") or p.kind == p.VAR_KEYWORD for p in parameters
    ):
        passed = ", ".join((*_FIRST, *_GIVEN))
        problem = f"has neither completions nor completion_ids as a parameter; passed by name are {passed}"
    if problem:
        raise ConfigError(f"{key}: {own.name} {problem}")
    found = RewardFunction(function, None, by_name=True)
    _refuse_shared_settings(f"{key}: {own.name}", found)
    _OWN[own.name] = own, found
    return own.name


def _refuse_shared_settings(what: str, reward: RewardFunction) -> None:
    if shared := [name for name in _OF_EVERY_FUNCTION if name in reward.settings]:
        raise ConfigError(f"{what}: {shared[0]} is a setting of every function; rename this parameter")


def _no_setting(name: str, setting: str, reward: RewardFunction) -> str:
    valid = ["weight", *reward.settings]
    return f"reward.functions.{name}.{setting}: no such setting. {_nearest(setting, valid)}"


def _nearest(wrong: str, valid: Iterable[str]) -> str:
    valid = sorted(valid)
    near = difflib.get_close_matches(wrong, valid, n=1, cutoff=0.4)
    return f"{f'Did you mean {near[0]}? ' if near else ''}Valid: {', '.join(valid)}"
