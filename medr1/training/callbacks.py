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
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return {name.removeprefix("train/"): value for name, value in shown.items()}


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
            self.tracker.metrics({name: float(value) for name, value in trainer.callback_metrics.items()}, batch.step)

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
        sampled, group_size = pl_module.sampled, pl_module.settings.group_size
        if sampled is None or not trainer.is_global_zero:
            return
        if sampled.step % self.every and batch_idx + 1 != trainer.num_training_batches:
            return
        rows, images = [], []
        for index, record in enumerate(sampled.records[: max(1, self.count // 2)]):
            for copy in range(2):  # two of the group, so that one sees how they differ
                at = index * group_size + copy
                rows.append(
                    {
                        "record": record.id,
                        "question": question_text(record.question, record.options, pl_module.settings.mode),
                        "answer": record.answer,
                        "completion": sampled.texts[at],
                        "reward": sampled.rewards.total[at],
                        **{f"reward/{name}": values[at] for name, values in sampled.rewards.parts.items()},
                        "advantage": round(sampled.advantages[at], 4),
                    }
                )
                images.append(self.load(record))
        self.tracker.completions_table(rows, images, sampled.step)
