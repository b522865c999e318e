"""The devices that settings mean."""

from __future__ import annotations

import torch

from medr1.config.enums import Accelerator
from medr1.config.settings import TrainerConfig
from medr1.errors import ConfigError


def device_type(accelerator: Accelerator) -> str:
    """``cuda`` or ``cpu``: what ``trainer.accelerator`` means on this machine, in training and in evaluation."""
    return "cuda" if accelerator != Accelerator.cpu and torch.cuda.is_available() else "cpu"


def check_devices(trainer: TrainerConfig) -> None:
    """Checks that this machine has the devices that a training asks for.

    Raises:
        ConfigError: names the setting and the remedy.
    """
    count = torch.cuda.device_count()
    if trainer.accelerator in (Accelerator.gpu, Accelerator.cuda) and not count:
        raise ConfigError(
            f"trainer.accelerator={trainer.accelerator}: PyTorch finds no GPU here; begin a run with "
            "trainer.accelerator=auto or cpu, and resume one where there is a GPU"
        )
    if trainer.accelerator != Accelerator.cpu and 0 < count < trainer.devices:
        raise ConfigError(
            f"trainer.devices={trainer.devices}: PyTorch finds {count} GPUs here; begin a run with at most {count}, "
            "and resume one where there are as many as it began with"
        )
