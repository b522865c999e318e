"""An exported run answers without medr1 as it does with it: the code of its own model card, in a fresh process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medr1.ask import ask, load
from medr1.atomic_write import read_json
from medr1.domain.reasoning import question_text
from medr1.errors import ConfigError
from medr1.generation.rollout import Sampling, rollout
from medr1.models.processor import Prompt
from medr1.runs.run_directory import RunDirectory
from medr1.workflows.export import export_run
from tests.integration.conftest import ROOT, run_command, train_here

QUESTION, OPTIONS = "Which modality is this?", {"A": "ct", "B": "mri"}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run with a LoRA adapter, taught fast enough to differ from its base."""
    changes = ("debug=quick", "modality=mri", "reasoning=think_after", "model.tuning=lora", "tracking=none")
    return train_here(tmp_path_factory.mktemp("adapted") / "run", *changes, "algorithm.learning_rate=1e-2")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "x.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 70, 3), dtype=np.uint8)).save(path)
    return path


def told_by(model: str | Path, picture: Path) -> list[int]:
    """The greedy tokens of medr1."""
    loaded = load(model)
    text = loaded.processor.chat(question_text(QUESTION, OPTIONS, loaded.choice.mode))
    side = loaded.choice.image_size
    image = Image.open(picture).resize((side, side), Image.Resampling.BICUBIC)
    sampling = Sampling(
        32, loaded.processor.eos_token_id, tuple(loaded.processor.suppressed_token_ids()), temperature=0.0
    )
    with torch.no_grad():
        prefix = loaded.policy.prefill(loaded.processor.encode([Prompt(text, image)]))
        return rollout(loaded.policy, prefix, sampling).ids[0].tolist()


def told_by_card(export: Path, picture: Path, base: str) -> list[int]:
    """The greedy tokens of the code on the card, run where nothing knows of medr1."""
    (code,) = re.findall(r"```python\n(.*?)```", (export / "README.md").read_text("utf-8"), flags=re.DOTALL)
    code = code.replace('"image.png"', repr(str(picture))).replace('"BASE"', repr(base))
    code += "\nimport sys\nassert 'medr1' not in sys.modules\nprint(out[0, ids.shape[1]:].tolist())"
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=export, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return list(map(int, done.stdout.splitlines()[-1].strip("[]").split(",")))


@pytest.mark.parametrize("merge", [True, False])
def test_an_export_gives_the_same_tokens_without_medr1(
    adapted: RunDirectory, picture: Path, tmp_path: Path, merge: bool
) -> None:
    export_run(adapted, tmp_path / "export", merge)
    files = {path.name for path in (tmp_path / "export").iterdir()}
    assert ("adapter_model.safetensors" in files) != merge and ("model.safetensors" in files) == merge
    assert list(tmp_path.iterdir()) == [tmp_path / "export"]
    expected = told_by(adapted.path, picture)
    assert expected != told_by("tiny", picture)
    base = str(ROOT / "medr1" / "models" / "tiny_base")
    assert told_by_card(tmp_path / "export", picture, base) == expected
    # medr1 itself reads it, and asks as the run was asked.
    assert told_by(tmp_path / "export", picture) == expected
    answers = [ask(load(model), picture, QUESTION, ["ct", "mri"]) for model in (adapted.path, tmp_path / "export")]
    assert answers[0].completion == answers[1].completion and answers[0].letter == answers[1].letter


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
def test_from_the_command_line_into_a_new_directory_or_not_at_all(
    finished: tuple[RunDirectory, str], tmp_path: Path
) -> None:
    run, _ = finished
    words = (f"run={run.path}", f"export={tmp_path / 'new'}", f"output_dir={tmp_path / 'runs'}")
    before = sorted(run.path.iterdir())
    assert "merge=false" in run_command("evaluate.py", *words, "merge=false", status=2)
    assert not (tmp_path / "new").exists()
    assert f"export: {tmp_path / 'new'}" in run_command("evaluate.py", *words)
    assert (tmp_path / "new" / "model.safetensors").is_file()
    assert "exists already" in run_command("evaluate.py", *words, status=2)
    assert sorted(path for path in run.path.iterdir() if path.name != "evaluate.log") == before
