"""``evaluate.py run=RUN export=DIR``: a run's model for those without medr1, with a card that says what it is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from omegaconf import DictConfig

from medr1.config.settings import TrainConfig
from medr1.errors import ConfigError
from medr1.models.export import export_policy
from medr1.models.loading import load_policy
from medr1.reporting.model_card import model_card
from medr1.runs.run_directory import RunDirectory, read_json, write_json, write_text
from medr1.workflows.model_choice import HOW_TO_ASK, ModelChoice


def export_run(run: RunDirectory, target: Path, merge: bool) -> None:
    """Writes the trained model of a finished run into the new directory ``target``, whole or not at all.

    ``merge``: a LoRA adapter becomes part of its base, a plain Hugging Face checkpoint; without, the PEFT adapter
    alone.

    Raises:
        ConfigError: no run, a target that exists or cannot be written, no adapter where one is wanted.
        CheckpointError: the run has no trained model, or a damaged one.
    """
    cfg = run.stored_config(TrainConfig)
    choice = ModelChoice.of_run(run)
    if os.path.lexists(target):
        raise ConfigError(f"export={target} exists already; name a new directory")
    if not run.results.is_file() or not run.summary.is_file():
        raise ConfigError(f"{run.path} has no results yet; finish it with train.py resume={run.path}")
    if not merge and choice.adapter is None:
        raise ConfigError(f"merge=false: {run.path} was trained in full and has no adapter; leave out merge=false")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise ConfigError(f"export={target} cannot be written ({error}); choose another directory") from error
        if merge:
            policy, processor = load_policy(choice.spec(torch.device("cpu")))
            export_policy(policy, processor, partial, choice.max_completion_length)
        else:
            assert choice.adapter is not None
            shutil.copytree(choice.adapter, partial, dirs_exist_ok=True)
        write_json(partial / HOW_TO_ASK, choice.how_to_ask())
        write_text(partial / "README.md", _card(cfg, run, choice, merge))
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # nothing is left of it after the rename
    print(f"export: {target}")


def _card(cfg: DictConfig, run: RunDirectory, choice: ModelChoice, merge: bool) -> str:
    path = str(cfg.model.path)
    shipped = cfg.model.name == "tiny"
    # A path of this machine says nothing elsewhere.
    local = Path(path).is_absolute() or path.startswith(".") or Path(path).is_dir()
    name = "medr1's tiny base" if shipped else f"{Path(path).name} (a local checkpoint)" if local else path
    recipe = {
        "algorithm": cfg.algorithm.name,
        "trained on": f"data {cfg.data.name}, modality {cfg.modality.name}, question type {cfg.question_type.name}",
        "reasoning": choice.mode.value,
        "steps x prompts": f"{cfg.trainer.max_steps} x {cfg.trainer.train_batch_size}",
        "tuning": f"LoRA, rank {cfg.model.lora.r}" if choice.adapter else "full",
        "learning rate": f"{cfg.algorithm.learning_rate:g}",
        "group size": str(cfg.algorithm.get("num_generations", "-")),
        "precision": choice.dtype,
        "seed": str(cfg.seed),
        "picture": f"{choice.image_size} x {choice.image_size} pixels",
        "new tokens, at most": str(choice.max_completion_length),
        "medr1 commit": str(read_json(run.path / "environment.json").get("git_commit") or "unknown"),
        "data fingerprint": str(read_json(run.summary)["data_fingerprint"]),
    }
    return model_card(
        run.path.name,
        base=name,
        base_id=None if shipped or local else path,
        base_license="apache-2.0" if shipped else None,
        recipe=recipe,
        results=run.results.read_text(encoding="utf-8"),
        mode=choice.mode,
        image_size=choice.image_size,
        max_completion_length=choice.max_completion_length,
        adapter=not merge,
    )
