"""Training at full size on a GPU, compared with the plan: ``python -m benchmarks.gpu_training``.

GRPO of Qwen2-VL-2B and 7B with random weights in bfloat16, on 4 prompts x 4 completions of 256 tokens and images of
392 x 392 pixels, which are those of ../shared/data/omnimedvqa-mini if that exists, else phantoms. Each row is the probe
of ``plan=true``: ten training steps and one batch of evaluation.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from pathlib import Path

import torch

from benchmarks.workload import SHAPES, save_checkpoint
from medr1.config.paths import CONF
from medr1.config.settings import TrainConfig
from medr1.data.dataset import load_dataset
from medr1.workflows.components import checked
from medr1.workflows.compose import train_config
from medr1.workflows.forecast import forecast_memory
from medr1.workflows.library_logs import silence_library_logs
from medr1.workflows.plan import probe

TUNINGS = {
    "2b": ("lora", "full"),
    "7b": ("lora",),
    "tiny": ("lora", "full"),
    "reference": ("lora", "full"),
    "100m": ("lora", "full"),
}
SMALL = {"tiny", "reference", "100m"}
IMAGES = CONF.parent.parent / "shared" / "data" / "omnimedvqa-mini"
WITHOUT = (
    "No GPU here, so nothing is measured. On a GPU, this trains Qwen2-VL-2B with LoRA and in full, and 7B with LoRA, "
    "by GRPO and with random weights in bfloat16. It prints the steps per minute, the share of a step that is rollout, "
    "and the peak of allocated memory beside that of plan=true. --shape tiny runs on a CPU, without measuring memory."
)


def row(checkpoint: Path, shape: str, tuning: str, given: argparse.Namespace) -> str:
    """One row of the table: planned and measured."""
    images = [f"data.root={IMAGES}", "data=omnimedvqa"] if given.image_size == 392 and IMAGES.is_dir() else []
    on_gpu = given.device == "cuda"
    overrides = [
        *("model=hf", f"model.path={checkpoint}", f"model.name={shape}", f"model.tuning={tuning}", *images),
        *(f"data.image_size={given.image_size}", f"trainer.accelerator={'gpu' if on_gpu else 'cpu'}", "tracking=none"),
        *(f"trainer.max_steps={given.steps}", f"model.recipe.max_completion_length={given.max_completion_length}"),
        *("evaluation.limit=1", "evaluation.batch_size=16", *given.override),
    ]
    cfg = checked(train_config(overrides), TrainConfig)
    data = load_dataset(cfg.data, cfg.modality.name, cfg.question_type.name)
    forecast = forecast_memory(cfg, data)
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    done = probe(cfg, data, forecast.run)
    measured, allocated = f"{'-':>7} {'-':>6}", done.allocated_bytes
    if allocated:
        measured = f"{allocated / 2**30:7.2f} {forecast.peak / allocated:6.2f}"
    return (
        f"{shape:>10} {tuning:>6} {60 / done.step:9.2f} {done.rollout_share:8.0%} "
        f"{forecast.peak / 2**30:7.2f} {measured}"
        f"   {data.fingerprint[:8] if images else 'phantoms'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: 2b and 7b")
    parser.add_argument("--image-size", type=int, default=392, help="side in pixels")
    parser.add_argument("--max-completion-length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("override", nargs="*", help="more settings, as for train.py")
    given = parser.parse_args()
    shapes = given.shape or ["2b", "7b"]
    if given.device == "cpu" and not set(shapes) <= SMALL:
        print(WITHOUT)
        return
    silence_library_logs()
    print(torch.cuda.get_device_name() if given.device == "cuda" else "CPU")
    print(f"{'shape':>10} {'tuning':>6} {'steps/min':>9} {'rollout':>8} {'plan':>7} {'GiB':>7} {'ratio':>6}   images")
    for shape in shapes:
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(shape, Path(folder), torch.bfloat16)
            for tuning in TUNINGS[shape]:
                print(row(Path(folder), shape, tuning, given), flush=True)


if __name__ == "__main__":
    main()
