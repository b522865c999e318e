"""What every command does first, before a library is loaded."""

from __future__ import annotations

import os

from medr1.runs.terminal import protect_terminal

# Rounds that a thread of GNU OpenMP waits actively for its next work, and milliseconds for LLVM's and Intel's.
_SHORT_SPIN = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}


def prepare_process() -> None:
    """Protects the run from its terminal, and shortens the spinning of OpenMP."""
    protect_terminal()
    shorten_spinning()


def shorten_spinning() -> None:
    """Lets idle OpenMP threads sleep soon, unless the user has set how they wait. Has an effect before torch is loaded.

    Spinning threads take the cores from the threads that have work, as soon as another process needs a core too.
    """
    if not {"OMP_WAIT_POLICY", *_SHORT_SPIN} & os.environ.keys():
        os.environ.update(_SHORT_SPIN)
