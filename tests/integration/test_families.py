"""Each family on its whole way: a checkpoint as the hub has it, trained three times, evaluated, exported, and read
again where nothing knows of medr1."""

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
from medr1.domain.reasoning import question_text
from medr1.evaluation.predictions import read_predictions
from medr1.generation.rollout import Sampling, rollout
from medr1.models.loading import FAMILIES, load_policy, save_policy
from medr1.models.processor import Prompt
from medr1.runs.run_directory import RunDirectory
from medr1.workflows.evaluate import evaluate
from medr1.workflows.export import export_run
from tests.composing import composed
from tests.integration.conftest import train_here

QUESTION, OPTIONS = "Which modality is this?", {"A": "ct", "B": "mri"}
SHORT = ["debug=quick", "modality=mri", "reasoning=no_think", "tracking=none", "model=hf", "evaluation.limit=1"]
# Answers are four tokens; the controls with other pictures are tested elsewhere.
SHORT += ["data.train_images_per_modality=40", "data.test_images_per_modality=2"]
SHORT += ["model.recipe.max_completion_length=8", "evaluation.blank_image=false", "evaluation.shuffled_image=false"]
EXACT = ["model.dtype=float32", "model.gradient_checkpointing=false"]
RL = ["algorithm=grpo", "algorithm.learning_rate=1e-2", "trainer.max_steps=3"]
# What the checkpoints of the hub ship or may ship, and a policy must not heed.
SHIPPED = {"do_sample": True, "top_k": 1, "top_p": 0.001, "temperature": 0.01, "repetition_penalty": 1.5}


def evaluated(directory: Path, *overrides: str) -> RunDirectory:
    cfg = composed("evaluate", f"output_dir={directory.parent}", *overrides)
    evaluate(cfg, directory, list(overrides))
    return RunDirectory(directory)


def greedy_of_medr1(model: Path, picture: Path) -> list[int]:
    told = load(model)
    side = told.choice.image_size
    image = Image.open(picture).resize((side, side), Image.Resampling.BICUBIC)
    prompt = Prompt(told.processor.chat(question_text(QUESTION, OPTIONS, told.choice.mode)), image)
    sampling = Sampling(8, told.processor.eos_token_id, tuple(told.processor.suppressed_token_ids()), temperature=0.0)
    with torch.no_grad():
        return rollout(told.policy, told.policy.prefill(told.processor.encode([prompt])), sampling).ids[0].tolist()


def greedy_without_medr1(exports: list[Path], picture: Path, base: Path) -> list[list[int]]:
    """The code on the cards, one after the other in one fresh process."""
    lines = ["import os, sys"]
    for export in exports:
        (code,) = re.findall(r"```python\n(.*?)```", (export / "README.md").read_text("utf-8"), flags=re.DOTALL)
        code = code.replace('"image.png"', repr(str(picture))).replace('"BASE"', repr(str(base)))
        lines += [f"os.chdir({str(export)!r})", code, "print('TOKENS', out[0, ids.shape[1]:].tolist())"]
    lines.append("assert 'medr1' not in sys.modules")
    line = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(line, cwd=picture.parent, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return [json.loads(text.removeprefix("TOKENS ")) for text in done.stdout.splitlines() if text.startswith("TOKENS")]


@pytest.mark.parametrize("family", FAMILIES)
def test_from_a_checkpoint_of_the_hub_to_one_for_everybody(build, family: str, tmp_path: Path) -> None:
    picture = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 70, 3), dtype=np.uint8)).save(picture)
    start = tmp_path / "start"
    save_policy(*build(family), start)
    (start / "generation_config.json").write_text(json.dumps(SHIPPED))

    # Supervised first, so that the rewards of what follows are not all zero.
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

    # As the large ones are trained: half precision, layers run again in the backward pass, the vision tower as it was.
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
    expected = [greedy_of_medr1(export, picture) for export in exports]
    assert expected[0] == expected[1] and all(expected)
    assert greedy_without_medr1(exports, picture, sft.model) == expected

    # As Med-R1's own checkpoints are released: a plain directory, half precision, weights in several files.
    policy, processor = load_policy(
        str(full.model), dtype="bfloat16", attn_implementation="sdpa", gradient_checkpointing=False
    )
    released = tmp_path / "released"
    save_policy(policy, processor, released)
    policy.model.save_pretrained(released, max_shard_size="100KB")
    (released / "model.safetensors").unlink()
    assert (released / "model.safetensors.index.json").is_file()
    size = f"data.image_size={cfg.data.image_size}"
    byway = evaluated(tmp_path / "byway", *SHORT[1:], f"model.path={released}", size)
    texts = [
        [line.text for line in read_predictions(file)]
        for file in (byway.predictions("base"), full.predictions("trained"))
    ]
    assert texts[0] == texts[1]
