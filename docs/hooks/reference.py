"""MkDocs hook: writes the configuration reference from the typed settings and the files of ``conf/`` at build time.

A page asks for a part by a marker of its own line, such as ``<!-- generated: configuration -->``. A setting without a
docstring ends the build.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# Imported here and not when it is used: MkDocs restores sys.path after it has loaded a hook.
import medr1.rewards  # noqa: E402
import medr1.workflows.components  # noqa: E402

CONF, SWEEPS = ROOT / "conf", ROOT / "sweeps"
# Groups that choose one word or a command-line shortcut; the others have settings of their own.
GROUPS = (
    *("model", "data", "modality", "question_type", "reasoning"),
    *("reward", "algorithm", "rollout", "trainer", "tracking"),
)
PRESETS = ("sweep", "budget", "experiment", "launcher", "debug")

_NAMES = re.compile(r"\s*TRL: (?P<trl>.+?)\. verl: (?P<verl>.+?)\.\s*$", re.DOTALL)


class MissingDocstring(Exception):
    """A setting or a reward function has no description."""


class PerOption(dict[str, Any]):
    """The default of a setting for each option of its group."""


@dataclass(frozen=True)
class Setting:
    """One key of the configuration. ``trl`` and ``verl`` are empty where its docstring does not compare it."""

    key: str
    type: str
    default: str
    meaning: str
    trl: str
    verl: str


def docstrings(schema: type) -> dict[str, str]:
    """The string literals under the fields of a dataclass and its bases, by field."""
    found: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        if not is_dataclass(cls):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = inspect.cleandoc(text)
    return found


def settings_of(schema: type, prefix: str, values: Mapping[str, Any]) -> Iterator[Setting]:
    """The settings of a schema under dotted keys; ``values`` are the defaults that a YAML file sets, by dotted key.

    Raises:
        MissingDocstring: names the field.
    """
    hints, texts = typing.get_type_hints(schema), docstrings(schema)
    for item in fields(schema):
        key, hint = f"{prefix}{item.name}", hints[item.name]
        if item.name not in texts:
            raise MissingDocstring(f"{schema.__module__}.{schema.__qualname__}.{item.name} has no docstring")
        if is_dataclass(hint) and key not in GROUPS:
            yield from settings_of(typing.cast(type, hint), f"{key}.", values)
            continue
        names = _NAMES.search(texts[item.name])
        meaning = " ".join(_NAMES.sub("", texts[item.name]).split()).replace("``", "`")
        trl, verl = (names["trl"], names["verl"]) if names else ("", "")
        yield Setting(key, _type(hint), _default(item, values.get(key)), meaning, _flat(trl), _flat(verl))


def schemas() -> dict[str, dict[str, type]]:
    """Every registered schema by config group and name; the group ``""`` holds those of the two commands.

    Importing ``medr1.workflows.components`` has registered them.
    """
    found: dict[str, dict[str, type]] = {}
    for group, content in ConfigStore.instance().repo.items():
        if group.endswith(".yaml"):
            found.setdefault("", {})[group.removesuffix(".yaml")] = OmegaConf.get_type(content.node)
        elif group in GROUPS:
            found[group] = {
                name.removesuffix(".yaml"): OmegaConf.get_type(node.node)
                for name, node in content.items()
                if hasattr(node, "node") and is_dataclass(OmegaConf.get_type(node.node))
            }
    return found


def options(group: str) -> dict[str, Path]:
    """The YAML files of a config group by name."""
    folder = SWEEPS if group == "sweep" else CONF / group
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def own_values(path: Path, prefix: str) -> dict[str, Any]:
    """The keys that one YAML file sets, dotted, with interpolations as they are written."""
    flat: dict[str, Any] = {}

    def walk(node: Any, at: str) -> None:
        for key, value in node.items():
            if key in ("defaults", "hydra"):
                continue
            if isinstance(value, dict):
                walk(value, f"{at}{key}.")
            else:
                flat[f"{at}{key}"] = value

    walk(_content(path), prefix)
    return flat


def defaults_list(path: Path) -> list[Any]:
    """The defaults list of a YAML file."""
    return list(_content(path).get("defaults", []))


def _content(path: Path) -> dict[str, Any]:
    return _read(path, path.stat().st_mtime_ns)


@functools.cache  # a page reads each file some twenty times, and `mkdocs serve` reads those that have changed
def _read(path: Path, modified: int) -> dict[str, Any]:
    return typing.cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(path)))


def description(path: Path) -> str:
    """The comment at the top of a YAML file."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def chosen(group: str) -> str | None:
    """The option of a group that the commands choose by default."""
    for name in ("common", "train"):
        for entry in defaults_list(CONF / f"{name}.yaml"):
            if isinstance(entry, dict) and group in entry:
                return typing.cast("str | None", entry[group])
    return None


