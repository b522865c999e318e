"""CONTRIBUTING.md: its examples, written into a plugin folder, train."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from medr1.cli.main import CONF
from medr1.data.sources.phantoms.records import World, make_records
from medr1.tracking.address import stored_run
from tests.integration.conftest import only_run, read_json, run_command

pytestmark = pytest.mark.long  # one training for each example

PAGE = (CONF.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(
    re.findall(r"^`my_plugins/([\w/]+\.(?:py|yaml))`\n\n```(?:python|yaml)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
)
TESTS = dict(re.findall(r"^`(test_\w+\.py)`[^\n]*\n\n```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = re.findall(r"^python train\.py (plugins=my_plugins .*)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the page under my_plugins/, and a CSV file with questions."""
    folder = tmp_path_factory.mktemp("contributing")
    for name, content in FILES.items():
        path = folder / "my_plugins" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    with (folder / "questions.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, ["image", "modality", "question_type", "question", *"ABCD", "answer", "split"])
        rows.writeheader()
        for number, record in enumerate(make_records(World.TRAIN, 0, 1)):
            image = f"{number // 5}.png"
            record.images[0].load(84).save(folder / image)
            fixed = {"image": image, "modality": record.modality, "question_type": record.question_type}
            text = {"question": record.question, **record.options, "answer": record.answer}
            rows.writerow(fixed | text | {"split": "test" if number % 5 == 0 else "train"})
    return folder


def test_the_page_has_an_example_of_each_component() -> None:
    groups = {Path(name).parent.name for name in FILES if name.endswith(".yaml")}
    assert groups == {"reward", "data", "algorithm", "rollout"}
    assert len(COMMANDS) >= 5


def test_the_test_of_a_reward_passes_and_can_fail(folder: Path) -> None:
    (name,) = TESTS
    (folder / name).write_text(TESTS[name], encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", name]
    found = os.environ | {"PYTHONPATH": str(CONF.parent)}
    assert subprocess.run(command, cwd=folder, env=found, check=False, timeout=300).returncode == 0
    (folder / name).write_text(TESTS[name].replace("1.0),", "0.5),"), encoding="utf-8")
    assert subprocess.run(command, cwd=folder, env=found, check=False, timeout=300).returncode == 1


@pytest.mark.parametrize("command", [*COMMANDS, "plugins=my_plugins algorithm=high_entropy debug=quick"])
def test_the_examples_train(command: str, folder: Path, tmp_path: Path) -> None:
    words = [
        word.replace("my_plugins", f"{folder}/my_plugins").replace("questions.csv", f"{folder}/questions.csv")
        for word in shlex.split(command)
    ]
    run_command("train.py", *words, "trainer.max_steps=2", f"output_dir={tmp_path}")
    run = only_run(tmp_path)
    assert read_json(run.summary)["conditions"]["trained"]["overall"]["n"] > 0
    if name := re.search(r"reward\.functions\.(\w+)\.", command):
        stored = stored_run(run.path)
        assert stored is not None
        metrics = MlflowClient(tracking_uri=stored.uri).get_run(stored.run_id).data.metrics
        assert f"train/{name[1]}_reward" in metrics
        assert f'"train/{name[1]}_reward": ' in run.metrics.read_text(encoding="utf-8")
