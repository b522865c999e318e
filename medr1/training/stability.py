"""Stops training after non-finite losses, gradients or weights, and warns if the rewards have collapsed."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from medr1.config.settings import AlgorithmConfig
from medr1.errors import TrainingError

log = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 3
COLLAPSE_STEPS = 10


class SkippedSteps:
    """Counts the optimizer steps that were skipped because loss or gradient was not finite.

    ``total``: in the whole run. ``in_a_row``: consecutive ones up to the latest step. Both are stored in checkpoints.
    """

    def __init__(self) -> None:
        self.total, self.in_a_row = 0, 0

    def count(self, is_skipped: bool) -> None:
        self.total += is_skipped
        self.in_a_row = self.in_a_row + 1 if is_skipped else 0

    def state(self) -> dict[str, int]:
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load(self, state: dict[str, int]) -> None:
        self.total, self.in_a_row = state["total"], state["in_a_row"]

    def check(self, step: int, loss: float, grad_norm: float, settings: AlgorithmConfig, total_steps: int) -> None:
        """Stops a training whose latest steps were all skipped.

        Raises:
            TrainingError: ``MAX_SKIPPED_IN_A_ROW`` steps in a row, or all ``total_steps`` of a shorter training.
        """
        if self.in_a_row >= min(MAX_SKIPPED_IN_A_ROW, total_steps):
            raise TrainingError(
                f"step {step}: the last {self.in_a_row} optimizer steps were skipped, because the loss ({loss}) "
                f"or the norm of the gradient ({grad_norm}) is not finite. {_remedy(settings)} If the "
                "first step was skipped, check the weights of model.path and the values of your reward functions"
            )


def check_weights(named: dict[str, Tensor], step: int, is_skipped: bool, settings: AlgorithmConfig) -> None:
    """Raises the error for weights that are not finite. Call it only if a weight of some process is not finite.

    Raises:
        TrainingError: always; names a weight of this process.
    """
    bad = [name for name, weight in named.items() if not bool(torch.isfinite(weight).all())]
    which = f"the weight {bad[0]} is" if bad else "weights in another process are"
    if is_skipped:  # the step has changed nothing
        raise TrainingError(f"step {step}: {which} not finite before the first update; check the weights of model.path")
    raise TrainingError(
        f"step {step}: {which} not finite after the optimizer step. These weights are not stored; checkpoints of the "
        f"run are of earlier steps. {_remedy(settings)}"
    )


def _remedy(settings: AlgorithmConfig) -> str:
    objective = getattr(settings, "objective", None)
    beta = f", a larger algorithm.objective.beta (now {objective.beta:g})" if objective is not None else ""
    return (
        f"Start a new run with a smaller algorithm.learning_rate (now {settings.learning_rate:g}) or "
        f"algorithm.max_grad_norm (now {settings.max_grad_norm:g}){beta}, or with model.dtype=float32 if it is another."
    )


class CollapseWarning(pl.Callback):
    """Warns once of a collapse that has lasted ``COLLAPSE_STEPS`` steps, and names its first step.

    A step has collapsed if the rewards of every prompt have zero variance, or no completion has the required format.
    """

    _SIGNS = (
        (
            "frac_reward_zero_std",
            1.0,
            "the rewards of every prompt have had zero variance: without dynamic sampling all advantages are 0. Try a "
            "higher algorithm.sampling.temperature, more algorithm.num_generations, or other records",
        ),
        (
            "train/format_reward",
            0.0,
            "no completion has had the required format. Look at the completions; if they are cut off "
            "(completion_clipped_ratio), raise algorithm.sampling.max_completion_length, otherwise try "
            "algorithm=sft first",
        ),
    )

    def __init__(self) -> None:
        self._began: dict[str, int] = {}
        self._told: list[str] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, collapsed, meaning in self._SIGNS:
            value = trainer.callback_metrics.get(name)
            if value is None or not abs(float(value) - collapsed) < 1e-6 or name in self._told:  # it may be NaN
                self._began.pop(name, None)
                continue
            began = self._began.setdefault(name, batch.step)
            if batch.step - began + 1 >= COLLAPSE_STEPS:
                self._told.append(name)
                if trainer.is_global_zero:
                    log.warning("since step %d, for %d steps, %s (%s)", began, COLLAPSE_STEPS, meaning, name)

    def state_dict(self) -> dict[str, Any]:
        return {"began": dict(self._began), "told": list(self._told)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._began, self._told = dict(state_dict["began"]), list(state_dict["told"])
