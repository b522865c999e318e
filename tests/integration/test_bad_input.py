"""One table of broken inputs: what the user sees names the file, the record, the value or the remedy.

Most rows go through the same functions as a run, in this process; some go through the command line, where the answer
must be one message, exit status 2 and no traceback.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from medr1.config.settings import TrainConfig
from medr1.data.dataset import load_dataset
from medr1.data.sources.omnimedvqa import OmniMedVQAConfig
from medr1.data.stored_data import OnBadRecord, Split
from medr1.errors import Medr1Error
from medr1.evaluation.predictions import read_predictions
from medr1.models.export import save_policy
from medr1.models.loading import ModelSpec, load_policy
from medr1.runs.run_directory import RunDirectory
from medr1.tracking.address import stored_run
from medr1.tracking.tracker import Tracker
from medr1.training.checkpoint_io import SafetensorsCheckpointIO
from tests.command_lines import ROOT, run
from tests.composing import check

QA = "data/QA_information/Open-access/D.json"
SPLIT = "data/Splits/X-Ray_train.json"


@dataclass(frozen=True)
class Place:
    """A folder with a small release in ``data``, a checkpoint in ``model`` and whatever else a row puts there."""

    path: Path

    def write(self, name: str, content: str | bytes) -> None:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)

    def change(self, **values: Any) -> None:
        """Changes the second of the release's records; None removes a key."""
        records = json.loads((self.path / QA).read_text())
        records[1] = {key: value for key, value in (records[1] | values).items() if value is not None}
        self.write(QA, json.dumps(records))

    def cut(self, name: str, share: float) -> None:
        whole = (self.path / name).read_bytes()
        self.write(name, whole[: int(share * len(whole))])


def read_data(at: Place, **settings: Any) -> None:
    given: dict[str, Any] = {"name": "omnimedvqa", "image_size": 28, "root": str(at.path / "data")}
    given |= {"split": Split.test_only, "on_bad_record": OnBadRecord.error, "cache_dir": str(at.path / "cache")}
    load_dataset(OmniMedVQAConfig(**(given | settings)), "all", "all")


def read_split(at: Place) -> None:
    read_data(at, split=Split.released)


def read_model(at: Place, adapter: Path | None = None) -> None:
    load_policy(ModelSpec(str(at.path / "model"), adapter=adapter))


def read_adapter(at: Place) -> None:
    read_model(at, at.path / "adapter")


def read_state(at: Place) -> None:
    SafetensorsCheckpointIO().load_checkpoint(at.path / "step=4.ckpt")


def save_state(at: Place) -> None:
    SafetensorsCheckpointIO().save_checkpoint({"state_dict": {"w": torch.ones(8)}, "step": 4}, at.path / "step=4.ckpt")


def read_config(at: Place) -> None:
    RunDirectory(at.path / "run").stored_config(TrainConfig)


def create(at: Place) -> None:
    RunDirectory(at.path / "run").create(OmegaConf.create({"seed": 0}), [], {})


def track(uri: str) -> Callable[[Place], None]:
    return lambda at: Tracker.start(uri, "e", "r", at.path / "run") and None


def configure(*overrides: str) -> Callable[[Place], None]:
    def meet(at: Place) -> None:
        with initialize_config_dir(version_base=None, config_dir=str(ROOT / "conf")):
            check(compose("train", overrides=list(overrides)))

    return meet


def png(side: int, seed: int = 0) -> bytes:
    stream = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


