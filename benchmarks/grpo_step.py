"""One GRPO step of medr1 beside TRL's: ``python -m benchmarks.grpo_step``.

Both load one checkpoint with random weights and take turns in one process, with the same prompts, images, group size,
(forced) completion length, dtype and objective. Every figure is a median with its quartiles. Before the timing, both
compute the loss and the gradient norm of the same sampled completions, which must agree.
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
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.quartiles import spread
from benchmarks.workload import SHAPES, Workload, checkpoint_of
from medr1.config.enums import LossAggMode, ScaleRewards
from medr1.config.settings import ObjectiveConfig, RewardConfig, SamplingConfig
from medr1.domain.reasoning import ReasoningMode
from medr1.generation.engines.local import LocalEngine
from medr1.generation.logprobs import completion_hidden, score
from medr1.generation.sampling import Sampling
from medr1.models.adapters import make_reference
from medr1.models.loading import ModelSpec, load_policy
from medr1.models.policy import Policy
from medr1.models.processor import Prompt
from medr1.rewards import compute_rewards
from medr1.rl.objective import LossNormalizer, grpo_loss
from medr1.training.algorithms.grpo import GRPOConfig
from medr1.training.batches import RolloutBatch
from medr1.training.grpo import GRPOModule

PHASES = ("rollout", "reference", "update", "step")


class Ours:
    """medr1's module, trained by Lightning with a loader that runs a step of TRL before each of ours."""

    def __init__(self, checkpoint: Path, work: Workload) -> None:
        dtype = str(work.dtype).removeprefix("torch.")
        self.work, self.records, self.encoding = work, work.records(), 0.0
        self.policy, self.processor = load_policy(ModelSpec(str(checkpoint), dtype))
        self.reference = make_reference(self.policy)
        images = zip(work.contents(), work.images(), strict=True)
        self.prompts = [Prompt(self.processor.chat(content), (image,)) for content, image in images]
        self.objective = ObjectiveConfig(
            loss_agg_mode=LossAggMode.seq_mean_token_mean,
            scale_rewards=ScaleRewards.group,
            epsilon=0.2,
            epsilon_high=0.2,
            beta=work.beta,
        )
        sampling = Sampling.from_config(
            SamplingConfig(max_completion_length=work.max_completion_length), self.processor
        )
        # Without the end token all completions are equally long.
        suppress_tokens = (*sampling.suppress_tokens, sampling.eos_token_id)
        reward = RewardConfig("med_r1", {"accuracy": {"weight": 1.0}, "format": {"weight": 1.0}})
        self.module = GRPOModule(
            self.policy,
            self.reference,
            GRPOConfig(learning_rate=1e-6, num_generations=work.num_generations, objective=self.objective),
            sampling=replace(sampling, suppress_tokens=suppress_tokens),
            engine=LocalEngine(),
            decode=self.processor.decode,
            reward=partial(compute_rewards, reward, reasoning=ReasoningMode.THINK_AFTER),
            reward_weights={"accuracy": 1.0, "format": 1.0},
            domains=sorted({str(record.modality) for record in self.records}),
            total_steps=1000,
        )

    def batch(self, step: int) -> RolloutBatch:
        return RolloutBatch(step, list(range(len(self.records))), self.records, self.processor.encode(self.prompts))

    def loss(self, peer_batch: dict[str, Any]) -> tuple[float, float]:
        """Loss and gradient norm on TRL's completions and advantages."""
        assert self.reference is not None
        self.policy.to(self.work.device)
        self.reference.to(self.work.device)
        prompts = self.processor.encode(self.prompts).to(self.work.device)
        ids, mask = peer_batch["completion_ids"], peer_batch["completion_mask"].bool()
        if not torch.equal(prompts.ids.repeat_interleave(self.work.num_generations, 0), peer_batch["prompt_ids"]):
            raise SystemExit("the two sides do not have the same prompts")

        def logprobs(policy: Policy) -> Tensor:
            hidden = completion_hidden(policy, policy.prefill(prompts), ids, mask)
            return score(policy, hidden, ids, mask).logprobs

        with torch.no_grad():
            reference = logprobs(self.reference)
        own = logprobs(self.policy)
        normalizer = LossNormalizer(ids.shape[0], float(mask.sum()), self.work.max_completion_length)
        loss = grpo_loss(own, own, reference, peer_batch["advantages"], mask, self.objective, normalizer).loss
        self.policy.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), float("inf"))
        self.policy.zero_grad()
        return loss.item(), norm.item()


class Turns(IterableDataset[RolloutBatch]):
    """The batches of medr1. Before each, TRL runs a step."""

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
    """Collects the times that the module measures, and adds that of encoding prompts, which TRL does in its rollout."""

    def __init__(self, ours: Ours) -> None:
        self.ours = ours
        self.results: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        seconds = {phase: float(trainer.callback_metrics[f"{phase}_time"]) for phase in PHASES}
        for phase in ("rollout", "step"):
            seconds[phase] += self.ours.encoding
        self.results.append(seconds)


