"""What a GPU does with medr1, as one Markdown page: ``python -m benchmarks.gpu_report``.

At the shape of Qwen2-VL-2B, with random weights in bfloat16, 4 prompts x 4 completions of 256 tokens and images of
392 x 392 pixels, which are those of ../shared/data/omnimedvqa-mini if that exists, else phantoms:

    training   the probe of plan=true for LoRA and full tuning: steps a minute, the share of a step that is rollout, and
               the peak of allocated memory beside that of the plan
    TRL        benchmarks.grpo_step with 2 of the prompts, if TRL is installed (the extra [bench])
    decoding   tokens a second of the local engine, with and without CUDA graphs, beside what the memory's bandwidth
               allows
    scores     log-probabilities of sampling beside those of training
    processes  a training of the tiny model by DDP: NCCL on GPUs

Without a GPU the page says "not measured". --shape tiny runs all of it on a CPU, in minutes, without figures of memory.
vLLM beside the local engine: benchmarks.evaluation.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch

from benchmarks.grpo_step import Ours
from benchmarks.workload import SHAPES, Workload, checkpoint_of
from medr1.config.paths import CONF
from medr1.config.settings import TrainConfig
from medr1.data.dataset import load_dataset
from medr1.generation.logprobs import completion_hidden, score
from medr1.generation.rollout import rollout
from medr1.workflows.components import checked
from medr1.workflows.compose import train_config
from medr1.workflows.forecast import forecast_memory
from medr1.workflows.library_logs import silence_library_logs
from medr1.workflows.plan import probe

ROOT = CONF.parent
IMAGES = ROOT.parent / "shared" / "data" / "omnimedvqa-mini"
LORA_ONLY = {"7b"}
SMALL = {"tiny", "reference", "100m"}
REPEATS = 2
TRL_PROMPTS = 2  # both sides have their weights, optimizer and activations on the GPU at the same time


def training(checkpoint: Path, given: argparse.Namespace) -> Iterator[str]:
    """A row for each tuning: what the plan says, and what a training takes."""
    yield "| tuning | steps a minute | rollout | plan, GiB | measured, GiB | plan / measured | images |"
    yield "|---|---|---|---|---|---|---|"
    images = [f"data.root={IMAGES}", "data=omnimedvqa"] if given.image_size == 392 and IMAGES.is_dir() else []
    for tuning in ("lora",) if given.shape in LORA_ONLY else ("lora", "full"):
        overrides = [
            *("model=hf", f"model.path={checkpoint}", f"model.name={given.shape}", f"model.tuning={tuning}", *images),
            *(f"model.dtype={given.dtype}", f"data.image_size={given.image_size}", "tracking=none"),
            *(f"trainer.accelerator={'gpu' if given.device == 'cuda' else 'cpu'}", f"trainer.max_steps={given.steps}"),
            *(f"model.recipe.max_completion_length={given.max_completion_length}", "evaluation.limit=1"),
            *("evaluation.batch_size=16", *given.override),
        ]
        cfg = checked(train_config(overrides), TrainConfig)
        data = load_dataset(cfg.data, cfg.modality.name, cfg.question_type.name)
        forecast = forecast_memory(cfg, data)
        gc.collect()
        if given.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        done = probe(cfg, data, forecast.run)
        measured, ratio = "not measured", "-"
        if done.allocated_bytes:
            measured, ratio = f"{done.allocated_bytes / 2**30:.2f}", f"{forecast.peak / done.allocated_bytes:.2f}"
        yield (
            f"| {tuning} | {60 / done.step:.2f} | {done.rollout_share:.0%} | {forecast.peak / 2**30:.2f} | {measured} "
            f"| {ratio} | {data.fingerprint[:8] if images else 'phantoms'} |"
        )


def beside_trl(checkpoint: Path, given: argparse.Namespace) -> Iterator[str]:
    """The output of benchmarks.grpo_step, which runs in a process of its own, so that its memory is free afterwards."""
    if importlib.util.find_spec("trl") is None:
        yield 'Not measured: TRL is not installed (`pip install "medr1[bench]"`).'
        return
    sizes = {
        "shape": given.shape,
        "image-size": given.image_size,
        "num-generations": 4,
        "max-completion-length": given.max_completion_length,
        "prompts": TRL_PROMPTS,
        "steps": REPEATS,
        "dtype": given.dtype,
        "device": given.device,
        "checkpoint": checkpoint,
    }
    words = [f"--{name}={value}" for name, value in sizes.items()]
    yield f"```text\n{_run('-m', 'benchmarks.grpo_step', *words)}```"


def generation(checkpoint: Path, work: Workload) -> Iterator[str]:
    ours = Ours(checkpoint, work)
    ours.policy.to(work.device)
    yield from decoding(ours)
    yield ""
    yield from scores(ours)


@torch.no_grad()
def decoding(ours: Ours) -> Iterator[str]:
    """Tokens a second for several group sizes. A decoding step reads all weights once, and the keys and values."""
    work, policy = ours.work, ours.policy
    core = policy.core
    weights = [*core.model.language_model.layers.parameters(), core.lm_head.weight]
    read = sum(p.numel() * p.element_size() for p in weights)
    bandwidth = _bandwidth(work.device)
    yield f"Bandwidth, measured by copying: {bandwidth / 1e9:,.0f} GB/s. Weights that a decoding step reads: "
    yield f"{read / 1e9:.2f} GB.\n"
    yield "| prompts x completions | kernel by kernel | CUDA graphs | bound by bandwidth | best / bound |"
    yield "|---|---|---|---|---|"
    ways = (False, True) if work.device.type == "cuda" else (False,)
    prefix = policy.prefill(ours.processor.encode(ours.prompts).to(work.device))
    keys = sum(keys.numel() * keys.element_size() for keys, _ in prefix.layers)
    for size in (4, 8, 16):
        rows = work.prompts * size
        uniforms = torch.rand(rows, work.max_completion_length, dtype=torch.float64, device=work.device)
        rates, sampling = [], ours.module.sampling
        for graphs in ways:
            seconds = []
            for _ in range(1 + REPEATS):
                start = _now(work.device)
                rollout(policy, prefix, sampling, size, uniforms, cuda_graphs=graphs)
                seconds.append(_now(work.device) - start)
            rates.append(rows * work.max_completion_length / median(seconds[1:]))
        own = keys / prefix.mask.numel() * rows * work.max_completion_length / 2  # keys of completions of half length
        bound = rows * bandwidth / (read + 2 * keys + 2 * own)
        shown = " | ".join([f"{rate:,.0f}" for rate in rates] + ["not measured"] * (2 - len(rates)))
        yield f"| {work.prompts} x {size} | {shown} | {bound:,.0f} | {max(rates) / bound:.0%} |"


@torch.no_grad()
def scores(ours: Ours) -> Iterator[str]:
    """How far the log-probabilities of sampling are from those of the update, which on-policy should be the same."""
    work, sampling = ours.work, ours.module.sampling
    prefix = ours.policy.prefill(ours.processor.encode(ours.prompts).to(work.device))
    rows = work.prompts * work.num_generations
    uniforms = torch.rand(rows, work.max_completion_length, dtype=torch.float64, device=work.device)
    on_gpu = work.device.type == "cuda"
    completions = rollout(ours.policy, prefix, sampling, work.num_generations, uniforms, cuda_graphs=on_gpu)
    suppress_tokens = torch.tensor(sampling.suppress_tokens, device=work.device)
    hidden = completion_hidden(ours.policy, prefix, completions.ids, completions.mask)
    found = score(ours.policy, hidden, completions.ids, completions.mask, suppress_tokens=suppress_tokens).logprobs
    differences = (found - completions.logprobs).abs()[completions.mask]
    dtype = str(work.dtype).removeprefix("torch.")
    yield (
        f"Log-probabilities of sampling and of training, {dtype}, {len(differences):,} tokens: mean difference "
        f"{differences.mean():.2e} nats, largest {differences.max():.2e}, equal in "
        f"{(differences == 0).float().mean():.1%}."
    )


def processes(given: argparse.Namespace) -> Iterator[str]:
    """A training of the tiny model by DDP, with two processes where there are two GPUs."""
    count = max(1, min(2, torch.cuda.device_count())) if given.device == "cuda" else 2
    accelerator = "gpu" if given.device == "cuda" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        words = ["debug=quick", "trainer=ddp", f"trainer.devices={count}", f"trainer.accelerator={accelerator}"]
        words += ["trainer.max_steps=2", "tracking=none", "evaluation.limit=1", f"output_dir={folder}"]
        words += ["data.train_images_per_modality=4", "data.test_images_per_modality=1"]
        _run(str(ROOT / "train.py"), *words)
        (run,) = Path(folder).glob("*/metrics.jsonl")
        steps = len(run.read_text(encoding="utf-8").splitlines())  # a line for each
    backend = "NCCL" if given.device == "cuda" else "gloo"
    yield f"{count} process(es) by {backend}: {steps} steps trained and evaluated."


def _bandwidth(device: torch.device) -> float:
    """Bytes a second of the memory: a copy reads and writes each byte."""
    source = torch.empty(2**28, dtype=torch.float32 if device.type == "cuda" else torch.uint8, device=device)
    target, seconds = torch.empty_like(source), []
    for _ in range(10):
        start = _now(device)
        target.copy_(source)
        seconds.append(_now(device) - start)
    return 2 * source.numel() * source.element_size() / median(seconds)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _run(*words: str) -> str:
    """The output of a Python command."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def page(given: argparse.Namespace) -> Iterator[str]:
    """The lines of the page."""
    on_gpu = given.device == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    yield f"# medr1 on {name}\n"
    yield f"torch {torch.__version__}; shape {given.shape}, random weights in {given.dtype}, 4 prompts, images of "
    yield f"{given.image_size} pixels, {given.max_completion_length} new tokens.\n"
    measured = on_gpu or given.shape in SMALL
    if not on_gpu:
        yield "No GPU here. What follows is not measured on a GPU.\n"
    dtype, device = getattr(torch, given.dtype), torch.device(given.device)
    work = Workload(given.shape, 4, 4, given.max_completion_length, given.image_size, 0.0, dtype, device)
    sections: dict[str, Callable[[Path], Iterator[str]]] = {
        "Training, and its plan": lambda checkpoint: training(checkpoint, given),
        "Decoding": lambda checkpoint: generation(checkpoint, work),
        "A GRPO step beside TRL's": lambda checkpoint: beside_trl(checkpoint, given),
        "Processes": lambda _: processes(given),
    }
    if not measured:
        for title in sections:
            yield f"## {title}\n\nNot measured.\n"
        return
    with checkpoint_of(given.shape, given.checkpoint, dtype, device) as checkpoint:
        for title, lines in sections.items():
            yield f"## {title}\n"
            gc.collect()
            if on_gpu:
                torch.cuda.empty_cache()  # for the processes that a section starts
            yield from lines(checkpoint)
            yield ""


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="2b")
    parser.add_argument("--image-size", type=int, default=392, help="side in pixels")
    parser.add_argument("--max-completion-length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10, help="of the probe, at most 10")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if on_gpu else "cpu")
    parser.add_argument("--checkpoint", type=Path, help="directory of the weights; it is made if there is none")
    parser.add_argument("--output", type=Path, default=Path("gpu-report.md"), help="the page; replaced if it exists")
    parser.add_argument("override", nargs="*", help="more settings, as for train.py")
    given = parser.parse_args()
    silence_library_logs()
    with given.output.open("w", encoding="utf-8") as file:
        for line in page(given):
            print(line, flush=True)
            print(line, file=file, flush=True)
    print(f"\nwritten: {given.output}")


if __name__ == "__main__":
    main()
