"""Callbacks: the progress bar, the curves and the table of completions."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar

from medr1.data.image_loader import ImageLoader
from medr1.domain.reasoning import ReasoningMode, question_text
from medr1.tracking.metrics_file import MetricsFile
from medr1.tracking.tracker import AnyTracker
from medr1.training.grpo import GRPOModule
from medr1.training.steps import Steps


class ProgressBar(TQDMProgressBar):
    """Shows the metrics without their prefix ``train/``, and no version number of a logger."""

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {name.removeprefix("train/"): value for name, value in metrics.items()}


class IntermediateModels(pl.Callback):
    """Stores the model after each of ``steps`` training steps: calls ``store`` with the step, in rank zero."""

    def __init__(self, steps: Collection[int], store: Callable[[int], None]) -> None:
        self.steps, self.store = steps, store

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_global_zero and batch.step + 1 in self.steps:
            self.store(batch.step + 1)


class Curves(pl.Callback):
    """Sends the metrics of the module to the tracker and to the run's file, every ``every`` steps.

    Lightning's loggers receive the metrics of a step after its checkpoint has been written, so that a run that is
    killed in between and resumed would have a gap. Here they are sent before.
    """

    def __init__(self, tracker: AnyTracker, file: MetricsFile, every: int) -> None:
        self.tracker, self.file, self.every = tracker, file, every
        self._seconds_waited = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.file.drop_from(_steps(trainer).first_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_global_zero and batch.step % self.every == 0:
            # Those of validation have been sent by their own callback.
            names = [name for name in trainer.callback_metrics if not name.startswith("validation/")]
            metrics = {name: float(trainer.callback_metrics[name]) for name in names}
            waited = _steps(trainer).seconds_waited
            metrics["data_time"], self._seconds_waited = waited - self._seconds_waited, waited
            self.tracker.log_metrics(metrics, batch.step)
            self.file.append(metrics, batch.step)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.is_global_zero:
            self.tracker.flush()
            self.file.sync()


def _steps(trainer: pl.Trainer) -> Steps:
    steps = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(steps, Steps)
    return steps


class CompletionsTable(pl.Callback):
    """Logs ``count`` completions with their images, rewards and advantages, every ``every`` steps and in the last one.

    Two completions of each prompt are shown, so that differences within a group can be seen.
    """

    def __init__(self, tracker: AnyTracker, load: ImageLoader, mode: ReasoningMode, every: int, count: int) -> None:
        self.tracker, self.load, self.mode, self.every, self.count = tracker, load, mode, every, count

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, GRPOModule)
        log = pl_module.rollout_log
        if log is None or not trainer.is_global_zero:
            return
        if log.step % self.every and batch_idx + 1 != trainer.num_training_batches:
            return
        G, rows, images = pl_module.settings.num_generations, [], []
        for index, record in enumerate(log.records[: math.ceil(self.count / 2)]):
            for row in (index * G, index * G + 1)[: self.count - 2 * index]:
                rows.append(
                    {
                        "record": record.id,
                        "question": question_text(record.question, record.options, self.mode),
                        "answer": record.answer,
                        "completion": log.texts[row],
                        "reward": log.rewards.total[row],
                        **{f"reward/{name}": values[row] for name, values in log.rewards.parts.items()},
                        "advantage": round(log.advantages[row], 4),
                    }
                )
                images.append(self.load(record))
        self.tracker.log_completions(rows, images, log.step)
