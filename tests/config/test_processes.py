"""Environment variables of launchers: those of a real launcher are taken, those left over are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medr1.config.processes import check_processes
from medr1.errors import ConfigError
from tests.integration.conftest import command

MEET = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def torchrun(rank: int, devices: int, nodes: int = 1) -> dict[str, str]:
    node, local = divmod(rank, devices)
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(local), "GROUP_RANK": str(node), "ROLE_RANK": str(rank)}
    sizes = {"WORLD_SIZE": str(devices * nodes), "LOCAL_WORLD_SIZE": str(devices)}
    return {"TORCHELASTIC_RUN_ID": "none", **ranks, **sizes, "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


def slurm(rank: int, devices: int, nodes: int = 1, step: bool = True) -> dict[str, str]:
    node, local = divmod(rank, devices)
    sizes = {"SLURM_NTASKS": str(devices * nodes), "SLURM_NNODES": str(nodes), "SLURM_JOB_NAME": "train"}
    sizes |= {"SLURM_NTASKS_PER_NODE": str(devices)} | ({"SLURM_STEP_ID": "0"} if step else {})
    return {**sizes, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local), "SLURM_NODEID": str(node)}


def lightning(rank: int, devices: int) -> dict[str, str]:
    """What Lightning gives the processes that it starts itself."""
    return {**MEET, "NODE_RANK": "0", "LOCAL_RANK": str(rank), "WORLD_SIZE": str(devices)}


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


FINE: list[tuple[int, int, dict[str, str]]] = [
    (1, 1, {}),
    (4, 1, {}),
    (1, 1, {"MASTER_ADDR": "elsewhere", "MASTER_PORT": "1"}),  # of no use to one process
    (1, 1, {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "NODE_RANK": "0"}),
    *((2, 1, lightning(rank, 2)) for rank in (0, 1)),
    *((2, 1, torchrun(rank, 2)) for rank in (0, 1)),
    *((2, 2, torchrun(rank, 2, 2)) for rank in range(4)),
    (1, 1, torchrun(0, 1)),
    *((2, 2, slurm(rank, 2, 2)) for rank in range(4)),
    (1, 1, slurm(0, 1, step=False)),  # in a batch script
    (1, 1, without(slurm(0, 1, step=False), "SLURM_NTASKS_PER_NODE")),
    (4, 1, {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "bash", "SLURM_PROCID": "0"}),
    (4, 1, {"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "interactive"}),
    *((2, 2, {**MEET, "NODE_RANK": str(node)}) for node in (0, 1)),
    (2, 1, {"MASTER_ADDR": "localhost"}),
    (2, 1, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}),
    (1, 1, {**slurm(0, 8), **torchrun(0, 1)}),  # torchrun inside of a SLURM job
]

REFUSED: list[tuple[int, int, dict[str, str], str]] = [
    (1, 1, {"SLURM_NTASKS": "1"}, "SLURM_NTASKS"),
    (1, 1, {"SLURM_NTASKS": "2"}, "SLURM_NTASKS"),
    (4, 1, {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4"}, "SLURM_NTASKS"),
    (2, 1, slurm(0, 2, step=False), "SLURM_STEP_ID"),
    (1, 1, slurm(0, 2), "SLURM_NTASKS=2"),
    (2, 2, slurm(0, 4), "SLURM_NTASKS_PER_NODE=4"),
    (4, 1, slurm(0, 2, 2), "SLURM_NTASKS_PER_NODE=2"),
    (2, 1, without(slurm(0, 2), "SLURM_NTASKS_PER_NODE"), "SLURM_NTASKS_PER_NODE"),
    (1, 1, {**slurm(0, 1), "SLURM_NNODES": "2"}, "SLURM_NNODES=2"),
    (1, 1, {"SLURM_NTASKS": "1(x2)", **slurm(0, 1), "SLURM_PROCID": "x"}, "SLURM_PROCID=x"),
    (1, 1, {"NODE_RANK": "1"}, "NODE_RANK=1"),
    (4, 1, {"NODE_RANK": "3"}, "NODE_RANK=3"),
    (1, 1, {"NODE_RANK": "abc"}, "NODE_RANK=abc"),
    (1, 1, {"NODE_RANK": "-1"}, "NODE_RANK=-1"),
    (1, 1, {"NODE_RANK": ""}, "NODE_RANK="),
    (1, 1, {"GROUP_RANK": "1"}, "GROUP_RANK=1"),
    (1, 1, {"RANK": "1"}, "RANK=1"),
    (1, 1, {"LOCAL_RANK": "1"}, "LOCAL_RANK=1"),
    (1, 1, {"SLURM_PROCID": "3"}, "SLURM_PROCID=3"),
    (1, 1, {"WORLD_SIZE": "2"}, "WORLD_SIZE=2"),
    (2, 1, {"LOCAL_RANK": "0"}, "LOCAL_RANK"),
    (2, 1, {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
    (2, 1, lightning(0, 4), "WORLD_SIZE=4"),
    (2, 1, {**lightning(0, 2), "LOCAL_RANK": "2"}, "LOCAL_RANK=2"),
    (1, 1, torchrun(0, 2), "WORLD_SIZE=2"),
    (4, 1, torchrun(0, 2, 2), "LOCAL_WORLD_SIZE=2"),
    (1, 1, {"TORCHELASTIC_RUN_ID": "none"}, "TORCHELASTIC_RUN_ID"),
    (2, 2, {}, "NODE_RANK"),
    (2, 2, {"NODE_RANK": "1"}, "MASTER_ADDR"),
    (2, 2, {**MEET, "NODE_RANK": "2"}, "NODE_RANK=2"),
    (2, 1, {"MASTER_ADDR": "192.0.2.1"}, "MASTER_ADDR=192.0.2.1"),  # of documentation, nobody's
    (2, 1, {"MASTER_PORT": "99999"}, "MASTER_PORT=99999"),
    (2, 1, {"MASTER_PORT": "tcp"}, "MASTER_PORT=tcp"),
]


@pytest.mark.parametrize(("devices", "nodes", "environment"), FINE, ids=str)
def test_processes_of_a_real_launcher_are_accepted(devices: int, nodes: int, environment: dict[str, str]) -> None:
    check_processes(devices, nodes, environment)


@pytest.mark.parametrize(("devices", "nodes", "environment", "named"), REFUSED, ids=str)
def test_what_is_left_over_is_refused_by_name(
    devices: int, nodes: int, environment: dict[str, str], named: str
) -> None:
    with pytest.raises(ConfigError) as error:
        check_processes(devices, nodes, environment)
    assert named in str(error.value) and ("unset" in str(error.value) or "start" in str(error.value))


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"SLURM_NTASKS": "4"}, None),
        (slurm(0, 4, step=False), None),
        (lightning(0, 2), None),
        (torchrun(0, 2), None),
        (torchrun(1, 2), "RANK=1"),
        (slurm(1, 2), "SLURM_PROCID=1"),
        ({"NODE_RANK": "1"}, "NODE_RANK=1"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x"),
    ],
    ids=str,
)
def test_a_command_that_does_not_train_need_only_be_the_first_process(
    environment: dict[str, Any], named: str | None
) -> None:
    if named is None:
        check_processes(1, 1, environment, trains=False)
        return
    with pytest.raises(ConfigError, match=named):
        check_processes(1, 1, environment, trains=False)


@pytest.mark.parametrize(
    ("line", "environment"),
    [
        ("train.py debug=quick", {"NODE_RANK": "1"}),
        ("train.py debug=quick", {"SLURM_NTASKS": "1"}),
        ("train.py -m seed=0,1 debug=quick", {"LOCAL_RANK": "1"}),
        ("evaluate.py", {"NODE_RANK": "1"}),
    ],
    ids=str,
)
def test_a_command_refuses_before_anything_is_loaded(line: str, environment: dict[str, str], tmp_path: Path) -> None:
    script, *words = line.split()
    process = command(script, *words, f"output_dir={tmp_path}", **environment)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 2, printed
    assert printed.startswith("error: ") and next(iter(environment)) in printed and "Traceback" not in printed
    assert not list(tmp_path.glob("**/config.yaml")) and not list(tmp_path.glob("**/sweep.json"))
