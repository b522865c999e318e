"""Which checkpoints a training keeps: the newest whole one, and the weights of the best step that it names."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from medr1.training.checkpoint_io import SafetensorsCheckpointIO
from medr1.training.checkpoints import BestCheckpoint, WholeCheckpoint
from medr1.training.validation import EarlyStop

METRIC = "validation/accuracy"


class Logging(pl.LightningModule):
    """Logs a value of the metric in each step, and ends like a killed process after ``dies_at`` steps."""

    def __init__(self, values: list[float], dies_at: int | None) -> None:
        super().__init__()
        self.layer, self.values, self.dies_at = torch.nn.Linear(1, 1), values, dies_at

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        if self.global_step == self.dies_at:
            raise KeyboardInterrupt
        self.log(METRIC, self.values[self.global_step])
        return self.layer(torch.ones(1, 1)).sum()

    def train_dataloader(self) -> Any:
        return DataLoader([SimpleNamespace(step=i) for i in range(100)], collate_fn=lambda batches: batches[0])  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    folder: Path,
    values: list[float],
    *,
    resume: int | None = None,
    dies_at: int | None = None,
    greater: bool = True,
    patience: int = 100,
) -> BestCheckpoint:
    """Validates in every step, and stores the whole state in every third one."""
    validation: Any = SimpleNamespace(is_due=lambda step: True)
    best = BestCheckpoint(validation, folder / "best", METRIC, greater)
    stop = EarlyStop(validation, METRIC, greater, patience=patience, threshold=0)
    trainer = pl.Trainer(
        max_steps=len(values),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[SafetensorsCheckpointIO()],
        callbacks=[stop, best, WholeCheckpoint(folder, 3, best)],
    )
    checkpoint = None if resume is None else folder / f"step={resume}.ckpt"
    try:
        trainer.fit(Logging(values, dies_at), ckpt_path=checkpoint)
    except (KeyboardInterrupt, SystemExit):
        assert dies_at is not None
    return best


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.ckpt"))


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_was_killed_still_has_the_best_step_of_its_checkpoint(tmp_path: Path) -> None:
    """After the checkpoint of step 3 a better step came, and a resumed run that is not exact does not find it again."""
    fit(tmp_path, [0.1, 0.5, 0.2, 0.6, 0.1, 0.1], dies_at=5)
    assert kept(tmp_path) == ["step=3.ckpt"] and kept(tmp_path / "best") == ["step=2.ckpt", "step=4.ckpt"]
    best = fit(tmp_path, [0.0, 0.0, 0.0, 0.4, 0.1, 0.1], resume=3)
    assert best.found.checkpoint.name == "step=2.ckpt" and best.found.value == 0.5
    steps, weights = best.found.weights()
    assert steps == 2 and {name.split(".")[-1] for name in weights} == {"weight", "bias"}
    assert kept(tmp_path / "best") == ["step=2.ckpt"]


@pytest.mark.filterwarnings("ignore")
def test_where_less_is_better_the_smallest_value_is_the_best_also_after_a_resume(tmp_path: Path) -> None:
    fit(tmp_path, [0.5, 0.2, 0.6, 0.1, 0.9, 0.9], dies_at=5, greater=False)
    assert kept(tmp_path / "best") == ["step=2.ckpt", "step=4.ckpt"]
    best = fit(tmp_path, [0.0, 0.0, 0.0, 0.2, 0.3, 0.9], resume=3, greater=False)
    assert best.found.checkpoint.name == "step=2.ckpt" and best.found.value == pytest.approx(0.2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("greater", "best"), [(False, 4), (True, 1)])
def test_a_training_stops_when_its_metric_gets_no_better(greater: bool, best: int, tmp_path: Path) -> None:
    """After two steps without a better value. Later values would be better."""
    stopped = fit(tmp_path, [0.5, 0.4, 0.3, 0.2, 0.8, 0.9, 0.1], greater=greater, patience=2)
    assert stopped.found.checkpoint.name == f"step={best}.ckpt"


@pytest.mark.filterwarnings("ignore")
def test_only_the_newest_whole_checkpoint_stays_however_often_a_run_is_resumed(tmp_path: Path) -> None:
    values = [0.1 * step for step in range(13)]
    for dies_at, resume in ((4, None), (7, 3), (10, 6), (None, 9)):
        fit(tmp_path, values, resume=resume, dies_at=dies_at)
    assert kept(tmp_path) == ["step=12.ckpt"] and kept(tmp_path / "best") == ["step=12.ckpt", "step=13.ckpt"]
