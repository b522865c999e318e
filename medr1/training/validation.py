"""Evaluations on the validation records during training, and early stopping by them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.utilities.seed import isolate_rng

from medr1.domain.records import Record
from medr1.evaluation.image_ablation import ImageAblation
from medr1.evaluation.predictions import Prediction
from medr1.models.policy import Policy
from medr1.models.sharding import generation
from medr1.tracking.metrics_file import MetricsFile
from medr1.tracking.tracker import AnyTracker
from medr1.training.module import PolicyModule

log = logging.getLogger(__name__)

Predict = Callable[[Policy, Sequence[Record], ImageAblation], list[Prediction]]


class Validation(pl.Callback):
    """Evaluates the policy before training, every ``every`` of ``steps`` steps, and after the last one.

    The records are divided over the processes. Random states and the mode of the policy stay as they are. Values at
    step N are those of the policy after N training steps, from which step N samples.

    ``predict``: greedy predictions. ``blank_image``: also with blank images, so that the model's dependence on the
    image is a curve.
    """

    def __init__(
        self,
        records: Sequence[Record],
        predict: Predict,
        tracker: AnyTracker,
        file: MetricsFile,
        *,
        every: int,
        steps: int,
        blank_image: bool,
        gather_for_generation: bool = False,
    ) -> None:
        self.records, self.predict, self.tracker, self.file = records, predict, tracker, file
        self.every, self.steps, self.blank_image = every, steps, blank_image
        self.gather_for_generation = gather_for_generation

    def is_due(self, step: int) -> bool:
        """Whether there is an evaluation after ``step`` steps."""
        return step % self.every == 0 or step == self.steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self._evaluate(trainer, pl_module, 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.is_due(batch.step + 1):
            for name, value in self._evaluate(trainer, pl_module, batch.step + 1).items():
                pl_module.log(name, value, prog_bar=name == "validation/accuracy", batch_size=1)

    def _evaluate(self, trainer: pl.Trainer, module: pl.LightningModule, step: int) -> dict[str, float]:
        """The metrics, equal in all processes. Logs them with their time."""
        assert isinstance(module, PolicyModule)
        start, policy = time.perf_counter(), module.policy
        is_training = policy.training
        own = self.records[trainer.global_rank :: trainer.world_size]
        with isolate_rng(), generation(policy, gather=self.gather_for_generation):
            seen = self.predict(policy, own, ImageAblation.NONE)
            blind = self.predict(policy, own, ImageAblation.BLANK) if self.blank_image else []
        policy.train(is_training)
        sums = [sum(getattr(line, name) for line in seen) for name in ("correct", "format", "length")]
        sums += [sum(line.correct for line in blind)]
        totals = module.all_reduce_sum(torch.tensor(sums, device=module.device)).tolist()
        accuracy, format_rate, length, blind_accuracy = (total / len(self.records) for total in totals)
        metrics = {
            "validation/accuracy": accuracy,
            "validation/format_rate": format_rate,
            "validation/completion_length": length,
        }
        if self.blank_image:
            metrics["validation/blank_image_accuracy"] = blind_accuracy
            metrics["validation/image_dependence"] = accuracy - blind_accuracy
        if trainer.is_global_zero:
            timed = metrics | {"validation_time": time.perf_counter() - start}
            self.tracker.log_metrics(timed, step)
            self.file.append(timed, step)
        return metrics


class EarlyStop(EarlyStopping):
    """Stops after ``patience`` evaluations in a row without an improvement of more than ``threshold``."""

    def __init__(
        self, validation: Validation, metric: str, greater_is_better: bool, *, patience: int, threshold: float
    ) -> None:
        super().__init__(
            metric,
            min_delta=threshold,
            patience=patience,
            mode="max" if greater_is_better else "min",
            check_on_train_epoch_end=False,
        )
        self.validation = validation

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.wait_count >= self.patience:  # resumed from the checkpoint of the step in which it had stopped
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.validation.is_due(batch.step + 1):
            self.on_validation_end(trainer, pl_module)
            if self.wait_count >= self.patience:
                log.info("step %d: %s has not improved in %d evaluations", batch.step + 1, self.monitor, self.patience)
