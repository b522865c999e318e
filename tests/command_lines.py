"""Runs command lines of train.py and evaluate.py as a user types them, many in one process, and notes what each did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "mlflow", "pytorch_lightning", "peft")

_RUNNER = f"""
import contextlib, io, json, os, runpy, sys, traceback
answers = []
for folder, line in json.load(sys.stdin):
    os.chdir(folder)
    out, err = io.StringIO(), io.StringIO()
    sys.argv = line
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(line[0], run_name="__main__")
            code = 0
        except SystemExit as leaving:
            code = leaving.code
        except BaseException:
            traceback.print_exc()
            code = 1
    answers.append([code, out.getvalue(), err.getvalue(), [m for m in {HEAVY} if m in sys.modules]])
print(json.dumps(answers), file=sys.__stdout__)
"""


class Answer(NamedTuple):
    """Exit status and output of a command line, and the heavy libraries that were loaded by its end."""

    code: int
    out: str
    err: str
    heavy: list[str]


def run(lines: Sequence[tuple[Path, str]]) -> list[Answer]:
    """Each line in its folder: ``train.py seed=1``; the name of the script is completed."""
    given = [(str(folder), [str(ROOT / words[0]), *words[1:]]) for folder, line in lines if (words := line.split())]
    done = subprocess.run(
        [sys.executable, "-c", _RUNNER],
        input=json.dumps(given),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=1800,
    )
    return [Answer(*answer) for answer in json.loads(done.stdout.splitlines()[-1])]