def _base_values(group: str, schema: str) -> dict[str, Any]:
    """Defaults of a schema by dotted key, from the options that name it in their defaults list.

    Where several do and differ, the default lists each value with its option.
    """
    users = {
        name: own_values(path, f"{group}.") for name, path in options(group).items() if schema in defaults_list(path)
    }
    values: dict[str, Any] = {}
    for key in dict.fromkeys(key for own in users.values() for key in own):
        found = {name: own[key] for name, own in users.items() if key in own}
        same = len(found) == len(users) and len({_word(value) for value in found.values()}) == 1
        values[key] = next(iter(found.values())) if same else PerOption(found)
    return values


def all_settings() -> list[Setting]:
    """Every setting of both commands, each key once for each schema that has it."""
    return [setting for _, _, rows in sections() for setting in rows]


def sections() -> Iterator[tuple[str, type, list[Setting]]]:
    """The parts of the reference: a group (or ``""``), a schema and its settings."""
    found = schemas()
    for name in ("train", "evaluate"):
        values = own_values(CONF / "common.yaml", "") | own_values(CONF / f"{name}.yaml", "")
        schema = found[""][f"{name}_schema"]
        yield "", schema, list(settings_of(schema, "", values))
    for group in GROUPS:
        for name, schema in found.get(group, {}).items():
            yield group, schema, list(settings_of(schema, f"{group}.", _base_values(group, name)))


def configuration() -> str:
    """The configuration reference as Markdown."""
    found = schemas()
    lines: list[str] = []
    train, evaluate = (rows for group, _, rows in sections() if not group)
    shared = [row for row in train if row in evaluate]
    for title, rows in (
        ("Settings of both commands", shared),
        ("Settings of `train.py`", [row for row in train if row not in shared]),
        ("Settings of `evaluate.py`", [row for row in evaluate if row not in shared]),
    ):
        lines += [f"## {title}", "", *_table(rows), ""]
    for group in GROUPS:
        lines += [f"## `{group}`", "", *_options(group), ""]
        for name, schema in found.get(group, {}).items():
            users = [f"`{option}`" for option in options(group) if name in _ancestry(group, option)]
            bases = [f"`{option}`" for option in options(group) if name in defaults_list(options(group)[option])]
            others = [user for user in users if user not in bases]
            heading = f"### Settings of {', '.join(bases)}" if len(found[group]) > 1 and bases else ""
            shared = f" Also for {', '.join(others)}." if heading and others else ""
            rows = list(settings_of(schema, f"{group}.", _base_values(group, name)))
            lines += [heading, "", f"{_summary(schema)}{shared}", "", *_table(rows), ""]
        if group == "reward":
            lines += ["### Settings of reward functions", "", *_table(list(reward_settings())), ""]
    for group in PRESETS:
        if options(group):
            lines += [f"## `{group}`", "", *_options(group), ""]
    return "\n".join(lines)


def reward_settings() -> Iterator[Setting]:
    """The settings of medr1's reward functions, with the descriptions under "Settings:" of their docstrings.

    Raises:
        MissingDocstring: names the function and the setting.
    """
    for name, reward in medr1.rewards.registered().items():
        hints = typing.get_type_hints(reward.function)
        _, _, section = (inspect.getdoc(reward.function) or "").partition("Settings:\n")
        texts = {key: _flat(text) for key, text in re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, re.MULTILINE)}
        if set(texts) != set(reward.settings):
            wrong = sorted(set(texts) ^ set(reward.settings))
            raise MissingDocstring(f"reward {name}: its docstring and its parameters do not have the same {wrong}")
        for setting, parameter in reward.settings.items():
            default = "" if parameter.default is parameter.empty else _quoted(parameter.default)
            meaning = texts[setting].replace("``", "`")
            yield Setting(f"reward.functions.{name}.{setting}", _type(hints[setting]), default, meaning, "", "")


