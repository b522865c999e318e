"""``evaluate.py run=RUN export=DIR``: the model of a run as a plain checkpoint with a model card."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from medr1.atomic_write import atomic_directory, read_json, write_json, write_text
from medr1.config.enums import CheckpointChoice, Quantization, Resize
from medr1.config.override_text import shell_word
from medr1.config.settings import TrainConfig
from medr1.errors import ConfigError
from medr1.models.export import export_policy
from medr1.reporting.model_card import model_card
from medr1.runs.run_directory import ADAPTER_CONFIG, RunDirectory, run_at
from medr1.training.algorithms import ALGORITHMS
from medr1.workflows.local_model import load_trained
from medr1.workflows.model_choice import PROMPT_SETTINGS, ModelChoice

_TINY_BASE = ("medr1", "models", "tiny_base")


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
                if base is not None:
                    adapter_config = read_json(directory / ADAPTER_CONFIG)
                    write_json(directory / ADAPTER_CONFIG, {**adapter_config, "base_model_name_or_path": choice.path})
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


@dataclass(frozen=True, slots=True)
class _Base:
    """What a training began with. ``id``: on the Hugging Face hub; ``license``: None where it is not known."""

    description: str
    id: str | None = None
    license: str | None = None

    @classmethod
    def of(cls, cfg: TrainConfig) -> _Base:
        path = cfg.model.path
        if not ALGORITHMS[cfg.algorithm.kind].needs_base:
            return cls("new weights")
        if Path(path).parts[-len(_TINY_BASE) :] == _TINY_BASE:
            return cls("medr1's tiny base", license="apache-2.0")
        if (before := run_at(path)) is not None:
            its_base = cls.of(before.stored_config(TrainConfig))
            return cls(f"the model of the run {before.path.name}, which was trained from {its_base.description}")
        # The path of a local checkpoint means nothing on another machine.
        if Path(path).is_absolute() or path.startswith(".") or Path(path).is_dir():
            return cls(f"{Path(path).name} (a local checkpoint)")
        return cls(path, id=path)


def _steps(cfg: TrainConfig, run: RunDirectory, weights: Path) -> str:
    """The steps after which a run had these weights, and all of its steps."""
    other = run.other_model(CheckpointChoice.best)
    is_best = cfg.trainer.load_best_model_at_end if weights == run.model else weights == other
    return f"{run.best_step()} of {cfg.trainer.max_steps}" if is_best else str(cfg.trainer.max_steps)


def _results(run: RunDirectory) -> str:
    """The results without figures, which are not part of an export."""
    lines = run.results.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("!["))


def _card(cfg: TrainConfig, run: RunDirectory, choice: ModelChoice, merge: bool) -> str:
    base, weights = _Base.of(cfg), choice.adapter or Path(choice.path)
    image = f"{choice.image_size} x {choice.image_size} pixels"
    if choice.resize == Resize.native:
        image = f"own aspect ratio, {choice.min_pixels} to {choice.max_pixels} pixels"
    quantized = "" if cfg.model.quantization == Quantization.none else f", on {cfg.model.quantization} weights"
    recipe = {
        "algorithm": cfg.algorithm.name,
        "trained on": f"data {cfg.data.name}, modality {cfg.modality.name}, question type {cfg.question_type.name}",
        "reasoning": choice.mode.value,
        "steps x prompts": f"{_steps(cfg, run, weights)} x {cfg.trainer.train_batch_size}",
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
        base=base.description,
        base_id=base.id,
        base_license=base.license,
        recipe=recipe,
        results=_results(run) if weights == run.model else "",
        mode=choice.mode,
        size=choice.size,
        max_completion_length=choice.max_completion_length,
        adapter=not merge,
    )
