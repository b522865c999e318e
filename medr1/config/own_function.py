"""Functions of the user's own that a setting names, as ``my_file.py:my_reward`` or ``my_package.my_reward``.

A path is relative to the working directory. A module must be installed, as for any import. ``locate`` reads a source
without executing it, ``load`` executes the source of a file exactly as it was read.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from medr1.errors import ConfigError


@dataclass(frozen=True, slots=True)
class OwnFunction:
    """A function that the setting ``key`` names, with the text of its file. ``module`` is empty for a file."""

    key: str
    module: str
    file: Path
    attribute: str
    source: str

    @property
    def name(self) -> str:
        """What finds it from any working directory."""
        return f"{self.module}.{self.attribute}" if self.module else f"{self.file}:{self.attribute}"


def locate(key: str, name: Any) -> OwnFunction:
    """Finds a function and reads its source. Imports no more than the packages that contain its module.

    Raises:
        ConfigError: the name has another form, or there is no such file or module.
    """
    form = f"{key}={name}: write FILE.py:FUNCTION, or PACKAGE.FUNCTION for an installed package"
    if not isinstance(name, str):
        raise ConfigError(form)
    place, separator, attribute = name.rpartition(":") if ":" in name else name.rpartition(".")
    if not place or not attribute.isidentifier() or attribute == "py":
        raise ConfigError(f"{form}{f'; {name}:FUNCTION' if name.endswith('.py') else ''}")
    if separator == ".":
        return OwnFunction(key, place, file := _file_of_module(key, name, place), attribute, _read(key, file))
    file = Path(place).expanduser().absolute()
    if file.suffix != ".py":
        raise ConfigError(f"{form}; {place} does not end in .py")
    if not file.is_file():
        raise ConfigError(f"{key}={name}: there is no file {file}; a path is relative to the working directory")
    return OwnFunction(key, "", file.resolve(), attribute, _read(key, file))


def load(own: OwnFunction) -> Callable[..., Any]:
    """The function.

    Raises:
        ConfigError: its file cannot be executed or has no such function.
    """
    try:
        module = importlib.import_module(own.module) if own.module else _executed(own.file, own.source)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{own.key}: {own.file} cannot be imported: {error!r}; it can import itself only what is installed"
        ) from error
    function = getattr(module, own.attribute, None)
    if not callable(function):
        found = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        near = difflib.get_close_matches(own.attribute, found, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(found) or 'none'}"
        raise ConfigError(f"{own.key}: {own.file} has no function {own.attribute}; {hint}")
    return function  # type: ignore[no-any-return]


def _file_of_module(key: str, name: str, module: str) -> Path:
    try:
        spec = importlib.util.find_spec(module)
    except (Exception, SystemExit) as error:  # of the packages that contain it
        if not isinstance(error, ModuleNotFoundError):
            raise ConfigError(f"{key}={name}: {module} cannot be imported: {error!r}") from error
        spec = None
    if spec is None:
        here = f"{module.replace('.', '/')}.py"
        file = here if Path(here).is_file() else "FILE.py"
        own = f"{file}:{name.rpartition('.')[2]}"
        raise ConfigError(f"{key}={name}: no module {module} is installed; a file of your own is written {own}")
    if not spec.origin or not spec.origin.endswith(".py"):
        raise ConfigError(f"{key}={name}: {module} has no Python source that could be stored with the run")
    return Path(spec.origin)


def _read(key: str, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: {file} cannot be read: {error}") from error


def _executed(file: Path, source: str) -> ModuleType:
    """A module made of the source, executed once in a process. Python's importer could find an older compiled file."""
    name = f"medr1_own.{file.stem}_{hashlib.sha256(f'{file}:{source}'.encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(file)
        sys.modules[name] = module
        try:
            exec(compile(source, str(file), "exec", dont_inherit=True), vars(module))
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
