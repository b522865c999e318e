"""Lightning's logger for the tracker: what modules ``self.log`` becomes the run's curves."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from medr1.tracking import AnyTracker


class TrackerLogger(Logger):
    """Passes metrics on from rank zero. It neither begins nor ends the run: that is the pipeline's business."""

    def __init__(self, tracker: AnyTracker, run_dir: Path) -> None:
        super().__init__()
        self._tracker, self._run_dir = tracker, run_dir

    @property
    def name(self) -> str:
        return "medr1"

    @property
    def version(self) -> str:
        return self._tracker.run_id

    @property
    def save_dir(self) -> str:
        return str(self._run_dir)

    @property
    def experiment(self) -> AnyTracker:
        return self._tracker

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._tracker.metrics(metrics, step or 0)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing on purpose: the pipeline logs the whole resolved config, of which these are a part."""

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Sends the points up to the checkpoint, so that a run killed later and resumed here has no gap."""
        self._tracker.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._tracker.flush()
