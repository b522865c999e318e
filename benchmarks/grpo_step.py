"""One GRPO step of medr1 beside TRL's: ``python -m benchmarks.grpo_step``.

Both load one checkpoint with random weights and take turns in one process, on the same prompts, pictures, group size,
completion length (forced), precision and objective. Every figure is a median with its quartiles. Before the clock
starts, both compute the loss and the gradient norm of the same sampled completions, and must agree.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.workload import SHAPES, Workload, save_checkpoint
from medr1.domain.reasoning import ReasoningMode
from medr1.generation.logprobs import completion_hidden, score
from medr1.generation.rollout import Sampling
from medr1.models.loading import load_policy, make_reference
from medr1.models.processor import Prompt
from medr1.rl.objective import LossNormalizer, Objective, grpo_loss
from medr1.training.grpo import GRPOModule, GRPOSettings, RolloutBatch

PHASES = ("rollout", "reference", "update", "step")


class Ours:
    """medr1's module, stepped by Lightning through a loader that lets the peer go first."""

    def __init__(self, checkpoint: Path, work: Workload) -> None:
        dtype = str(work.dtype).removeprefix("torch.")
        self.work, self.records, self.encoding = work, work.records(), 0.0
        self.policy, self.processor = load_policy(
            str(checkpoint), dtype=dtype, attn_implementation="sdpa", gradient_checkpointing=False
        )
        self.reference = make_reference(self.policy)
        assert self.reference is not None
        pictures = zip(work.contents(), work.pictures(), strict=True)
        self.prompts = [Prompt(self.processor.chat(content), picture) for content, picture in pictures]
        self.objective = Objective("seq_mean_token_mean", "token", "clip", 0.2, 0.2, 0.0, 5.0, work.beta, "k3")
        sampling = Sampling(
            max_completion_length=work.new_tokens,
            eos_token_id=self.processor.eos_token_id,
            suppress_tokens=(
                *self.processor.suppressed_token_ids(),
                self.processor.eos_token_id,
            ),  # all completions equally long
        )
        self.module = GRPOModule(
            self.policy,
            self.processor,
            GRPOSettings(
                mode=ReasoningMode.THINK_AFTER,
                reward_weights={"accuracy": 1.0, "format": 1.0},
                num_generations=work.group,
                num_iterations=1,
                sampling=sampling,
                objective=self.objective,
                scale_rewards="group",
                optimizer={
                    "learning_rate": 1e-6,
                    "weight_decay": 0.0,
                    "lr_scheduler_type": "constant",
                    "warmup_ratio": 0.0,
                    "steps": 1000,
                    "adam_beta2": 0.999,
                },
                max_grad_norm=1.0,
                seed=0,
            ),
            self.reference,
        )

    def batch(self, step: int) -> RolloutBatch:
        return RolloutBatch(step, list(range(len(self.records))), self.records, self.processor.encode(self.prompts))

    def loss(self, rollout_log: dict[str, Any]) -> tuple[float, float]:
        """Loss and gradient norm on the peer's completions and advantages."""
        self.policy.to(self.work.device)
        self.reference.to(self.work.device)  # type: ignore[union-attr]
        prompts = self.processor.encode(self.prompts).to(self.work.device)
        ids, mask = rollout_log["completion_ids"], rollout_log["completion_mask"].bool()
        if not torch.equal(prompts.ids.repeat_interleave(self.work.group, 0), rollout_log["prompt_ids"]):
            raise SystemExit("the two sides do not have the same prompts")
        with torch.no_grad():
            old = completion_hidden(self.reference, self.reference.prefill(prompts), ids, mask)  # type: ignore[arg-type,union-attr]
            reference = score(self.reference, old, ids, mask).logprobs  # type: ignore[arg-type]
        logprobs = score(
            self.policy, completion_hidden(self.policy, self.policy.prefill(prompts), ids, mask), ids, mask
        ).logprobs
        normalizer = LossNormalizer(ids.shape[0], float(mask.sum()), self.work.new_tokens)
        loss = grpo_loss(
            logprobs, logprobs, reference, rollout_log["advantages"], mask, self.objective, normalizer
        ).loss
        self.policy.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), float("inf"))
        self.policy.zero_grad()
        return loss.item(), norm.item()


class Turns(IterableDataset[RolloutBatch]):
    """Before each batch of ours, the peer takes a step."""

    def __init__(self, ours: Ours, peer: Any, steps: int, results: list[dict[str, float]]) -> None:
        super().__init__()
        self.ours, self.peer, self.steps, self.results = ours, peer, steps, results

    def __iter__(self) -> Iterator[RolloutBatch]:
        for step in range(self.steps):
            if self.peer is not None:
                self.results.append(self.peer.step())
            start = time.perf_counter()
            batch = self.ours.batch(step)
            self.ours.encoding = time.perf_counter() - start
            yield batch


class Clock(pl.Callback):
    """Collects the seconds that the module itself measures, and adds those in which its loader made text and pictures
    into tensors: the peer does that within its rollout."""

    def __init__(self, ours: Ours) -> None:
        self.ours = ours
        self.results: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        seconds = {phase: float(trainer.callback_metrics[f"time/{phase}"]) for phase in PHASES}
        for phase in ("rollout", "step"):
            seconds[phase] += self.ours.encoding
        self.results.append(seconds)


