"""Where a run is tracked: the URI of the database or server, and the note of it in the run directory."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from medr1.atomic_write import read_json, write_json
from medr1.errors import ConfigError

RUN_FILE = "mlflow.json"


@dataclass(frozen=True, slots=True)
class StoredRun:
    """What a run directory remembers of its run in MLflow. ``uri`` is without a password."""

    uri: str
    experiment: str
    run_id: str
    # For the run's page while the server is away.
    experiment_id: str = field(default="", compare=False)

    def write(self, run_dir: Path) -> None:
        """Writes ``mlflow.json`` in the run directory."""
        write_json(run_dir / RUN_FILE, asdict(self))


def stored_run(run_dir: Path) -> StoredRun | None:
    """The MLflow run that belongs to a run directory, for continuing it; None if it was never tracked.

    Raises:
        ConfigError: the file is there and unreadable.
    """
    file = run_dir / RUN_FILE
    if not file.exists():
        return None
    try:
        return StoredRun(**read_json(file))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file} is damaged ({error}): remove it to track the run as a new one") from error


def absolute_uri(uri: str) -> tuple[str, Path | None]:
    """The URI without dependence on the working directory, and the database's path if it is a file."""
    scheme, separator, rest = uri.partition("://")
    if scheme == "sqlite" and separator:
        name, question, options = rest.removeprefix("/").partition("?")
        if not rest.startswith("/") or name in ("", ":memory:"):
            raise ConfigError(
                f"tracking URI {uri!r} names no file: write sqlite:///relative.db or sqlite:////absolute.db"
            )
        path = Path(os.path.abspath(Path(name).expanduser()))
        return f"sqlite:///{path}{question}{options}", path
    if not separator or scheme == "file":
        raise ConfigError(
            f"tracking URI {uri!r}: MLflow no longer writes to plain directories; "
            "use sqlite:///path/to/mlflow.db or the http(s) address of a server"
        )
    return uri, None


def without_password(uri: str) -> str:
    password = urlsplit(uri).password
    return uri.replace(f":{password}@", ":***@") if password else uri
