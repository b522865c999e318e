"""An exported model generates the same tokens without medr1, by the code in its model card."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medr1.ask import ask, load
from medr1.atomic_write import read_json
from medr1.config.enums import CheckpointChoice
from medr1.domain.reasoning import question_text
from medr1.errors import ConfigError
from medr1.generation.rollout import rollout
from medr1.generation.sampling import Sampling
from medr1.models.processor import Prompt
from medr1.runs.run_directory import RunDirectory
from medr1.workflows.export import export_run
from tests.integration.conftest import FEW_IMAGES, ROOT, run_command, train_here

QUESTION, OPTIONS = "Which modality is this?", {"A": "ct", "B": "mri"}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run with a LoRA adapter that differs from its base."""
    changes = (
        "debug=quick",
        "modality=mri",
        "reasoning=think_after",
        "model.tuning=lora",
        "tracking=none",
        *FEW_IMAGES,
    )
    return train_here(tmp_path_factory.mktemp("adapted") / "run", *changes, "algorithm.learning_rate=1e-2")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "x.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 70, 3), dtype=np.uint8)).save(path)
    return path


def greedy_with_medr1(path: str | Path, image: Path) -> list[int]:
    """The greedy tokens of medr1."""
    model = load(path)
    text = model.processor.chat(question_text(QUESTION, OPTIONS, model.choice.mode))
    resized = model.choice.size.apply(Image.open(image))
    with torch.no_grad():
        prefix = model.policy.prefill(model.processor.encode([Prompt(text, (resized,))]))
        return rollout(model.policy, prefix, Sampling.greedy(32, model.processor)).ids[0].tolist()


def greedy_without_medr1(export: Path, image: Path, base: str) -> list[int]:
    """The greedy tokens of the code in the model card."""
    (code,) = re.findall(r"```python\n(.*?)```", (export / "README.md").read_text("utf-8"), flags=re.DOTALL)
    code = code.replace('"image.png"', repr(str(image))).replace('"BASE"', repr(base))
    code += "\nimport sys\nassert 'medr1' not in sys.modules\nprint(out[0, ids.shape[1]:].tolist())"
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=export, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return list(map(int, done.stdout.splitlines()[-1].strip("[]").split(",")))


@pytest.mark.long
@pytest.mark.parametrize("merge", [True, False])
def test_an_export_gives_the_same_tokens_without_medr1(
    adapted: RunDirectory, image: Path, tmp_path: Path, merge: bool
) -> None:
    export_run(adapted, tmp_path / "export", merge)
    files = {path.name for path in (tmp_path / "export").iterdir()}
    assert ("adapter_model.safetensors" in files) != merge and ("model.safetensors" in files) == merge
    assert list(tmp_path.iterdir()) == [tmp_path / "export"]
    expected = greedy_with_medr1(adapted.path, image)
    assert expected != greedy_with_medr1("tiny", image)
    base = str(ROOT / "medr1" / "models" / "tiny_base")
    assert greedy_without_medr1(tmp_path / "export", image, base) == expected
    # medr1 loads it with the prompt settings of the run.
    assert greedy_with_medr1(tmp_path / "export", image) == expected
    answers = [ask(load(model), image, QUESTION, ["ct", "mri"]) for model in (adapted.path, tmp_path / "export")]
    assert answers[0].completion == answers[1].completion and answers[0].letter == answers[1].letter


@pytest.mark.long
def test_an_export_keeps_the_aspect_ratio_of_its_training(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 190, 3), dtype=np.uint8)).save(path)
    native = ("data.resize=native", "data.min_pixels=784", "data.max_pixels=7000", "trainer.max_steps=1")
    short = ("evaluation.limit=1", "evaluation.blank_image=false", "evaluation.shuffled_image=false", "tracking=none")
    run = train_here(tmp_path / "run", "debug=quick", "reasoning=think_after", *native, *short, *FEW_IMAGES)
    export_run(run, tmp_path / "export", merge=True)
    assert load(tmp_path / "export").choice.size.of(190, 90) == (112, 56)
    expected = greedy_with_medr1(run.path, path)
    assert expected == greedy_with_medr1(tmp_path / "export", path)
    assert expected == greedy_without_medr1(tmp_path / "export", path, "")
    assert "own aspect ratio, 784 to 7000 pixels" in (tmp_path / "export" / "README.md").read_text("utf-8")