def reward_functions() -> str:
    """The table of medr1's reward functions: what each returns, and its range.

    Raises:
        MissingDocstring: names the function that tells no range.
    """
    lines = ["| name | reward of a completion | range | settings |", "|---|---|---|---|"]
    for name, reward in medr1.rewards.registered().items():
        text = inspect.getdoc(reward.function) or ""
        span = re.search(r"^Range: (.+)\.$", text, re.MULTILINE)
        if span is None:
            raise MissingDocstring(f"reward {name}: its docstring has no line 'Range: ... .'")
        what = [_flat(part).replace("``", "`") for part in (text.split("\n\n")[0], span[1])]
        settings = ", ".join(f"`{setting}`" for setting in reward.settings)
        lines.append(f"| `{name}` | {_cell(what[0])} | {what[1]} | {settings} |")
    return "\n".join(lines)


def other_names() -> str:
    """The table of medr1's settings beside those of TRL and verl, for every setting that compares itself."""
    lines = ["| medr1 | TRL | verl |", "|---|---|---|"]
    seen = set()
    for setting in all_settings():
        row = f"| `{setting.key}` | {_code(setting.trl)} | {_code(setting.verl)} |"
        if setting.trl and row not in seen:
            seen.add(row)
            lines.append(row)
    return "\n".join(lines)


def _ancestry(group: str, option: str) -> set[str]:
    """The schemas and options that an option builds on."""
    found: set[str] = set()
    for entry in defaults_list(options(group)[option]):
        if isinstance(entry, str) and entry != "_self_":
            found |= {entry} | (_ancestry(group, entry) if entry in options(group) else set())
    return found


def _summary(schema: type) -> str:
    first = (inspect.getdoc(schema) or schema.__name__).split("\n\n")[0]
    return _flat(first).replace("``", "`")


def _options(group: str) -> list[str]:
    default = chosen(group)
    lines = ["| choice | what it is | sets |", "|---|---|---|"]
    for name, path in options(group).items():
        prefix = "" if group in PRESETS else f"{group}."
        sets = [
            f"`{key.removeprefix(prefix)}={_word(value)}`"
            for key, value in own_values(path, prefix).items()
            if key != f"{group}.name"
        ]
        on_top = [entry for entry in defaults_list(path) if isinstance(entry, str) and entry in options(group)]
        above = f"As `{on_top[0]}`. " if on_top else ""
        mark = " (default)" if name == default else ""
        is_base = any(str(entry).endswith("schema") for entry in defaults_list(path)) and len(sets) > 6
        lines.append(f"| `{name}`{mark} | {above}{_cell(description(path))} | {'' if is_base else ' '.join(sets)} |")
    return lines


def _table(rows: list[Setting]) -> list[str]:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for row in rows:
        names = f"<br><small>TRL {_code(row.trl)}, verl {_code(row.verl)}</small>" if row.trl else ""
        lines.append(f"| `{row.key}` | {row.type} | {row.default} | {_cell(row.meaning)}{names} |")
    return lines


def _type(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _type(part) for part in typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ", ".join(f"`{value.value}`" for value in hint)
    if typing.get_origin(hint) is not None:
        return f"`{hint}`".replace("|", "\\|")
    return "choice of the group" if is_dataclass(hint) else getattr(hint, "__name__", str(hint))


def _default(item: Field[Any], value: Any) -> str:
    own = item.default
    if own is NO_DEFAULT and item.default_factory is not NO_DEFAULT:
        own = item.default_factory()
    own = "" if own is NO_DEFAULT or own == MISSING else _quoted(own)
    if isinstance(value, PerOption):
        if all(name == of for name, of in value.items()):
            return "name of the choice"
        each = [f"{_quoted(of)} (`{name}`)" for name, of in value.items() if of != MISSING]
        return "<br>".join([own, *each] if own else each)
    return own if value is None else "" if value == MISSING else _quoted(value)


def _quoted(value: Any) -> str:
    return f"`{_word(value)}`" if _word(value) else ""


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value.value if isinstance(value, Enum) else value)


def _code(words: str) -> str:
    return words if words == "-" or " " in words else f"`{words}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _flat(text: str) -> str:
    return " ".join(text.split())


def include(name: str) -> str:
    """A page of the repository's root, its links as seen from ``docs/``."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


PARTS = {"configuration": configuration, "names": other_names, "rewards": reward_functions}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for each page: replaces the markers."""
    markdown = re.sub(r"<!-- generated: (\w+) -->", lambda found: PARTS[found[1]](), markdown)
    # What follows the marker is for those who read the file itself.
    return re.sub(r"<!-- include: ([\w.]+) -->.*", lambda found: include(found[1]), markdown, flags=re.DOTALL)
