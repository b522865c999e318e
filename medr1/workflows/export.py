"""``evaluate.py run=RUN export=DIR``: the model of a run as a plain checkpoint with a model card."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from medr1.atomic_write import atomic_directory, read_json, write_json, write_text
from medr1.config.enums import CheckpointChoice, Quantization, Resize
from medr1.config.override_text import shell_word
from medr1.config.settings import TrainConfig
from medr1.errors import ConfigError
from medr1.models.export import export_policy
from medr1.reporting.model_card import model_card
from medr1.runs.run_directory import RunDirectory
from medr1.workflows.local_model import load_trained
from medr1.workflows.model_choice import PROMPT_SETTINGS, ModelChoice


def export_run(
    run: RunDirectory,
    target: Path,
    merge: bool,
    base: str | None = None,
    checkpoint: CheckpointChoice | None = None,
) -> None:
    """Writes the trained model of a finished run into the new directory ``target``, atomically.

    ``merge``: merge a LoRA adapter into its base and write a Hugging Face checkpoint; otherwise write the PEFT adapter
    alone. ``base``: where the base of a LoRA adapter lies now, if it has moved. ``checkpoint``: see
    ``RunDirectory.weights``.

    Raises:
        ConfigError: no run, a target that exists or cannot be written, no adapter where one is wanted.
        CheckpointError: the run has no trained model, or a damaged one.
    """
    cfg = run.stored_config(TrainConfig)
    cfg.model.path = base or cfg.model.path
    choice = ModelChoice.of_run(run, cfg.model.path, checkpoint)
    if choice.adapter is None and base is not None:
        raise ConfigError(f"model.path={base}: {run.path} was trained in full and needs no base; leave it out")
    if os.path.lexists(target):
        raise ConfigError(f"export={target} exists already; name a new directory")
    if not run.results.is_file() or not run.summary.is_file():
        raise ConfigError(
            f"{run.path} has no results yet; finish it with python train.py {shell_word('resume', run.path)}"
        )
    if not merge and choice.adapter is None:
        raise ConfigError(f"merge=false: {run.path} was trained in full and has no adapter; leave out merge=false")
    try:
        with atomic_directory(target) as directory:
            if choice.adapter is not None and not merge:
                shutil.copytree(choice.adapter, directory, dirs_exist_ok=True)
            else:
                # An adapter on quantized weights is merged into what these weights stand for.
                policy, processor = load_trained(cfg, (choice.path, choice.adapter), dequantize=True)
                choice = replace(choice, quantization="none")
                export_policy(policy, processor, directory, choice.max_completion_length)
            write_json(directory / PROMPT_SETTINGS, choice.prompt_settings())
            write_text(directory / "README.md", _card(cfg, run, choice, merge))
    except OSError as error:
        raise ConfigError(f"export={target} cannot be written ({error}); choose another directory") from error
    print(f"export: {target}")


def _card(cfg: TrainConfig, run: RunDirectory, choice: ModelChoice, merge: bool) -> str:
    path = cfg.model.path
    shipped = cfg.model.name == "tiny"
    # The path of a local checkpoint means nothing on another machine.
    local = Path(path).is_absolute() or path.startswith(".") or Path(path).is_dir()
    name = "medr1's tiny base" if shipped else f"{Path(path).name} (a local checkpoint)" if local else path
    image = f"{choice.image_size} x {choice.image_size} pixels"
    if choice.resize == Resize.native:
        image = f"own aspect ratio, {choice.min_pixels} to {choice.max_pixels} pixels"
    quantized = "" if cfg.model.quantization == Quantization.none else f", on {cfg.model.quantization} weights"
    recipe = {
        "algorithm": cfg.algorithm.name,
        "trained on": f"data {cfg.data.name}, modality {cfg.modality.name}, question type {cfg.question_type.name}",
        "reasoning": choice.mode.value,
        "steps x prompts": f"{cfg.trainer.max_steps} x {cfg.trainer.train_batch_size}",
        "tuning": f"LoRA, rank {cfg.model.lora.r}{quantized}" if choice.adapter else "full",
        "learning rate": f"{cfg.algorithm.learning_rate:g}",
        "num_generations": str(getattr(cfg.algorithm, "num_generations", "-")),
        "dtype": choice.dtype,
        "seed": str(cfg.seed),
        "image": image,
        "max_completion_length": str(choice.max_completion_length),
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
        size=choice.size,
        max_completion_length=choice.max_completion_length,
        adapter=not merge,
    )
