"""Tokens a second of the rollout engines beside transformers and TRL: ``python -m benchmarks.generation``.

All sample G completions of the same prompts with one image each, from one checkpoint with random weights, and take
turns in one process. The completions have a forced length. The time goes from encoded prompts to token ids:

  local         the engine rollout=local, with prefill
  vllm          the engine rollout=vllm_colocate: vLLM in a process of its own, with requests and images. Needs the
                Python of its environment, --vllm-python or $MEDR1_VLLM_PYTHON
  transformers  generate with num_return_sequences=G
  TRL           GRPOTrainer without vLLM, which calls generate with G copies of each prompt. Needs the extra [bench]

It prints a row for each G and length: tokens a second, the median over --rounds turns and its quartiles.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from benchmarks.quartiles import spread
from benchmarks.workload import SHAPES, Workload, generate_by_transformers, save_checkpoint
from medr1.generation.engines import Engine
from medr1.generation.engines.local import LocalEngine
from medr1.generation.engines.vllm_colocate import VLLMColocateConfig, VLLMColocateEngine
from medr1.generation.sampling import Sampling
from medr1.models.loading import ModelSpec, load_policy
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.models.tensors import PromptBatch

Generate = Callable[[], Any]


def by_engine(engine: Engine, policy: Policy, prompts: PromptBatch, processor: Processor, work: Workload) -> Generate:
    """Completions by an engine of medr1. The end token is suppressed, so that all are equally long."""
    suppressed = (*processor.suppressed_token_ids(), processor.eos_token_id)
    sampling = Sampling(work.max_completion_length, processor.eos_token_id, suppressed)
    shape = (work.prompts * work.num_generations, work.max_completion_length)
    uniforms = torch.from_numpy(np.random.default_rng(0).random(shape)).to(work.device)

    @torch.no_grad()
    def generate() -> list[list[int]]:
        return engine.generate(policy, prompts, sampling, work.num_generations, uniforms).token_ids()

    return generate


def by_transformers(policy: Policy, prompts: PromptBatch, processor: Processor, work: Workload) -> Generate:
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=work.max_completion_length,
        max_new_tokens=work.max_completion_length,
        num_return_sequences=work.num_generations,
        eos_token_id=processor.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )

    def generate() -> list[list[int]]:
        rows: list[list[int]] = generate_by_transformers(policy, prompts, config).tolist()
        return rows

    return generate


def measure(sides: dict[str, Generate], rounds: int, work: Workload) -> dict[str, list[float]]:
    """Tokens a second of each side, in turns, after one turn for warm-up."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    tokens = work.prompts * work.num_generations * work.max_completion_length
    for turn in range(rounds + 1):
        for name, generate in sides.items():
            start = time.perf_counter()
            rows = generate()  # on the CPU, so that nothing is left to be computed
            seconds = time.perf_counter() - start
            if (found := sum(map(len, rows))) != tokens:
                raise SystemExit(f"{name}: {found} tokens in place of {tokens}")
            if turn:
                rates[name].append(tokens / seconds)
    return rates


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="reference")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--num-generations", type=numbers, default=[4, 8, 16], help="values of G, by default 4,8,16")
    parser.add_argument("--max-completion-length", type=numbers, default=[16, 64, 256], help="by default 16,64,256")
    parser.add_argument("--image-size", type=int, default=392, help="side in pixels")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side, after one for warm-up")
    parser.add_argument("--vllm-python", default=os.environ.get("MEDR1_VLLM_PYTHON"))
    given = parser.parse_args()
    names = ["local", "vllm", "transformers", "TRL"]
    if not given.vllm_python:
        names.remove("vllm")
        print("vllm: not measured, because --vllm-python and $MEDR1_VLLM_PYTHON are not given")
    if find_spec("trl") is None:
        names.remove("TRL")
        print("TRL: not measured, because the extra [bench] is not installed")
    dtype, device = getattr(torch, given.dtype), torch.device(given.device)
    print(
        f"{given.shape}, {given.prompts} prompts with an image of {given.image_size} x {given.image_size} pixels, "
        f"{given.dtype}, {device} with {torch.get_num_threads()} threads, {given.rounds} turns: tokens a second"
    )
    print(f"{'G':>4} {'tokens':>6}" + "".join(f"{name:>24}" for name in names), flush=True)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        checkpoint, scratch = Path(folder, "checkpoint"), Path(folder, "run")
        save_checkpoint(given.shape, checkpoint, dtype)
        policy, processor = load_policy(ModelSpec(str(checkpoint), given.dtype))
        policy.to(device).eval()
        engines: dict[str, Engine] = {"local": LocalEngine()}
        if "vllm" in names:
            config = VLLMColocateConfig("vllm_colocate", python=given.vllm_python)
            stack.enter_context(VLLMColocateEngine.opened(config, scratch))
            engines["vllm"] = VLLMColocateEngine(config)
        for size, length in product(given.num_generations, given.max_completion_length):
            work = Workload(given.shape, given.prompts, size, length, given.image_size, 0.0, dtype, device)
            pairs = zip(work.contents(), work.images(), strict=True)
            prompts = processor.encode([processor.user_prompt(text, [image]) for text, image in pairs]).to(device)
            sides = {name: by_engine(engine, policy, prompts, processor, work) for name, engine in engines.items()}
            sides["transformers"] = by_transformers(policy, prompts, processor, work)
            if "TRL" in names:
                from benchmarks.peer import Peer

                sides["TRL"] = Peer(checkpoint, work, scratch).generate
            rates = measure(sides, given.rounds, work)
            shown = [spread(rates[name], ",.0f") for name in names]
            print(f"{size:>4} {length:>6}" + "".join(f"{text:>24}" for text in shown), flush=True)


if __name__ == "__main__":
    main()
