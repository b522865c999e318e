"""A step and an evaluation, rehearsed: the real model, rollout, scoring, backward and optimizer on the meta device.

What is written here is the order in which ``medr1.training`` and ``medr1.evaluation`` do it, and what they hold
meanwhile; the tensors are theirs. The worst case is taken: every prompt is as long as the longest, and no completion
ends early.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from medr1.generation.logprobs import Scores, completion_hidden, score
from medr1.generation.sampling import Sampling, sample_inverse_cdf, warped_log_probs
from medr1.models.adapters import make_reference, set_trainable
from medr1.models.loading import ModelSpec, load_on_meta
from medr1.models.policy import Policy
from medr1.models.tensors import Completions, Prefix, PromptBatch
from medr1.planning.memory_ledger import CACHES, GRADIENTS, OPTIMIZER, REFERENCE, WEIGHTS
from medr1.planning.meta_tracer import MetaTracer, fused_attention
from medr1.training.optimization import build_optimizer, micro_batches

Peaks = dict[str, Counter[str]]  # phase -> part -> bytes
EVALUATION = "evaluation"
_ENDED = 0.8  # of the rows go on when the first ones leave


def build_policy(spec: ModelSpec) -> Policy:
    """The policy as it is trained, without its weights."""
    policy = load_on_meta(spec)
    set_trainable(policy, freeze_vision_tower=spec.freeze_vision_tower, lora=spec.lora)
    return policy


@dataclass(frozen=True, slots=True)
class Lengths:
    """The longest prompt and completion in tokens, and the sides of a picture in patches."""

    prompt: int
    completion: int
    grid: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Job:
    """What one device does in a step and in an evaluation.

    ``num_generations`` 0: supervised. ``updates`` 0: nothing is trained. ``on_gpu``: the optimizer takes all weights at
    once, as torch has it there, and not one after the other. ``sharded``: the weights are in shards over several
    devices, and no encoding is kept for the loss.
    """

    prompts: int
    num_generations: int
    lengths: Lengths
    max_tokens_per_device: int
    updates: int
    with_reference: bool
    sampling: Sampling | None
    eval_batch_size: int
    eval_lengths: Lengths
    on_gpu: bool
    sharded: bool = False

    @property
    def row(self) -> int:
        """Tokens of a prompt with all its completions, as ``trainer.max_tokens_per_device`` counts them."""
        return self.lengths.prompt + max(1, self.num_generations) * self.lengths.completion

    @property
    def at_once(self) -> int:
        """Prompts that go through together."""
        return len(micro_batches([self.row] * self.prompts, self.max_tokens_per_device)[0])


def rehearse_step(spec: ModelSpec, job: Job) -> Peaks:
    """Bytes of each part at the peak of each phase of a step, on one device; nothing where nothing is trained.

    Raises:
        CheckpointError: no configuration of the model, or nothing to train.
    """
    if not job.updates:
        return {}
    policy = build_policy(spec)
    stage = MetaTracer(int(policy.core.config.get_text_config().vocab_size))
    with fused_attention(), stage:
        _Step(policy, job, stage).run()
    stage.peaks.pop("start", None)
    return stage.peaks


def rehearse_answers(spec: ModelSpec, job: Job) -> Peaks:
    """Greedy answers. Whatever is held grows with the rows, each by the same, so two small batches tell of any."""
    few, more = (_answers(spec.path, spec.dtype, spec.attn_implementation, job.eval_lengths, rows) for rows in (2, 3))
    each = {part: more[part] - few[part] for part in {*few, *more}}
    return {EVALUATION: Counter({part: few[part] + (job.eval_batch_size - 2) * each[part] for part in each})}


@lru_cache(maxsize=64)
def _answers(path: str, dtype: str, attn_implementation: str, lengths: Lengths, rows: int) -> Counter[str]:
    policy = load_on_meta(ModelSpec(path, dtype, attn_implementation))
    sampling = Sampling(lengths.completion, 0, (1,), temperature=0.0)
    stage = MetaTracer(int(policy.core.config.get_text_config().vocab_size))
    stage.name(WEIGHTS, _held(policy))
    with fused_attention(), stage, stage.phase(EVALUATION):
        prompts = _prompts(policy, rows, lengths)
        with torch.no_grad():
            prefix = policy.prefill(prompts)
        _decode(policy, prefix, sampling, 1, stage)
    return stage.peaks[EVALUATION]


def _held(policy: Policy) -> list[Tensor]:
    return [*policy.parameters(), *policy.buffers()]


def _prompts(policy: Policy, rows: int, lengths: Lengths) -> PromptBatch:
    """Prompts of the given lengths, each with its own picture; all but the first are padded by one token, because
    padding needs a mask."""
    height, width = lengths.grid
    vision = policy.core.config.vision_config
    image = height * width // vision.spatial_merge_size**2
    ids = torch.zeros(rows, lengths.prompt, dtype=torch.long)
    ids[:, 1 : 1 + image] = policy.core.config.image_token_id
    mask = torch.ones(rows, lengths.prompt, dtype=torch.bool)
    mask[1:, 0] = False
    positions = torch.arange(lengths.prompt).expand(3, rows, -1).contiguous()
    patch = getattr(vision, "in_channels", 3) * vision.temporal_patch_size * vision.patch_size**2
    pixel_values = torch.empty(rows * height * width, patch, device="meta")
    image_grid_thw = torch.tensor([[1, height, width]] * rows)
    return PromptBatch(
        ids, mask, positions, positions.amax(dim=(0, 2)) + 1, pixel_values, image_grid_thw, tuple(range(rows))
    )


@torch.no_grad()
def _decode(policy: Policy, prefix: Prefix, sampling: Sampling, num_generations: int, stage: MetaTracer) -> Completions:
    """The last steps of ``medr1.generation.rollout.rollout``, in which the caches are full, and rows that leave."""
    stage.name(CACHES, [tensor for layer in prefix.layers for tensor in layer])
    hidden = prefix.hidden.repeat_interleave(num_generations, 0)
    rows, width = hidden.shape[0], sampling.max_completion_length
    decoder = policy.decoder(prefix, num_generations, width)
    stage.name(CACHES, decoder.buffers)
    steps = min(2, width - 1)
    decoder.skip(width - 1 - steps)
    ids = torch.zeros(rows, width, dtype=torch.long)
    for step in range(steps + 1):
        log_p = warped_log_probs(policy.logits(hidden), sampling, torch.tensor(sampling.suppress_tokens))
        token = log_p.argmax(-1) if sampling.temperature == 0 else sample_inverse_cdf(log_p, torch.zeros(rows))
        log_p.gather(-1, token.unsqueeze(-1))
        if step == 0 and rows > 1:
            decoder.select(torch.arange(max(1, int(_ENDED * rows))))
            stage.name(CACHES, decoder.buffers)
            decoder = policy.decoder(prefix, num_generations, width)  # and as if none had left
            stage.name(CACHES, decoder.buffers)
            decoder.skip(width - 1 - steps)
        if step < steps:
            hidden = decoder.step(ids[:, step])
    mask = torch.ones(rows, width, dtype=torch.bool)
    return Completions(ids, mask, torch.zeros(rows, width), torch.ones(rows, dtype=torch.bool))


@dataclass(frozen=True, slots=True)
class _Part:
    prompts: PromptBatch
    completions: Completions
    prefix: Prefix | None


class _Step:
    """One step of training, after an earlier one: its gradients and the optimizer's state are there."""

    def __init__(self, policy: Policy, job: Job, stage: MetaTracer) -> None:
        self.policy, self.job, self.stage = policy, job, stage
        self.reference = make_reference(policy) if job.with_reference else None
        stage.name(WEIGHTS, _held(policy))
        if self.reference is not None:
            stage.name(REFERENCE, _held(self.reference))

    def run(self) -> None:
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        optimizer, _ = build_optimizer(
            trained,
            learning_rate=1.0,
            weight_decay=0.1,
            lr_scheduler_type="constant",
            warmup_ratio=0.0,
            steps=1,
            adam_beta2=0.9,
        )
        optimizer.param_groups[0]["foreach"] = self.job.on_gpu
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
            parameter.register_post_accumulate_grad_hook(self._name_gradient)  # type: ignore[no-untyped-call]
            self._name_gradient(parameter)
        optimizer.step()
        self.stage.name(OPTIMIZER, [t for state in optimizer.state.values() for t in state.values()])
        self.stage.peaks.clear()
        batch = _prompts(self.policy, self.job.prompts, self.job.lengths)
        parts = self._rollouts(batch) if self.job.num_generations else self._supervised(batch)
        if self.job.with_reference:
            with self.stage.phase("reference"):
                for part in parts[:1]:
                    self._score_reference(part)
        for update in range(min(2, self.job.updates)):
            with self.stage.phase("update"):
                optimizer.zero_grad()
                for loss in self._losses(parts, update):
                    loss.backward()  # type: ignore[no-untyped-call]
                    del loss
            with self.stage.phase("optimizer", OPTIMIZER):
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()

    def _name_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.stage.name(GRADIENTS, [parameter.grad])

    def _rollouts(self, batch: PromptBatch) -> list[_Part]:
        sampling, num_generations = self.job.sampling, self.job.num_generations
        assert sampling is not None
        chosen = micro_batches([self.job.row] * self.job.prompts, self.job.max_tokens_per_device)
        keep = len(chosen) == 1 and not self.policy.gradient_checkpointing and not self.job.sharded
        parts: list[_Part] = []
        with self.stage.phase("rollout"):
            for rows in chosen[:2]:
                prompts = self.policy.precompute_image_features(batch.select(rows))
                with nullcontext() if keep else torch.no_grad():
                    prefix = self.policy.prefill(prompts)
                completions = _decode(self.policy, prefix, sampling, num_generations, self.stage)
                parts.append(_Part(prompts, completions, prefix if keep else None))
            parts += [
                _Part(self.policy.precompute_image_features(batch.select(r)), parts[0].completions, None)
                for r in chosen[2:]
            ]
        return parts

    def _supervised(self, batch: PromptBatch) -> list[_Part]:
        chosen = micro_batches([self.job.row] * self.job.prompts, self.job.max_tokens_per_device)
        parts = []
        for rows in chosen[:2]:
            ids = torch.zeros(len(rows), self.job.lengths.completion, dtype=torch.long)
            mask = torch.ones(ids.shape, dtype=torch.bool)
            parts.append(_Part(batch.select(rows), Completions(ids, mask, mask, mask[:, 0]), None))
        return parts

    def _scores(self, model: Policy, part: _Part, prefix: Prefix | None) -> Scores:
        done = part.completions
        if self.policy.gradient_checkpointing and torch.is_grad_enabled():
            hidden = model.hidden_without_cache(part.prompts, done.ids, done.mask)
        else:
            if prefix is None:
                prefix = model.prefill(part.prompts)
                self.stage.name(CACHES, [tensor for layer in prefix.layers for tensor in layer])
            hidden = completion_hidden(model, prefix, done.ids, done.mask)
        suppress_tokens = None if self.job.sampling is None else torch.tensor(self.job.sampling.suppress_tokens)
        return score(model, hidden, done.ids, done.mask, suppress_tokens=suppress_tokens)

    @torch.no_grad()
    def _score_reference(self, part: _Part) -> None:
        model = self.reference or self.policy
        with model.without_adapter():
            self._scores(model, part, None)

    def _losses(self, parts: list[_Part], update: int) -> Iterator[Tensor]:
        for part in parts[:2]:  # of the second, the gradients of the first are there
            scores = self._scores(self.policy, part, part.prefix if update == 0 else None)
            loss = (scores.logprobs * part.completions.mask).sum()
            del scores
            yield loss
