"""Each model family end to end: a checkpoint in hub format is trained in three ways, evaluated, exported, and run
without medr1."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from medr1.ask import load
from medr1.atomic_write import read_json
from medr1.config.settings import TrainConfig
from medr1.domain.reasoning import question_text
from medr1.evaluation.predictions import read_predictions
from medr1.generation.rollout import rollout
from medr1.generation.sampling import Sampling
from medr1.models.export import save_policy
from medr1.models.loading import FAMILIES, ModelSpec, load_policy
from medr1.models.processor import Prompt
from medr1.runs.run_directory import RunDirectory
from medr1.workflows.evaluate import evaluate
from medr1.workflows.export import export_run
from tests.composing import composed
from tests.integration.conftest import train_here

QUESTION, OPTIONS = "Which modality is this?", {"A": "ct", "B": "mri"}
SHORT = ["debug=quick", "modality=mri", "reasoning=no_think", "tracking=none", "model=hf", "evaluation.limit=1"]
# Completions of four tokens; the controls with other images are tested elsewhere.
SHORT += ["data.train_images_per_modality=40", "data.test_images_per_modality=2"]
SHORT += ["model.recipe.max_completion_length=8", "evaluation.blank_image=false", "evaluation.shuffled_image=false"]
EXACT = ["model.dtype=float32", "model.gradient_checkpointing=false"]
RL = ["algorithm=grpo", "algorithm.learning_rate=1e-2", "trainer.max_steps=3"]
# Generation settings that checkpoints ship, and that must have no effect.
SHIPPED = {"do_sample": True, "top_k": 1, "top_p": 0.001, "temperature": 0.01, "repetition_penalty": 1.5}


def evaluated(directory: Path, *overrides: str) -> RunDirectory:
    cfg = composed("evaluate", f"output_dir={directory.parent}", *overrides)
    evaluate(cfg, directory, list(overrides))
    return RunDirectory(directory)


def greedy_with_medr1(path: Path, image: Path) -> list[int]:
    """The greedy tokens of medr1."""
    model = load(path)
    side = model.choice.image_size
    resized = Image.open(image).resize((side, side), Image.Resampling.BICUBIC)
    prompt = Prompt(model.processor.chat(question_text(QUESTION, OPTIONS, model.choice.mode)), (resized,))
    with torch.no_grad():
        prefix = model.policy.prefill(model.processor.encode([prompt]))
        return rollout(model.policy, prefix, Sampling.greedy(8, model.processor)).ids[0].tolist()


def greedy_without_medr1(exports: list[Path], image: Path, base: Path) -> list[list[int]]:
    """The greedy tokens of the code in the model cards, run one after the other in a new process."""
    lines = ["import os, sys"]
    for export in exports:
        (code,) = re.findall(r"```python\n(.*?)```", (export / "README.md").read_text("utf-8"), flags=re.DOTALL)
        code = code.replace('"image.png"', repr(str(image))).replace('"BASE"', repr(str(base)))
        lines += [f"os.chdir({str(export)!r})", code, "print('TOKENS', out[0, ids.shape[1]:].tolist())"]
    lines.append("assert 'medr1' not in sys.modules")
    line = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(line, cwd=image.parent, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return [json.loads(text.removeprefix("TOKENS ")) for text in done.stdout.splitlines() if text.startswith("TOKENS")]


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_is_trained_evaluated_and_exported(build, family: str, tmp_path: Path) -> None:
    image = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 70, 3), dtype=np.uint8)).save(image)
    start = tmp_path / "start"
    save_policy(*build(family), start)
    (start / "generation_config.json").write_text(json.dumps(SHIPPED))

    # SFT first, so that not all rewards of the RL runs are zero.
    taught = ["algorithm=sft", "algorithm.learning_rate=1e-2", "trainer.max_steps=40", f"model.path={start}", *EXACT]
    sft = train_here(tmp_path / "sft", *SHORT, *taught)
    formats = [[line.format for line in read_predictions(sft.predictions(name))] for name in ("base", "trained")]
    assert not any(formats[0]) and sum(formats[1]) > 30
    (sft.model / "generation_config.json").write_text(json.dumps(SHIPPED))

    lora = ["model.tuning=lora", "model.lora.target_modules=both", f"model.path={sft.model}", *EXACT]
    adapted = train_here(tmp_path / "lora", *SHORT, *RL, *lora)
    adapter = load_file(adapted.model / "adapter_model.safetensors")
    moved = {name for name, weight in adapter.items() if "lora_B" in name and weight.any()}
    assert any("language_model" in name for name in moved) and any("visual" in name for name in moved)

    # As large models are trained: half precision, gradient checkpointing, a frozen vision tower.
    full = train_here(tmp_path / "full", *SHORT, *RL, f"model.path={sft.model}", "model.freeze_vision_tower=true")
    cfg = full.stored_config(TrainConfig)
    assert cfg.model.dtype == "bfloat16" and cfg.model.gradient_checkpointing and cfg.model.tuning != "lora"
    assert cfg.data.image_size == 3 * {"qwen3_vl": 32}.get(family, 28)
    assert read_json(full.environment)["attn_implementation"] == "sdpa"
    before, after = (load_file(run.model / "model.safetensors") for run in (sft, full))
    same = {name for name in after if torch.equal(before[name].bfloat16(), after[name])}
    assert {name for name in after if "visual" in name} <= same < set(after)

    again = evaluated(tmp_path / "again", f"run={adapted.path}", "tracking=none")
    assert read_predictions(again.predictions("trained")) == read_predictions(adapted.predictions("trained"))

    exports = [tmp_path / "merged", tmp_path / "adapter", tmp_path / "plain"]
    for run, export, merge in zip((adapted, adapted, sft), exports, (True, False, True), strict=True):
        export_run(run, export, merge)
    expected = [greedy_with_medr1(export, image) for export in exports]
    assert expected[0] == expected[1] and all(expected)
    assert greedy_without_medr1(exports, image, sft.model) == expected

    # As Med-R1's checkpoints are released: a plain directory, half precision, weights in several files.
    policy, processor = load_policy(ModelSpec(str(full.model), "bfloat16"))
    released = tmp_path / "released"
    save_policy(policy, processor, released)
    policy.model.save_pretrained(released, max_shard_size="100KB")
    (released / "model.safetensors").unlink()
    assert (released / "model.safetensors.index.json").is_file()
    size = f"data.image_size={cfg.data.image_size}"
    direct = evaluated(tmp_path / "direct", *SHORT[1:], f"model.path={released}", size)
    texts = [
        [line.text for line in read_predictions(file)]
        for file in (direct.predictions("base"), full.predictions("trained"))
    ]
    assert texts[0] == texts[1]
