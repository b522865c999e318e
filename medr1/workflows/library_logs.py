"""What libraries print."""

from __future__ import annotations

import logging
import warnings


def silence_library_logs() -> None:
    """Keeps warnings about settings that are chosen on purpose out of the terminal."""
    import transformers

    for name in ("pytorch_lightning", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*in eval mode at the start of training.*",  # no dropout: the scored policy must be the one that sampled
        ".*overridden `transfer_batch_to_device`.*",
        ".*ModelCheckpoint with manual optimization.*",  # checkpoints hold the state after the step, as intended
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*functional.all_gather is deprecated.*",  # called by Lightning
        ".*Checkpoint directory .* exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
