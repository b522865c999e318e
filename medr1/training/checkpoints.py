"""The checkpoints that a training keeps: the newest whole one, to resume from, and the weights of the best step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from medr1.errors import CheckpointError
from medr1.training.checkpoint_io import SafetensorsCheckpointIO
from medr1.training.validation import Validation


@dataclass(frozen=True, slots=True)
class BestStep:
    """The checkpoint with the best value of a validation metric. It holds no tensor and no model."""

    checkpoint: Path
    metric: str
    value: float

    def weights(self) -> tuple[int, dict[str, Tensor]]:
        """Optimizer steps of the checkpoint, and its trained weights under their names in the policy.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        try:
            checkpoint = SafetensorsCheckpointIO(is_mapped=True).load_checkpoint(self.checkpoint)
        except CheckpointError as error:
            raise CheckpointError(
                f"the best checkpoint cannot be read: {str(error).partition('. Remove ')[0]}. The newest checkpoint "
                f"names it, so remove {self.checkpoint.parent.parent} and resume, to train again from the beginning"
            ) from error
        state = {name.removeprefix("policy."): value for name, value in checkpoint["state_dict"].items()}
        return int(checkpoint["global_step"]), state


class BestCheckpoint(ModelCheckpoint):
    """Keeps the weights of the step with the best value of a validation metric, the first one if there are several.

    Those of an earlier best step are kept until ``remove_superseded``.
    """

    def __init__(self, validation: Validation, directory: Path, metric: str, greater_is_better: bool) -> None:
        super().__init__(
            dirpath=directory,
            filename="{step}",
            monitor=metric,
            mode="max" if greater_is_better else "min",
            every_n_train_steps=1,  # Lightning asks in each step; see on_train_batch_end
            save_top_k=1,
            save_weights_only=True,
            enable_version_counter=False,
        )
        self.validation = validation

    @property
    def found(self) -> BestStep:
        """The best step of a training that has ended."""
        assert self.monitor is not None and self.best_model_score is not None
        return BestStep(Path(self.best_model_path), self.monitor, float(self.best_model_score))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.validation.is_due(batch.step + 1):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def _remove_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        """Nothing: the newest whole checkpoint may name it, and a run that is killed now is resumed from that one."""

    def remove_superseded(self, trainer: pl.Trainer) -> None:
        """Removes the weights of all steps but the best one."""
        assert self.dirpath is not None
        remove_others(Path(self.dirpath), Path(self.best_model_path).name, trainer.strategy.remove_checkpoint)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state also if the run directory has moved; Lightning would forget the best value."""
        assert self.dirpath is not None
        directory = Path(self.dirpath)

        def here(path: str) -> str:
            return str(directory / Path(path).name) if path else path

        paths = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): value for path, value in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class WholeCheckpoint(ModelCheckpoint):
    """Stores the whole state of the training every ``every`` optimizer steps, and keeps the newest one alone.

    ``best`` comes before it in the list of callbacks, so that its state is that of the step.
    """

    def __init__(self, directory: Path, every: int, best: BestCheckpoint | None) -> None:
        super().__init__(
            dirpath=directory,
            filename="{step}",
            every_n_train_steps=every,
            save_top_k=1,
            monitor=None,
            enable_version_counter=False,
        )
        self.best = best

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        # Lightning never removes the one that a run was resumed from, and knows none of an earlier process.
        remove_others(Path(filepath).parent, Path(filepath).name, trainer.strategy.remove_checkpoint)
        if self.best is not None:
            self.best.remove_superseded(trainer)


def remove_others(directory: Path, name: str, remove: Callable[[Path], None]) -> None:
    """Removes the checkpoints in the directory but the one of this name."""
    for path in directory.glob("step=*.ckpt"):
        if path.name != name:
            remove(path)