RECORD = "D.json, record #1 (D_1)"
Break = Callable[[Place], Any]
TABLE: dict[str, tuple[Break, Break, list[str]]] = {
    # name: (how the input is broken, what meets it, words of the message)
    "json: cut off": (lambda at: at.cut(QA, 0.5), read_data, ["D.json is not valid JSON", "Remedy"]),
    "json: not utf-8": (lambda at: at.write(QA, b'["\xff\xfe"]'), read_data, ["D.json is not valid JSON", "utf-8"]),
    "json: one object": (lambda at: at.write(QA, '{"a": 1}'), read_data, ["D.json must hold a list", "dict"]),
    "json: a number in the list": (lambda at: at.write(QA, "[7]"), read_data, ["record #0", "found int"]),
    "json: no question": (lambda at: at.change(question=None), read_data, [RECORD, "'question' is missing"]),
    "json: options are missing": (lambda at: at.change(option_A=None), read_data, [RECORD, "at least two"]),
    "json: two equal options": (lambda at: at.change(option_A="Lung."), read_data, [RECORD, "options A and B", "Lung"]),
    "json: a strange modality": (lambda at: at.change(modality_type="PET"), read_data, [RECORD, "'PET'"]),
    "json: a strange kind": (lambda at: at.change(question_type="Poetry"), read_data, [RECORD, "'Poetry'"]),
    "answer: none of the options": (lambda at: at.change(gt_answer="Knee"), read_data, [RECORD, "'Knee'", "Lung"]),
    "answer: a number": (lambda at: at.change(gt_answer=3), read_data, [RECORD, "gt_answer 3", "Lung"]),
    "answer: a letter too many": (
        lambda at: at.write(SPLIT, '[{"image": "Images/0.png", "problem": "Q? A)x, B)y", "solution": "A or B"}]'),
        read_split,
        ["X-Ray_train.json, record #0", "'A or B'", "<answer> C </answer>"],
    ),
    "answer: a letter without option": (
        lambda at: at.write(
            SPLIT, '[{"image": "Images/0.png", "problem": "Q? A)x, B)y", "solution": "<answer> D </answer>"}]'
        ),
        read_split,
        ["X-Ray_train.json, record #0", "answer 'D'", "A, B"],
    ),
    "split: a name that says nothing": (
        lambda at: at.write("data/Splits/mine.json", "[]"),
        read_split,
        ["mine.json", "Dermoscopy_train.json"],
    ),
    "image: absent": (
        lambda at: (at.path / "data/Images/1.png").unlink(),
        read_data,
        [RECORD, "Images/1.png", "does not exist", "data.on_bad_record=skip"],
    ),
    "image: empty": (lambda at: at.write("data/Images/1.png", b""), read_data, [RECORD, "0 bytes"]),
    "image: cut off": (lambda at: at.cut("data/Images/1.png", 0.5), read_data, [RECORD, "cannot be decoded"]),
    "image: a text": (lambda at: at.write("data/Images/1.png", "hello"), read_data, [RECORD, "cannot be decoded"]),
    "image: huge": (
        lambda at: at.write("data/Images/1.png", png(400)),
        lambda at: read_data(at, max_image_pixels=100_000),
        [RECORD, "400 x 400", "data.max_image_pixels"],
    ),
    "image: outside the root": (lambda at: at.change(image_path="../x.png"), read_data, [RECORD, "'../x.png'", "'..'"]),
    "image: an absolute path": (lambda at: at.change(image_path="/x.png"), read_data, [RECORD, "is absolute"]),
    "root: absent": (lambda at: None, lambda at: read_data(at, root="nowhere"), ["nowhere", "data.root=PATH"]),
    "root: another folder": (
        lambda at: None,
        lambda at: read_data(at, root=str(at.path / "model")),
        ["model", "neither QA_information nor Splits", "data.root"],
    ),
    "root: without splits": (lambda at: None, read_split, ["Splits", "data.split=image_grouped"]),
    "cache: not writable": (
        lambda at: at.write("cache", "a file"),
        read_data,
        ["image cache", "cannot be written"],
    ),
    "model: no directory": (
        lambda at: (at.path / "model").rename(at.path / "moved"),
        read_model,
        ["model.path=", "no config.json", "hub id"],
    ),
    "model: config cut off": (lambda at: at.cut("model/config.json", 0.5), read_model, ["model.path=", "config"]),
    "model: another family": (
        lambda at: at.write("model/config.json", '{"model_type": "bert"}'),
        read_model,
        ["'bert'", "qwen2_vl"],
    ),
    "model: weights cut off": (lambda at: at.cut("model/model.safetensors", 0.5), read_model, ["model", "loaded"]),
    "model: weights are pickled": (
        lambda at: (at.path / "model/model.safetensors").rename(at.path / "model/pytorch_model.bin"),
        read_model,
        ["model", "safetensors"],
    ),
    "model: no tokenizer": (
        lambda at: [(at.path / "model" / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        read_model,
        ["model", "token"],
    ),
    "model: weights of other sizes": (
        lambda at: at.write("model/config.json", (at.path / "model/config.json").read_text().replace("64", "72")),
        read_model,
        ["model", "loaded"],
    ),
    "adapter: absent": (lambda at: None, read_adapter, ["adapter", "adapter_model.safetensors"]),
    "adapter: not of this model": (
        lambda at: (
            at.write("adapter/adapter_model.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
            at.write("adapter/adapter_config.json", '{"peft_type": "LORA", "target_modules": ["no_such_layer"]}'),
        ),
        read_adapter,
        ["adapter", "no_such_layer"],
    ),
    "config: a size between tokens": (lambda at: None, configure("data.image_size=100"), ["100", "image_size=112"]),
    "config: no place for the model": (lambda at: None, configure("model=hf"), ["model=hf", "model.path="]),
    "config: a folder that is not there": (
        lambda at: None,
        configure("data=omnimedvqa", "data.root=nowhere"),
        ["data.root=nowhere", "no such file or folder"],
    ),
    "checkpoint: absent": (lambda at: None, read_state, ["step=4.ckpt", "no checkpoint"]),
    "checkpoint: cut off": (
        lambda at: (save_state(at), at.cut("step=4.ckpt/model.safetensors", 0.5)),
        read_state,
        ["model.safetensors is damaged", "checksum"],
    ),
    "run: no run": (lambda at: at.write("run/notes", ""), read_config, ["run is no run directory", "config.yaml"]),
    "run: config cut off": (lambda at: at.write("run/config.yaml", "a: [1"), read_config, ["config.yaml is damaged"]),
    "run: used": (create, create, ["holds a run already", "resume="]),
    "run: under a file": (lambda at: at.write("run", ""), create, ["run cannot be written", "output_dir"]),
    "run: tracking note cut off": (
        lambda at: at.write("run/mlflow.json", "{"),
        lambda at: stored_run(at.path / "run"),
        ["mlflow.json is damaged", "remove it"],
    ),
    "predictions: cut off": (
        lambda at: at.write("p.jsonl", '{"record": "a", '),
        lambda at: read_predictions(at.path / "p.jsonl"),
        ["p.jsonl, line 1", "incomplete"],
    ),
    "tracking: a folder": (lambda at: None, track("file:///mlruns"), ["file:///mlruns", "sqlite:///"]),
    "tracking: no file": (lambda at: None, track("sqlite://"), ["sqlite://", "names no file"]),
}


@pytest.fixture(scope="session")
def model(build: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_policy(*build("qwen2_vl"), folder)
    return folder


@pytest.fixture
def at(model: Path, tmp_path: Path) -> Place:
    place = Place(tmp_path)
    records = []
    for i in range(3):
        record = {"question_id": f"D_{i}", "question_type": "Disease Diagnosis", "question": f"What is {i}?"}
        record |= {"gt_answer": "Lung", "option_A": "Heart", "option_B": "Lung", "modality_type": "X-Ray"}
        records.append(record | {"image_path": f"Images/{i}.png"})
        place.write(f"data/Images/{i}.png", png(40, seed=i))
    place.write(QA, json.dumps(records))
    (tmp_path / "model").mkdir()
    for file in model.iterdir():
        place.write(f"model/{file.name}", file.read_bytes())
    return place


def test_what_is_not_broken_is_read(at: Place) -> None:
    read_data(at)
    read_model(at)
    save_state(at)
    read_state(at)
    create(at)


@pytest.mark.parametrize("row", TABLE)
def test_a_broken_input_is_named(row: str, at: Place) -> None:
    spoil, meet, words = TABLE[row]
    spoil(at)
    with pytest.raises(Medr1Error) as error:
        meet(at)
    message = str(error.value)
    assert [word for word in words if word not in message] == [], message
    assert len(message) < 1500 and len(message.splitlines()[0]) > 15


@pytest.mark.long
def test_the_command_line_answers_with_one_message(at: Place, tmp_path_factory: pytest.TempPathFactory) -> None:
    lines = {
        "json: cut off": "train.py data=omnimedvqa data.root=data data.split=image_grouped tracking=none",
        "model: weights cut off": "evaluate.py model=hf model.path=./model model.image_size=28 tracking=none",
        "run: used": "evaluate.py model=hf model.path=./model model.image_size=28 tracking=none hydra.run.dir=run",
    }
    prompt_indices = {row: Place(shutil.copytree(at.path, tmp_path_factory.mktemp("typed") / "at")) for row in lines}
    for row, place in prompt_indices.items():
        TABLE[row][0](place)
    answers = run([(place.path, lines[row]) for row, place in prompt_indices.items()])
    for row, answer in zip(lines, answers, strict=True):
        assert answer.code == 2, answer.err
        assert "Traceback" not in answer.err and answer.err.count("error: ") == 1
        assert [words for words in TABLE[row][2] if words not in answer.err] == [], answer.err