def fit(ours: Ours, peer: Any, steps: int) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Seconds of every step of both, the first left out."""
    theirs: list[dict[str, float]] = []
    clock = Clock(ours)
    trainer = pl.Trainer(
        accelerator="gpu" if ours.work.device.type == "cuda" else "cpu",
        devices=1,
        max_steps=steps + 1,
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(ours.module, DataLoader(Turns(ours, peer, steps + 1, theirs), batch_size=None))
    return clock.results[1:], theirs[1:]


def ideal(ours: Ours, work: Workload) -> tuple[float, dict[str, int]]:
    """The ratio by FLOP count alone, and the prompt tokens that each side encodes in a step.

    A forward pass costs 2 FLOPs a weight and token, a backward pass twice that. TRL runs G copies of prompt and picture
    through rollout, reference and update (5 forward passes' worth); medr1 runs one through rollout and update together
    (3) and one through the reference (1). Completion tokens cost both the same (5).
    """
    prompts = ours.processor.encode(ours.prompts)
    core = ours.policy.core.model
    language = sum(p.numel() for p in core.language_model.layers.parameters())
    vision = sum(p.numel() for p in core.visual.blocks.parameters())
    assert prompts.pixel_values is not None
    tokens = int(prompts.mask.sum())
    prompt = 2 * (language * tokens + vision * prompts.pixel_values.shape[0])
    completion = 2 * language * work.new_tokens * work.prompts * work.group
    ratio = 5 * (work.group * prompt + completion) / (4 * prompt + 5 * completion)
    return ratio, {"medr1": 2 * tokens, "TRL": 3 * work.group * tokens}


def spread(values: list[float]) -> str:
    low, _, high = quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return f"{median(values):8.3f} [{low:.3f}, {high:.3f}]"


def compare(work: Workload, checkpoint: Path, steps: int, profile: bool) -> None:
    from benchmarks.peer import Peer

    with tempfile.TemporaryDirectory() as scratch:
        peer, ours = Peer(checkpoint, work, Path(scratch)), Ours(checkpoint, work)
        rollout_log, their_loss, their_norm = peer.loss()
        loss, norm = ours.loss(rollout_log)
        print(
            f"same completions: loss {loss:.6f} | TRL {their_loss:.6f}; gradient norm {norm:.6f} | TRL {their_norm:.6f}"
        )
        close = abs(loss - their_loss) <= 1e-4 and abs(norm - their_norm) <= 1e-4 * max(1.0, their_norm)
        if work.dtype is torch.float32 and not close:
            raise SystemExit("the two sides do not compute the same thing; a comparison of their speed means nothing")
        mine, theirs = fit(ours, peer, steps)
        if profile:
            _profile(ours)
    ratios = {p: [t[p] / m[p] for m, t in zip(mine, theirs, strict=True)] for p in PHASES}
    for phase in PHASES:
        print(
            f"{phase:>10}  medr1 {spread([m[phase] for m in mine])} s   TRL {spread([t[phase] for t in theirs])} s   "
            f"ratio {spread(ratios[phase])}"
        )
    best, tokens = ideal(ours, work)
    print(
        f"{'ideal':>10}  ratio by FLOP count {best:.2f}; prompt tokens encoded {tokens['medr1']} | TRL {tokens['TRL']}"
    )


def _profile(ours: Ours) -> None:
    """Where a step's time goes, by operator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        fit(ours, None, 1)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))


def peak_memory(side: str, arguments: list[str]) -> int:
    """Bytes at the peak of two steps of one side, above what was there before them, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.grpo_step", *arguments, "--memory-of", side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def memory_of(side: str, work: Workload, checkpoint: Path) -> None:
    """Prints the peak of one side; runs in a process of its own, because a peak is never taken back."""
    with tempfile.TemporaryDirectory() as scratch:
        if side == "TRL":
            from benchmarks.peer import Peer

            peer = Peer(checkpoint, work, Path(scratch))
            before = _memory(work.device)
            for _ in range(2):
                peer.step()
        else:
            ours = Ours(checkpoint, work)
            before = _memory(work.device)
            fit(ours, None, 1)
    print(json.dumps({"peak": _memory(work.device) - before}))


def _memory(device: torch.device) -> int:
    """Peak bytes of this process so far; ``ru_maxrss`` would begin at that of the parent on Linux, VmHWM does not."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="reference")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--image", type=int, default=392, help="pixels of a side")
    parser.add_argument("--beta", type=float, default=0.04)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=5, help="steps of each side, after one that is not counted")
    parser.add_argument("--sweep-g", help="group sizes, as 2,4,8,16,32")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--memory-of", choices=["medr1", "TRL"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    work = Workload(
        given.shape,
        given.prompts,
        given.group,
        given.new_tokens,
        given.image,
        given.beta,
        getattr(torch, given.dtype),
        torch.device(given.device),
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder)
        save_checkpoint(given.shape, checkpoint)
        if given.memory_of:
            memory_of(given.memory_of, work, checkpoint)
            return
        sizes = [int(g) for g in given.sweep_g.split(",")] if given.sweep_g else [given.group]
        for size in sizes:
            print(
                f"== {given.shape}, {given.prompts} prompts x G={size}, {given.new_tokens} new tokens, {given.device}"
            )
            compare(replace(work, group=size), checkpoint, given.steps, given.profile)
            arguments = [a for a in sys.argv[1:] if a != "--profile"]
            if "--sweep-g" in arguments:
                place = arguments.index("--sweep-g")
                arguments[place : place + 2] = ["--group", str(size)]
            mine, theirs = (peak_memory(side, arguments) / 2**20 for side in ("medr1", "TRL"))
            print(f"{'memory':>10}  peak above the loaded model: medr1 {mine:.0f} MiB, TRL {theirs:.0f} MiB")


if __name__ == "__main__":
    main()
