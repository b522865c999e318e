"""How OpenMP waits is set before torch is loaded, unless the user has set it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_lines import ROOT

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SHORT = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
# What each entry has in its environment when it ends, and whether torch was loaded before.
ENTRIES = {
    "train": "import sys; sys.argv = ['train.py', '--help']; from medr1.cli.train import main; main()",
    "evaluate": "import sys; sys.argv = ['evaluate.py', '--help']; from medr1.cli.evaluate import main; main()",
    "ask": "from medr1.ask import main; main(['nowhere.png', 'Seen?', 'a', 'b'])",
    "load": "import medr1.cli.ask as a; a.load('tiny')",
}
END = "\nimport json, os, sys; print(json.dumps([dict(os.environ), 'torch' in sys.modules]))"


GIVEN: list[dict[str, str]] = [
    {},
    {"OMP_WAIT_POLICY": "active"},
    {"GOMP_SPINCOUNT": "infinity"},
    {"KMP_BLOCKTIME": "0"},
]


@pytest.mark.parametrize(
    ("entry", "given"),
    [
        # ``load`` loads torch, which takes long.
        *(pytest.param(entry, {}, marks=pytest.mark.long if entry == "load" else ()) for entry in ENTRIES),
        *(("ask", given) for given in GIVEN[1:]),
    ],
    ids=str,
)
def test_every_entry_shortens_spinning(entry: str, given: dict[str, str], tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", ENTRIES[entry] + END],
        env={**clean, **given, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    environment, has_torch = json.loads(done.stdout.splitlines()[-1])
    assert {name: environment[name] for name in NAMES if name in environment} == (given or SHORT)
    assert has_torch == (entry == "load")


FAILING = """
import atexit, sys, torch.distributed as dist
from medr1.cli.process import leave_group
rank, count, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=count)
atexit.register(print, "ended as usual")
error = {"error": ValueError("the cause"), "message": SystemExit(2)}[sys.argv[4]]
leave_group(error)
raise error
"""


@pytest.mark.parametrize(
    ("count", "kind", "status", "usual"),
    [(2, "error", 1, False), (2, "message", 2, False), (1, "error", 1, True)],
)
def test_a_process_of_several_ends_at_once_after_an_error(
    count: int, kind: str, status: int, usual: bool, tmp_path: Path
) -> None:
    """Handlers of atexit wait for the other processes of an NCCL group, which wait for this one."""
    run = [
        subprocess.Popen(
            [sys.executable, "-c", FAILING, str(rank), str(count), str(tmp_path / "group"), kind],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    for process in run:
        out, said = process.communicate(timeout=120)
        assert (process.returncode, "ended as usual" in out) == (status, usual), said
        assert said.count("ValueError: the cause") == (1 if kind == "error" else 0), said
