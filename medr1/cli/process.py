"""What every command does first, before a library is loaded."""

from __future__ import annotations

import os

from medr1.runs.terminal import protect_terminal

# How long an idle thread spins: iterations for GNU OpenMP, milliseconds for the OpenMP of LLVM and Intel.
_SHORT_SPIN = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}


def prepare_process() -> None:
    """Makes output errors harmless (``protect_terminal``) and shortens the spinning of OpenMP threads."""
    protect_terminal()
    shorten_spinning()


def shorten_spinning() -> None:
    """Lets idle OpenMP threads sleep sooner, unless the user has set how they wait. Must run before torch is loaded.

    Spinning threads take the cores from the threads that have work, as soon as another process needs a core too.
    """
    if not {"OMP_WAIT_POLICY", *_SHORT_SPIN} & os.environ.keys():
        os.environ.update(_SHORT_SPIN)