@pytest.mark.long
def test_the_card_says_what_it_is(adapted: RunDirectory, tmp_path: Path) -> None:
    export_run(adapted, tmp_path / "export", merge=True)
    card = (tmp_path / "export" / "README.md").read_text("utf-8")
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: transformers\n")
    assert adapted.results.read_text("utf-8").strip() in card
    assert read_json(adapted.summary)["data_fingerprint"] in card
    assert "LoRA, rank 16" in card and "| reasoning | think_after |" in card
    assert str(ROOT) not in card and str(adapted.path.parent) not in card
    with pytest.raises(ConfigError, match="exists already"):
        export_run(adapted, tmp_path / "export", merge=True)


@pytest.mark.long
def test_the_card_of_another_checkpoint_and_of_a_second_training(tmp_path: Path) -> None:
    """It has the step of its weights, no results of other weights, and the model that the training began with."""
    chosen = ("trainer.metric_for_best_model=validation/accuracy", "trainer.load_best_model_at_end=true")
    validated = ("data.validation_fraction=0.1", "trainer.eval_steps=1", "trainer.max_steps=2", *chosen)
    images = ("data.train_images_per_modality=10", "data.test_images_per_modality=2", "modality=ct")
    words = ("debug=quick", "algorithm=sft", "reasoning=no_think", *images, *validated, "tracking=none")
    first = train_here(tmp_path / "first", *words, "evaluation.option_probabilities=true")
    second = train_here(tmp_path / "second", *words, f"model.path={first.path}")
    cards = {}
    for name, run, checkpoint in (("tested", first, None), ("last", first, "last"), ("second", second, None)):
        export = tmp_path / f"export_{name}"
        export_run(run, export, merge=True, checkpoint=checkpoint and CheckpointChoice(checkpoint))
        cards[name] = (export / "README.md").read_text("utf-8")
    assert "figures/" in first.results.read_text("utf-8") and "figures/" not in cards["tested"]
    assert "Results of this run" in cards["tested"] and f"| {first.best_step()} of 2 x 4 |" in cards["tested"]
    assert "have not been tested" in cards["last"] and "| 2 x 4 |" in cards["last"] and "chance" not in cards["last"]
    assert "from the model of the run first, which was trained from medr1's tiny base" in cards["second"]
    assert cards["tested"].startswith("---\nlicense") and "license" not in cards["second"].split("\n---\n")[0]


@pytest.mark.long
def test_an_adapter_names_where_its_base_lies_now(adapted: RunDirectory, tmp_path: Path) -> None:
    base = shutil.copytree(ROOT / "medr1" / "models" / "tiny_base", tmp_path / "moved")
    export_run(adapted, tmp_path / "export", merge=False, base=str(base))
    assert read_json(tmp_path / "export" / "adapter_config.json")["base_model_name_or_path"] == str(base)


@pytest.mark.long
def test_from_the_command_line_into_a_new_directory_or_not_at_all(
    finished: tuple[RunDirectory, str], tmp_path: Path
) -> None:
    run, _ = finished
    words = (f"run={run.path}", f"export={tmp_path / 'new'}")
    before = sorted(run.path.iterdir())
    assert "merge=false" in run_command("evaluate.py", *words, "merge=false", status=2)
    assert not (tmp_path / "new").exists()
    assert f"export: {tmp_path / 'new'}" in run_command("evaluate.py", *words)
    assert (tmp_path / "new" / "model.safetensors").is_file()
    assert "exists already" in run_command("evaluate.py", *words, status=2)
    assert sorted(path for path in run.path.iterdir() if path.name != "evaluate.log") == before
