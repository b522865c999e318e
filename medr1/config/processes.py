"""Checks the environment variables by which launchers tell a process its place among others.

Lightning believes them, whoever has set them: a variable that is left over from another job makes a run wait for
processes that nobody starts, or makes it a process that reports nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

from medr1.config.settings import LOOPBACK
from medr1.errors import ConfigError

_SLURM_SHELLS = ("bash", "interactive")  # names of jobs in which Lightning does not take SLURM for the launcher
_SLURM_RANKS = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
_PLACES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
_MEETING_POINT = ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def check_processes(devices: int, num_nodes: int, environment: Mapping[str, str], *, trains: bool = True) -> None:
    """Checks that the processes of a run are those that its launcher has started.

    ``devices`` processes on each of ``num_nodes`` nodes. ``trains``: they will look for each other; otherwise it only
    matters that this process is the first one.

    Raises:
        ConfigError: names the variable, its value and the remedy.
    """
    place = _Place(devices, num_nodes, environment)
    if not trains:
        pass
    elif "TORCHELASTIC_RUN_ID" in environment:  # torchrun, also inside of SLURM
        place.check_size("WORLD_SIZE", devices * num_nodes, "torchrun")
        place.check_size("LOCAL_WORLD_SIZE", devices, "torchrun")
        place.require(("RANK", "LOCAL_RANK", *_MEETING_POINT), "torchrun")
    elif "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in _SLURM_SHELLS:
        place.check_slurm()
    else:
        place.check_without_launcher()
    place.check_ranks()


class _Place:
    def __init__(self, devices: int, num_nodes: int, environment: Mapping[str, str]) -> None:
        self.devices, self.num_nodes, self.environment = devices, num_nodes, environment
        self.processes = devices * num_nodes
        nodes = f" on each of {num_nodes} nodes" if num_nodes > 1 else ""
        self.wanted = (
            f"this run has {devices} process{'es' if devices > 1 else ''}{nodes} (trainer.devices, trainer.num_nodes)"
        )

    def number(self, name: str) -> int | None:
        """The value of a variable, None if it is not set.

        Raises:
            ConfigError: it is no number.
        """
        text = self.environment.get(name)
        if text is None:
            return None
        if not text.isascii() or not text.isdigit():
            raise ConfigError(f"the environment variable {name}={text} is no number; unset {name}")
        return int(text)

    def require(self, names: tuple[str, ...], launcher: str) -> None:
        if missing := [name for name in names if name not in self.environment]:
            left_over = f", or unset those that are left over: {' '.join(self._set())}" if self._set() else ""
            raise ConfigError(
                f"{self.wanted}, but the environment variables are not those of {launcher}: {', '.join(missing)} "
                f"missing; start the command with {launcher}{left_over}"
            )

    def check_size(self, name: str, expected: int, launcher: str) -> None:
        found = self.number(name)
        if found is not None and found != expected:
            raise ConfigError(
                f"the environment variable {name}={found} does not fit: {self.wanted}. Start as many with {launcher}, "
                "or set trainer.devices and trainer.num_nodes to what it starts; if it is not used, unset "
                f"{' '.join(self._set())}"
            )

    def check_slurm(self) -> None:
        self.require(_SLURM_RANKS, "srun")
        self.check_size("SLURM_NTASKS", self.processes, "srun")
        self.check_size("SLURM_NTASKS_PER_NODE", self.devices, "srun")
        self.check_size("SLURM_NNODES", self.num_nodes, "srun")
        if self.processes > 1:
            self.require(("SLURM_STEP_ID", "SLURM_NTASKS_PER_NODE"), "srun --ntasks-per-node")

    def check_without_launcher(self) -> None:
        is_started = "LOCAL_RANK" in self.environment  # by Lightning in another process, or by the user
        if self.processes > 1 and is_started:
            self.require(_MEETING_POINT, "a launcher")
        if self.processes == 1 or is_started:
            self.check_size("WORLD_SIZE", self.processes, "a launcher")
        if self.num_nodes > 1:
            self.require(("NODE_RANK", "MASTER_ADDR", "MASTER_PORT"), "srun or torchrun")
        address = self.environment.get("MASTER_ADDR")
        if self.processes > 1 and self.num_nodes == 1 and address is not None and not _is_this_machine(address):
            raise ConfigError(
                f"the environment variable MASTER_ADDR={address} names another machine, but the run has one node; "
                "unset MASTER_ADDR"
            )

    def check_ranks(self) -> None:
        """No process may be one that the run does not have."""
        limits = dict.fromkeys(_PLACES, self.processes) | {"LOCAL_RANK": self.devices}
        limits |= dict.fromkeys(("NODE_RANK", "GROUP_RANK"), self.num_nodes)
        for name, limit in limits.items():
            found = self.number(name)
            if found is not None and found >= limit:
                raise ConfigError(
                    f"the environment variable {name}={found} does not fit: {self.wanted}, so that it lies below "
                    f"{limit}. If it is left over from another job, unset {name}"
                )
        port = self.number("MASTER_PORT") if self.processes > 1 else None
        if port is not None and not 0 < port < 65536:
            raise ConfigError(f"the environment variable MASTER_PORT={port} is no port; unset MASTER_PORT")

    def _set(self) -> list[str]:
        names = ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "LOCAL_WORLD_SIZE", *_PLACES, *_MEETING_POINT)
        return [name for name in names if name in self.environment]


def _is_this_machine(address: str) -> bool:
    if address in LOOPBACK:
        return True
    try:
        with socket.create_server((address, 0)):  # possible on an own address only
            return True
    except OSError:
        return False
