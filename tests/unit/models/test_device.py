from __future__ import annotations

import pytest

from medr1.config.enums import Accelerator
from medr1.config.settings import TrainerConfig
from medr1.errors import ConfigError
from medr1.models.device import check_devices, device_type


@pytest.mark.parametrize(
    ("accelerator", "devices", "gpus", "words"),
    [
        ("auto", 1, 0, None),
        ("cpu", 4, 0, None),
        ("cpu", 4, 2, None),
        ("gpu", 2, 2, None),
        ("auto", 4, 0, None),  # on the CPU
        ("gpu", 1, 0, "PyTorch finds no GPU here; begin a run with trainer.accelerator=auto or cpu"),
        ("cuda", 1, 0, "trainer.accelerator=cuda"),
        ("auto", 4, 2, "trainer.devices=4: PyTorch finds 2 GPUs"),
    ],
)
def test_devices_that_are_not_there_are_named(
    accelerator: str, devices: int, gpus: int, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    trainer = TrainerConfig(accelerator=Accelerator(accelerator), devices=devices)
    if words is None:
        check_devices(trainer)
        return
    with pytest.raises(ConfigError) as error:
        check_devices(trainer)
    assert words in str(error.value)


@pytest.mark.parametrize("has_gpu", [False, True])
def test_training_and_evaluation_are_on_the_same_kind_of_device(has_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    found = {str(accelerator): device_type(accelerator) for accelerator in Accelerator}
    gpu = "cuda" if has_gpu else "cpu"
    assert found == {"auto": gpu, "cpu": "cpu", "gpu": gpu, "cuda": gpu}
