"""The directory of a run: nothing is overwritten, and its config comes back with its types."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from medr1.config.enums import Precision
from medr1.config.paths import CONF
from medr1.config.settings import EvaluateConfig, TrainConfig
from medr1.data.sources.omnimedvqa import OmniMedVQAConfig
from medr1.data.sources.phantoms import PhantomsConfig
from medr1.errors import CheckpointError, ConfigError
from medr1.runs.run_directory import RunDirectory, environment
from medr1.training.algorithms.grpo import GRPOConfig
from medr1.training.algorithms.pretrain import PretrainConfig
from medr1.training.algorithms.sft import SFTConfig
from medr1.workflows.components import checked
from medr1.workflows.compose import train_config


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "runs" / "one")


def created(run: RunDirectory, *overrides: str) -> DictConfig:
    cfg = train_config(overrides)
    run.create(cfg, list(overrides), {"data_fingerprint": "f00d"})
    return cfg


def test_create_stores_config_overrides_and_environment(run: RunDirectory) -> None:
    cfg = created(run, "modality=mri", "seed=3")
    assert sorted(p.name for p in run.path.iterdir()) == ["config.yaml", "environment.json", "overrides.yaml"]
    assert OmegaConf.load(run.config) == OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))
    assert "${" not in run.config.read_text()
    assert OmegaConf.load(run.path / "overrides.yaml") == ["modality=mri", "seed=3"]
    facts = json.loads((run.path / "environment.json").read_text())
    assert facts["data_fingerprint"] == "f00d" and facts["versions"]["torch"] == environment()["versions"]["torch"]


def test_create_refuses_a_directory_that_holds_a_run(run: RunDirectory) -> None:
    created(run)
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    with pytest.raises(ConfigError) as error:
        created(run, "seed=1")
    assert f"{run.path} holds a run already" in str(error.value) and f"resume={run.path}" in str(error.value)
    assert {path: path.read_bytes() for path in run.path.iterdir()} == before


def test_create_names_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as error:
        created(RunDirectory(tmp_path / "file" / "run"))
    assert "cannot be written" in str(error.value) and "output_dir" in str(error.value)


def test_the_config_is_written_last(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory without config.yaml holds no run, so that it can be used again after a kill."""

    def killed(path: Path, content: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medr1.runs.run_directory.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        created(run)
    monkeypatch.undo()
    created(run)


@pytest.mark.parametrize(
    ("overrides", "data", "algorithm"),
    [
        ([], PhantomsConfig, GRPOConfig),
        (["algorithm=medr1_legacy", "data=omnimedvqa", f"data.root={CONF}"], OmniMedVQAConfig, GRPOConfig),
        (["algorithm=sft", "model=qwen2_vl_7b"], PhantomsConfig, SFTConfig),
        (["experiment=tiny_base"], PhantomsConfig, PretrainConfig),
    ],
)
def test_the_stored_config_comes_back_typed(
    run: RunDirectory, overrides: list[str], data: type, algorithm: type
) -> None:
    cfg = created(run, *overrides)
    stored = run.stored_config(TrainConfig)
    assert stored == checked(cfg, TrainConfig)
    assert type(stored) is TrainConfig and type(stored.data) is data and type(stored.algorithm) is algorithm
    assert isinstance(stored.model.dtype, Precision)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("dtype: float32", "dtype: float31"), "float31"),
        (lambda text: text.replace("seed: 0\noutput", "seed: zero\noutput"), "zero"),
        (lambda text: text + "colour: red\n", "colour"),
        (lambda text: text.replace("beta:", "betta:"), "betta"),
        (lambda text: text.replace("num_generations: 8\n", "groups: 8\n"), "groups"),
        (lambda text: text.split("algorithm:")[0], "algorithm"),
        (lambda text: "a: [1", "parsing"),
        (lambda text: "- 1\n- 2\n", "settings"),
        (lambda text: "5", "int"),
        (lambda text: "", "missing"),
    ],
)
def test_a_config_that_cannot_be_read_names_its_file(run: RunDirectory, change: Any, words: str) -> None:
    created(run)
    text = run.config.read_text()
    assert change(text) != text
    run.config.write_text(change(text))
    with pytest.raises(ConfigError) as error:
        run.stored_config(TrainConfig)
    assert str(run.config) in str(error.value) and words in str(error.value)


def test_the_directory_of_the_other_command_is_named(run: RunDirectory) -> None:
    created(run)
    with pytest.raises(ConfigError, match=r"holds a training, to be continued with python train\.py resume="):
        run.stored_config(EvaluateConfig)


def test_a_directory_without_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no run directory: it has no config\.yaml"):
        RunDirectory(tmp_path).stored_config(TrainConfig)


def test_the_latest_checkpoint_has_the_highest_step(run: RunDirectory) -> None:
    assert run.latest_checkpoint() is None
    for name in ("step=9.ckpt", "step=10.ckpt", ".step=11.ckpt.partial", "step=last.ckpt", "other"):
        (run.checkpoints / name).mkdir(parents=True)
    (run.checkpoints / "step=12.ckpt").write_text("a file is not a checkpoint")
    assert run.latest_checkpoint() == run.checkpoints / "step=10.ckpt"


def test_a_model_is_there_when_training_has_ended(run: RunDirectory) -> None:
    with pytest.raises(CheckpointError, match=r"no trained model yet; finish it with python train\.py resume="):
        run.weights("base")
    run.model.mkdir(parents=True)
    assert run.weights("base") == (str(run.model), None)
    (run.model / "adapter_config.json").touch()
    assert run.weights("base") == ("base", run.model)


def test_runs_that_start_at_once_get_directories_of_their_own(run: RunDirectory) -> None:
    with ThreadPoolExecutor(8) as pool:
        claimed = [found.path for found in pool.map(lambda _: run.claim_new(), range(24))]
    assert len(set(claimed)) == 24 and all(path.is_dir() for path in claimed)
    assert {path.name for path in claimed} == {"one", *(f"one-{number}" for number in range(2, 25))}


def test_a_file_in_the_place_of_a_directory_is_an_error(run: RunDirectory) -> None:
    run.path.parent.mkdir()
    run.path.touch()
    with pytest.raises(FileExistsError):
        run.claim_new()


def test_only_a_run_that_has_not_begun_is_discarded(run: RunDirectory) -> None:
    begun, other, with_log = run.claim_new(), run.claim_new(), run.claim_new()
    created(begun)
    (other.path / ".run.lock").touch()
    (with_log.path / "audit.json").write_text("the result of a command that failed while it logged to MLflow")
    for found in (begun, other, with_log):
        found.discard_unless_started()
    assert begun.config.is_file() and not other.path.exists() and with_log.path.exists()


def test_an_output_directory_of_its_own_goes_with_a_run_that_has_not_begun(run: RunDirectory) -> None:
    run.claim_new().discard_unless_started()
    assert not run.path.parent.exists() and run.path.parent.parent.exists()
