"""Gives every new run a directory of its own, and takes it back from a command that fails before its run begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from medr1.config.naming import is_other_process
from medr1.runs.run_directory import RunDirectory

_claimed: list[RunDirectory] = []


class NewDirectoryCallback(Callback):
    """Called by Hydra at the start of every command, before it creates the run directory."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Creates the directory. Of several runs that start in one second, each gets its own."""
        is_given = any(word.startswith("hydra.run.dir=") for word in config.hydra.overrides.hydra)
        exports = config.get("export") and config.get("run")  # into another place
        goes_on = config.resume is not None or exports or isinstance(config.get("sweep"), str)
        if is_given or goes_on or config.get("plan") or is_other_process():
            return
        path = Path(config.hydra.run.dir).absolute()
        try:
            run = RunDirectory(path).claim_new()
        except OSError:
            return  # Hydra fails at the same place and its error ends the command; one of a callback is a warning only
        _claimed.append(run)
        with read_write(config), open_dict(config):
            config.hydra.run.dir = str(run.path)


def discard_unstarted() -> None:
    """Removes the directory that this command has claimed, unless its run has begun."""
    for run in _claimed:
        run.discard_unless_started()
    _claimed.clear()