def fit(ours: Ours, peer: Any, steps: int) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """The times of every step of both, without the first."""
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
    """The speed-up by FLOP count alone, and the prompt tokens that each side encodes in a step.

    A forward pass takes 2 FLOPs per weight and token, a backward pass twice that. TRL runs G copies of each prompt and
    image through rollout, reference and update (as much as 5 forward passes). medr1 runs one through rollout and update
    together (3) and one through the reference (1). Completion tokens take as much in both (5).
    """
    prompts = ours.processor.encode(ours.prompts)
    core = ours.policy.core.model
    language = sum(p.numel() for p in core.language_model.layers.parameters())
    vision = sum(p.numel() for p in core.visual.blocks.parameters())
    assert prompts.pixel_values is not None
    tokens = int(prompts.mask.sum())
    prompt = 2 * (language * tokens + vision * prompts.pixel_values.shape[0])
    completion = 2 * language * work.max_completion_length * work.prompts * work.num_generations
    ratio = 5 * (work.num_generations * prompt + completion) / (4 * prompt + 5 * completion)
    return ratio, {"medr1": 2 * tokens, "TRL": 3 * work.num_generations * tokens}


def compare(work: Workload, checkpoint: Path, steps: int, profile: bool) -> None:
    from benchmarks.peer import Peer

    with tempfile.TemporaryDirectory() as scratch:
        peer, ours = Peer(checkpoint, work, Path(scratch)), Ours(checkpoint, work)
        peer_batch, their_loss, their_norm = peer.loss()
        loss, norm = ours.loss(peer_batch)
        print(
            f"same completions: loss {loss:.6f} | TRL {their_loss:.6f}; gradient norm {norm:.6f} | TRL {their_norm:.6f}"
        )
        close = abs(loss - their_loss) <= 1e-4 and abs(norm - their_norm) <= 1e-4 * max(1.0, their_norm)
        if work.dtype is torch.float32 and not close:
            raise SystemExit("the two sides disagree, so that their times cannot be compared")
        mine, theirs = fit(ours, peer, steps)
        if profile:
            _profile(ours)
    ratios = {p: [t[p] / m[p] for m, t in zip(mine, theirs, strict=True)] for p in PHASES}
    for phase in PHASES:
        times = ([step[phase] for step in side] for side in (mine, theirs))
        ours_s, peer_s, ratio = (f"{spread(values, '.3f'):>23}" for values in (*times, ratios[phase]))
        print(f"{phase:>10}  medr1 {ours_s} s   TRL {peer_s} s   ratio {ratio}")
    best, tokens = ideal(ours, work)
    print(
        f"{'ideal':>10}  ratio by FLOP count {best:.2f}; prompt tokens encoded {tokens['medr1']} | TRL {tokens['TRL']}"
    )


def _profile(ours: Ours) -> None:
    """Prints the time of a step by operator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        fit(ours, None, 1)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))


def peak_memory(side: str, arguments: list[str], checkpoint: Path) -> int:
    """Peak bytes of two steps of one side above its bytes before them, measured in a new process."""
    own = ["--checkpoint", str(checkpoint), "--memory-of", side]
    command = [sys.executable, "-m", "benchmarks.grpo_step", *arguments, *own]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def memory_of(side: str, work: Workload, checkpoint: Path) -> None:
    """Prints the peak of one side. Runs in a new process, because the peak of a process never decreases."""
    with tempfile.TemporaryDirectory() as scratch:
        if side == "TRL":
            from benchmarks.peer import Peer

            peer = Peer(checkpoint, work, Path(scratch))
            before = _memory(work.device)
            for _ in range(2):
                peer.step()
        else:
            ours = Ours(checkpoint, work)
            ours.module.to(work.device)  # where TRL has loaded its model already
            before = _memory(work.device)
            fit(ours, None, 1)
    print(json.dumps({"peak": _memory(work.device) - before}))


def _memory(device: torch.device) -> int:
    """Peak bytes of this process. On Linux ``ru_maxrss`` includes that of the parent process, VmHWM does not."""
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
    parser.add_argument("--num-generations", type=int, default=8)
    parser.add_argument("--max-completion-length", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=392, help="side in pixels")
    parser.add_argument("--beta", type=float, default=0.04)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=5, help="steps of each side, after one for warm-up")
    parser.add_argument("--sweep-g", help="several values of num_generations, such as 2,4,8,16,32")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--checkpoint", type=Path, help="directory of the weights; it is made if there is none")
    parser.add_argument("--memory-of", choices=["medr1", "TRL"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    work = Workload(
        given.shape,
        given.prompts,
        given.num_generations,
        given.max_completion_length,
        given.image_size,
        given.beta,
        getattr(torch, given.dtype),
        torch.device(given.device),
    )
    with checkpoint_of(given.shape, given.checkpoint, device=given.device) as checkpoint:
        if given.memory_of:
            memory_of(given.memory_of, work, checkpoint)
            return
        sizes = [int(g) for g in given.sweep_g.split(",")] if given.sweep_g else [given.num_generations]
        for size in sizes:
            length = given.max_completion_length
            print(f"== {given.shape}, {given.prompts} prompts x G={size}, {length} tokens, {given.device}")
            compare(replace(work, num_generations=size), checkpoint, given.steps, given.profile)
            arguments = [a for a in sys.argv[1:] if a != "--profile"]
            if "--sweep-g" in arguments:
                index = arguments.index("--sweep-g")
                arguments[index : index + 2] = ["--num-generations", str(size)]
            mine, theirs = (peak_memory(side, arguments, checkpoint) / 2**20 for side in ("medr1", "TRL"))
            print(f"{'memory':>10}  peak above the loaded model: medr1 {mine:.0f} MiB, TRL {theirs:.0f} MiB")


if __name__ == "__main__":
    main()
