"""Error messages for mistakes in a config."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator

from hydra.errors import MissingConfigException
from omegaconf.errors import InterpolationKeyError

from medr1.config.renamed import RENAMED
from medr1.config.schema import key_paths, key_types, schemas
from medr1.config.settings import TrainConfig


def explain(error: Exception, schema: type) -> str:
    """The message for an error of Hydra or OmegaConf: what is wrong, and the nearest valid name."""
    message = str(error).strip()
    cause = error.__cause__
    if cause is not None and str(cause).strip() not in message:
        message = f"{message}\n{str(cause).strip()}"
    if several := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^=]+)=(.*)'", message):
        key, value = several[1], several[2]
        if any(path == key and "list" in str(of) for path, of in key_types(schema)):
            return f"{key}={value}: a list needs brackets, and quotes for the shell: '{key}=[{value}]'"
        return (
            f"{key}={value}: several values make several runs, which needs -m: -m {key}={value}\n"
            f"One value with a comma in it needs quotes: '{key}=\"{value}\"'"
        )
    if missing := re.search(r"Could not find 'hydra/launcher/(\w+)'", message):
        return (
            f"hydra/launcher={missing[1]} is no launcher, or is not installed: "
            'pip install -e ".[launchers]" has joblib, submitit_local and submitit_slurm, ".[ray]" has ray'
        )
    if isinstance(error, MissingConfigException) and error.options:
        wrong = (error.missing_cfg_file or "").rsplit("/", 1)[-1]
        return f"{message.splitlines()[0]}\n{nearest(wrong, [o for o in error.options if 'schema' not in o])}"
    if isinstance(error, InterpolationKeyError) and (found := re.search(r"Interpolation key '([^']+)'", message)):
        taker = f"{error.full_key}=" if error.full_key else ""
        remedy = f"Give {error.full_key or 'the setting'} a value of its own, without ${{...}}."
        return f"{taker}${{{found[1]}}}: {_unknown(found[1], schema)}\n{remedy}"
    if (key := refused_key(error)) is not None:
        return _unknown(key, schema)
    if found := re.search(r"Invalid value '([^']*)', expected one of \[([^\]]*)\]", message):
        return f"{message.splitlines()[0]}\n{found[0]}. {nearest(found[1], found[2].split(', '))}"
    return message


def refused_key(error: Exception) -> str | None:
    """The key that Hydra could not override or delete, because the composed config does not have it."""
    refused = re.search(r"Could not (?:override|delete from config\.) '([^'@]+)'", str(error))
    return refused[1] if refused else None


def _unknown(key: str, schema: type) -> str:
    """Why the config has no such key: renamed, of a choice that was not made, or misspelt."""
    if key in RENAMED:
        return f"{key} is called {RENAMED[key]}"
    valid = dict.fromkeys(key_paths(schema))
    if key in valid and (owners := list(_owners(key))):
        first, last = owners[:-1], owners[-1]
        choices = f"{', '.join(first)} and {last}, none of which is chosen" if first else f"{last}, which is not chosen"
        return f"{key} is a setting of {choices} here"
    if schema is TrainConfig:
        valid |= {"debug": None, "experiment": None}
    return f"There is no setting {key!r}. {nearest(key, valid, shown=3) or '--cfg job shows all.'}"


def _owners(key: str) -> Iterator[str]:
    """The options (group=name) whose schema has this key."""
    for (group, name), schema in schemas().items():
        if group and key in key_paths(schema, f"{group}."):
            yield f"{group}={name.removesuffix('_schema')}"


def closest(wrong: str, valid: Iterable[str], cutoff: float = 0.4) -> list[str]:
    """At most three ``valid`` names that are most like ``wrong`` in any case, the best first."""
    by_fold = {name.casefold(): name for name in valid}
    return [by_fold[fold] for fold in difflib.get_close_matches(wrong.casefold(), by_fold, n=3, cutoff=cutoff)]


def nearest(wrong: str, valid: Iterable[str], shown: int | None = None) -> str:
    """The ``valid`` names that are most like ``wrong``, and with ``shown=None`` all of them, in a sentence."""
    valid = list(map(str, valid))
    near = closest(wrong, valid)
    guess = f"Did you mean {' or '.join(repr(n) for n in near[:shown])}?" if near else ""
    rest = "" if shown else f" Valid: {', '.join(sorted(valid))}."
    return f"{guess}{rest}".strip()
