"""Every file that an installed medr1 needs is declared in pyproject.toml, and the version stands in one place."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import medr1
from medr1.config.paths import CONF, SWEEPS

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def test_in_a_checkout_the_settings_are_those_of_the_top_level() -> None:
    assert (CONF, SWEEPS) == (ROOT / "conf", ROOT / "sweeps")


def test_every_data_file_is_declared() -> None:
    folders: dict[str, str] = SETUPTOOLS["package-dir"]
    assert folders == {"medr1": "medr1", "medr1.conf": "conf", "medr1.sweeps": "sweeps"}
    files = {
        (".".join([package, *path.relative_to(ROOT / folder).parts[:-1]]), path.name)
        for package, folder in folders.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    declared: dict[str, list[str]] = SETUPTOOLS["package-data"]
    missing = [
        f"{package}: {name}"
        for package, name in sorted(files)
        if not any(fnmatch(name, pattern) for key in ("*", package) for pattern in declared.get(key, ()))
    ]
    assert len(files) > 60 and missing == []


def test_no_pattern_is_left_over() -> None:
    for package, patterns in SETUPTOOLS["package-data"].items():
        folder = ROOT if package == "*" else ROOT / package.replace(".", "/")
        assert all(any(folder.rglob(pattern)) for pattern in patterns), package


def test_the_version_is_read_from_the_package() -> None:
    assert "version" not in PROJECT["project"] and PROJECT["project"]["dynamic"] == ["version"]
    assert SETUPTOOLS["dynamic"]["version"]["attr"] == "medr1.__version__"
    lines = (ROOT / "medr1" / "__init__.py").read_text(encoding="utf-8").splitlines()
    assert f'__version__ = "{medr1.__version__}"' in lines  # a literal, which setuptools reads without an import
