"""The MLflow database or server of a run, and the reference to the MLflow run in the run directory."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from medr1.atomic_write import read_json, write_json
from medr1.config.settings import LOOPBACK
from medr1.errors import ConfigError

RUN_FILE = "mlflow.json"


@dataclass(frozen=True, slots=True)
class StoredRun:
    """The content of mlflow.json. ``uri`` has no password."""

    uri: str
    experiment: str
    run_id: str
    experiment_id: str = field(default="", compare=False)

    def write(self, run_dir: Path) -> None:
        write_json(run_dir / RUN_FILE, asdict(self))

    def is_in(self, uri: str) -> bool:
        """Whether ``uri``, with or without its password, is the database or server of the run."""
        return self.uri.rstrip("/") == without_password(absolute_uri(uri)[0]).rstrip("/")

    @property
    def url(self) -> str:
        """The run's page on its server, or where ``mlflow ui`` shows a database by default."""
        server = self.uri.rstrip("/") if is_server(self.uri) else "http://127.0.0.1:5000"
        # Without the query, MLflow shows its menu for chat applications.
        return f"{server}/#/experiments/{self.experiment_id}/runs/{self.run_id}?workflowType=machine_learning"

    @property
    def shared_url(self) -> str:
        """The run's page on a server, or "" where only this machine has it."""
        host = urlsplit(self.uri).hostname or ""
        is_local = host in LOOPBACK or host.startswith("127.")
        return self.url if is_server(self.uri) and not is_local else ""


def stored_run(run_dir: Path) -> StoredRun | None:
    """The MLflow run of a run directory, or None if it was never tracked.

    Raises:
        ConfigError: mlflow.json cannot be read.
    """
    file = run_dir / RUN_FILE
    if not file.exists():
        return None
    try:
        return StoredRun(**read_json(file))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file} is damaged ({error}): remove it to track the run as a new one") from error


def absolute_uri(uri: str) -> tuple[str, Path | None]:
    """The URI with an absolute path, and this path if it is a SQLite file.

    Raises:
        ConfigError: the URI is neither a SQLite file nor a database or server.
    """
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
    try:
        urlsplit(uri)
    except ValueError as error:  # not shown, because it may contain a password
        raise ConfigError(f"the tracking URI is not the address of a database or server: {error}") from error
    return uri, None


def is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in ("http", "https")


def without_password(uri: str) -> str:
    try:
        password = urlsplit(uri).password
    except ValueError:  # refused by ``absolute_uri``
        return uri
    return uri.replace(f":{password}@", ":***@") if password else uri
