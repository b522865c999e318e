"""What a repeated sweep refuses: finished runs whose data, reward functions or plugins have changed since."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from medr1.atomic_write import read_json, write_json
from medr1.config.settings import TrainConfig
from medr1.errors import ConfigError
from medr1.runs.run_directory import RunDirectory
from medr1.runs.sweep import Job, Manifest, SweepDirectory
from medr1.workflows import plugin_sources
from medr1.workflows.multirun import _check_earlier_runs
from medr1.workflows.plugin_sources import PLUGINS_VARIABLE
from medr1.workflows.session import load_data
from medr1.workflows.sweep_inputs import check_inputs
from medr1.workflows.sweep_runs import ComposedRun
from tests.composing import composed


def write(file: Path, text: str) -> None:
    """Later than everything that was written before, whatever the clock of the file system."""
    file.write_text(text, encoding="utf-8")
    later = time.time() + 10
    os.utime(file, (later, later))


def questions(answer: str) -> str:
    lines = [
        {"image": f"{i}.png", "question": f"What is seen in {i}?", "options": ["a cyst", "a nodule"], "answer": answer}
        for i in range(20)
    ]
    return "\n".join(map(json.dumps, lines))


@pytest.fixture
def finished(tmp_path: Path) -> tuple[RunDirectory, TrainConfig, Path]:
    """A finished run on twenty questions, its settings and the file of the questions."""
    for i in range(20):
        Image.effect_noise((32, 32), 10.0 + 10 * i).save(tmp_path / f"{i}.png")
    (file := tmp_path / "questions.jsonl").write_text(questions("A"))
    cfg: TrainConfig = composed("train", "data=mcqa", f"data.path={file}", "data.test_fraction=0.5")
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.environment.write_text(json.dumps({"loaded_fingerprint": load_data(cfg).fingerprint}))
    return run, cfg, file


def test_changed_data_are_refused(finished: tuple[RunDirectory, TrainConfig, Path]) -> None:
    run, cfg, file = finished
    check_inputs([(run, cfg)], "advice")
    write(file, questions("A"))  # written again, and the same
    check_inputs([(run, cfg)], "advice")
    write(file, questions("B"))
    with pytest.raises(ConfigError, match=r"run had other data: .*questions\.jsonl was written since; advice"):
        check_inputs([(run, cfg)], "advice")


def test_changed_code_is_refused(
    finished: tuple[RunDirectory, TrainConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, cfg, _ = finished
    (plugins := tmp_path / "plugins").mkdir()
    (plugins / "own.py").write_text("X = 1")
    monkeypatch.setenv(PLUGINS_VARIABLE, str(plugins))
    plugin_sources.store(run)
    (reward := tmp_path / "short.py").write_text(
        "def short(completions, **kwargs):\n    return [0.0] * len(completions)\n"
    )
    cfg.reward.functions["short"] = {"function": f"{reward}:short", "weight": 1.0}
    run.reward_source("short", 1).parent.mkdir()
    run.reward_source("short", 1).write_text(reward.read_text())
    check_inputs([(run, cfg)], "advice")
    write(reward, reward.read_text().replace("0.0", "1.0"))
    with pytest.raises(ConfigError, match=r"run had other code: .*short\.py changed since; advice"):
        check_inputs([(run, cfg)], "advice")
    write(plugins / "own.py", "X = 2")
    with pytest.raises(ConfigError, match=r"other code: .*own\.py, .*short\.py changed since"):
        check_inputs([(run, cfg)], "advice")


def test_changed_data_of_one_of_several_sets_are_refused(finished: tuple[RunDirectory, TrainConfig, Path]) -> None:
    run, _, file = finished
    words = (
        "+data@data.sets.own=mcqa",
        "data=benchmarks",
        f"data.sets.own.path={file}",
        "data.sets.own.test_fraction=0.5",
    )
    cfg: TrainConfig = composed("train", *words)
    run.environment.write_text(json.dumps({"loaded_fingerprint": load_data(cfg).fingerprint}))
    check_inputs([(run, cfg)], "advice")
    write(file, questions("B"))
    with pytest.raises(ConfigError, match=r"had other data: .*questions\.jsonl"):
        check_inputs([(run, cfg)], "advice")


def test_a_command_that_adds_a_seed_is_compared_with_the_runs_of_earlier_ones(
    finished: tuple[RunDirectory, TrainConfig, Path], tmp_path: Path
) -> None:
    """They stand in the same tables, and the trials of a search are chosen by those before them."""
    _, cfg, file = finished
    sweep = SweepDirectory(tmp_path / "sweep")
    jobs = [Job(seed, {"modality": "all", "seed": seed}, [f"seed={seed}"]) for seed in ("0", "1")]
    sweep.add(Manifest("m", "modality", "modality", ["seed=0"], ["0"], {"0": jobs[0]}))
    run = sweep.run("0")
    facts = {"data_fingerprint": "-", "loaded_fingerprint": load_data(cfg).fingerprint}
    run.create(OmegaConf.structured(cfg), [], facts)
    write_json(run.finished, {})
    added = {"1": ComposedRun({}, [], OmegaConf.create({}), replace(cfg, seed=1))}
    _check_earlier_runs(sweep, jobs[1:], added)
    write(file, questions("B"))
    with pytest.raises(ConfigError, match=r"sweep/0 had other data: .*questions\.jsonl was written since"):
        _check_earlier_runs(sweep, jobs[1:], added)
    (moved := tmp_path / "moved" / file.name).parent.mkdir()
    for image in tmp_path.glob("*.png"):
        shutil.copy(image, moved.parent)
    moved.write_text(questions("A"))
    added["1"].settings.data.path = str(moved)  # type: ignore[attr-defined]
    _check_earlier_runs(sweep, jobs[1:], added)  # the same content in another place
    write(moved, questions("B"))
    with pytest.raises(ConfigError, match=r"sweep/0 had other data: .*moved/questions\.jsonl was written since"):
        _check_earlier_runs(sweep, jobs[1:], added)
    write(moved, questions("A"))
    write_json(run.environment, {**read_json(run.environment), "model_fingerprint": "of other weights"})
    with pytest.raises(ConfigError, match="sweep/0 began with other weights"):
        _check_earlier_runs(sweep, jobs[1:], added)
