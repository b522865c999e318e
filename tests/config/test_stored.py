"""What a run stores is read back as the same settings, whatever the options of its groups are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from medr1.atomic_write import write_text
from medr1.config import naming
from medr1.config.paths import CONF
from medr1.config.settings import EvaluateConfig, TrainConfig
from medr1.config.stored import read_config
from medr1.data.sources.phantoms import PhantomsConfig
from tests.composing import composed

NEEDS = {
    "model=hf": ("model.path=somebody/model",),
    "model=hf_lora": ("model.path=somebody/model",),
    "model=server": ("model.url=http://127.0.0.1:1/v1", "model.path=name", "model.image_size=84"),
    **{
        f"data={file.stem}": (f"data.root={CONF}", "data.split=image_grouped")
        for file in CONF.glob("data/*.yaml")
        if file.stem != "phantoms"
    },
    "data=mcqa": (f"data.path={CONF}",),
    "data=benchmarks": ("+data@data.sets.phantoms=phantoms",),
    "rollout=vllm_server": ("rollout.url=http://127.0.0.1:1",),
    "rollout=vllm_colocate": (f"rollout.python={sys.executable}",),
    "experiment=": (f"data.root={CONF}", "reasoning=no_think"),
}
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("launcher", "experiment"))
OPTIONS = sorted(f"{path.parent.name}={path.stem}" for group in GROUPS for path in (CONF / group).glob("*.yaml"))
# Options with settings of their own.
OWN_TYPES = ("algorithm=", "data=", "model=server", "model=tiny", "rollout=")


def read_back(command: str, folder: Path, *words: str) -> None:
    settings = composed(command, *words)
    # As RunDirectory.create stores it.
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(settings), resolve=True))
    again = read_config(folder / "config.yaml", TrainConfig if command == "train" else EvaluateConfig)
    assert again == settings and type(again) is type(settings)
    for group in ("model", "data", "rollout", *(("algorithm",) if command == "train" else ())):
        assert type(getattr(again, group)) is type(getattr(settings, group))


@pytest.mark.parametrize(
    "option",
    [option if option.startswith(OWN_TYPES) else pytest.param(option, marks=pytest.mark.long) for option in OPTIONS],
)
def test_every_option_of_a_training(option: str, tmp_path: Path) -> None:
    more = NEEDS.get(option, ()) + (("algorithm=zero_shot",) if option == "model=server" else ())
    read_back("train", tmp_path, option, *more)


@pytest.mark.long
@pytest.mark.parametrize(
    "option", [option for option in OPTIONS if option.split("=")[0] in ("model", "data", "rollout")]
)
def test_every_option_of_an_evaluation(option: str, tmp_path: Path) -> None:
    read_back("evaluate", tmp_path, option, *NEEDS.get(option, ()))


@pytest.mark.long
@pytest.mark.parametrize("algorithm", sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml")))
@pytest.mark.parametrize("model", ["model=tiny", "model=hf_lora", "model=qwen3_vl_2b"])
def test_every_algorithm_with_every_kind_of_model(algorithm: str, model: str, tmp_path: Path) -> None:
    steps = ("trainer.max_steps=null", "trainer.num_train_epochs=1") if algorithm != "pretrain" else ()
    read_back("train", tmp_path, f"algorithm={algorithm}", model, *NEEDS.get(model, ()), *steps)


def test_a_setting_that_was_added_has_its_earlier_value_in_older_configs(tmp_path: Path) -> None:
    """And it does not name a run that does what it did without it."""
    stored = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(composed("train")), resolve=True))
    assert isinstance(stored, DictConfig)
    assert (stored.data.question_version, stored.trainer.optimizer_offload) == (2, False)
    del stored.data["question_version"], stored.trainer["optimizer_offload"]
    write_text(tmp_path / "config.yaml", OmegaConf.to_yaml(stored))
    older = read_config(tmp_path / "config.yaml", TrainConfig)
    assert isinstance(older.data, PhantomsConfig)
    assert (older.data.question_version, older.trainer.optimizer_offload) == (1, False)


def test_an_accelerator_of_lightning_is_read_as_auto(tmp_path: Path) -> None:
    """It could be any name before, such as that of the GPU of a Mac."""
    stored = OmegaConf.to_yaml(OmegaConf.structured(composed("train")), resolve=True)
    assert "accelerator: auto" in stored
    write_text(tmp_path / "config.yaml", stored.replace("accelerator: auto", "accelerator: mps"))
    assert read_config(tmp_path / "config.yaml", TrainConfig).trainer.accelerator == "auto"


def test_an_added_setting_names_runs_only_where_it_changes_them() -> None:
    def hashed(*words: str) -> str:
        with initialize_config_dir(str(CONF), version_base=None):
            return str(naming._hashed(compose("train", overrides=list(words))))

    assert "question_version" in hashed() and "optimizer_offload" not in hashed()
    assert "question_version" not in hashed("data.question_version=1")
    assert "optimizer_offload" in hashed("trainer.optimizer_offload=true")
