"""What every command does first, before a library is loaded."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress

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


def leave_group(error: BaseException) -> None:
    """Ends this process at once if it is one of several that train together; else does nothing.

    The interpreter's own end would wait for the others of an NCCL group, which wait for this one in a collective, and
    whoever started the processes would not see that one has failed.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    if distributed.get_world_size() > 1:
        with suppress(OSError):
            if not isinstance(error, SystemExit):  # it has printed its message
                traceback.print_exception(error)
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)
