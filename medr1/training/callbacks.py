"""Callbacks: the progress bar, the curves and the table of sampled completions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.callbacks import TQDMProgressBar

from medr1.domain.reasoning import question_text
from medr1.domain.records import Record
from medr1.tracking.tracker import AnyTracker
from medr1.training.grpo import GRPOModule


class ProgressBar(TQDMProgressBar):
    """Reward and accuracy beside the bar, and no version number of the logger."""

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        image_index = super().get_metrics(trainer, pl_module)
        image_index.pop("v_num", None)
        return {name.removeprefix("train/"): value for name, value in image_index.items()}


class Curves(pl.Callback):
    """Sends what the module has logged to the tracker, every ``every`` steps.

    Lightning's own loggers are told of a step after its checkpoint is written, so that a run killed in between and
    resumed would have a gap in its curves; here the points go out before the checkpoint does.
    """

    def __init__(self, tracker: AnyTracker, every: int) -> None:
        self.tracker, self.every = tracker, every

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_global_zero and batch.step % self.every == 0:
            self.tracker.log_metrics(
                {name: float(value) for name, value in trainer.callback_metrics.items()}, batch.step
            )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.is_global_zero:
            self.tracker.flush()


class CompletionsTable(pl.Callback):
    """Every ``every`` steps, logs some completions of the rollout with their pictures, rewards and advantages."""

    def __init__(self, tracker: AnyTracker, load: Callable[[Record], Image.Image], every: int, count: int) -> None:
        self.tracker, self.load, self.every, self.count = tracker, load, every, count

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, GRPOModule)
        rollout_log, num_generations = pl_module.rollout_log, pl_module.settings.num_generations
        if rollout_log is None or not trainer.is_global_zero:
            return
        if rollout_log.step % self.every and batch_idx + 1 != trainer.num_training_batches:
            return
        rows, images = [], []
        for index, record in enumerate(rollout_log.records[: max(1, self.count // 2)]):
            for copy in range(2):  # two of the group, so that one sees how they differ
                at = index * num_generations + copy
                rows.append(
                    {
                        "record": record.id,
                        "question": question_text(record.question, record.options, pl_module.settings.mode),
                        "answer": record.answer,
                        "completion": rollout_log.texts[at],
                        "reward": rollout_log.rewards.total[at],
                        **{f"reward/{name}": values[at] for name, values in rollout_log.rewards.parts.items()},
                        "advantage": round(rollout_log.advantages[at], 4),
                    }
                )
                images.append(self.load(record))
        self.tracker.log_completions(rows, images, rollout_log.step)
