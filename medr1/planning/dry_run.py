"""Runs one training step and one evaluation on the meta device, and records the memory of their tensors.

What runs is the module of the algorithm, the rollout and the optimizer, with tensors that have no values. The lengths
are the worst case: every prompt is as long as the longest, and no completion ends early.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from medr1.config.settings import AlgorithmConfig
from medr1.generation.engines.local import LocalEngine
from medr1.generation.rollout import rollout
from medr1.generation.sampling import Sampling
from medr1.models.adapters import set_trainable
from medr1.models.loading import ModelSpec, load_on_meta
from medr1.models.policy import Policy
from medr1.models.shared_prefix_cache import PolicyDecoder
from medr1.models.tensors import Completions, Prefix, PromptBatch
from medr1.planning.memory_ledger import ACTIVATIONS, CACHES, GRADIENTS, OPTIMIZER, REFERENCE, WEIGHTS, Peaks
from medr1.planning.meta_tracer import MetaTracer, fused_attention
from medr1.training.algorithms import ALGORITHMS
from medr1.training.algorithms.algorithm import Algorithm, DryRun
from medr1.training.micro_batches import split_by_tokens
from medr1.training.module import PolicyModule, Runtime

EVALUATION = "evaluation"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the longest prompt and completion, the sides of an image in patches, and the images of a prompt."""

    prompt: int
    completion: int
    image_grid: tuple[int, int]
    images: int = 1


@dataclass(frozen=True, slots=True)
class Workload:
    """What one device computes in a training step and in an evaluation.

    ``on_gpu``: the optimizer updates all weights together, as it does by default on a GPU. ``waiting_batches``: batches
    that are encoded in advance into the memory that is planned, on a CPU.
    """

    settings: AlgorithmConfig
    train_batch_size: int
    lengths: Lengths
    max_tokens_per_device: int
    eval_batch_size: int
    eval_lengths: Lengths
    on_gpu: bool
    is_sharded: bool = False
    optimizer_offload: bool = False
    waiting_batches: int = 0

    @property
    def algorithm(self) -> Algorithm[Any]:
        return ALGORITHMS[self.settings.kind]

    @property
    def num_generations(self) -> int:
        return self.algorithm.num_generations(self.settings)

    @property
    def tokens_per_prompt(self) -> int:
        """Tokens of a prompt with all its completions, as ``trainer.max_tokens_per_device`` counts them."""
        return self.lengths.prompt + self.num_generations * self.lengths.completion

    def with_generations(self, num_generations: int) -> Workload:
        """The same with another ``algorithm.num_generations``."""
        settings: Any = self.settings
        return replace(self, settings=replace(settings, num_generations=num_generations))


def build_policy(model: ModelSpec) -> Policy:
    """The policy as it is trained, without values."""
    policy = load_on_meta(model)
    set_trainable(policy, freeze_vision_tower=model.freeze_vision_tower, lora=model.lora)
    return policy


def dry_run_step(model: ModelSpec, work: Workload) -> Peaks:
    """Bytes of each part at the peak of each phase of a training step. Empty if the algorithm does not train.

    Of more than two micro-batches, two run: the memory of the others is that of the second.

    Raises:
        CheckpointError: the model has no configuration, or nothing to train.
    """
    if not work.algorithm.trains:
        return {}
    policy = build_policy(model)
    tracer = MetaTracer(_vocab_size(policy))
    lengths = [work.lengths.prompt], [work.num_generations * work.lengths.completion]
    prompts, completions = (length * work.train_batch_size for length in lengths)
    micro_batches = split_by_tokens(prompts, completions, work.max_tokens_per_device)
    count = sum(len(rows) for rows in micro_batches[:2])
    with fused_attention(), tracer:
        step = DryRun(
            _prompts(policy, count, work.lengths),
            work.lengths.completion,
            work.max_tokens_per_device,
            LastStepsEngine(),
        )
        module, batch = work.algorithm.dry_run(work.settings, policy, step)
        module.optimizer_offload = work.optimizer_offload
        module.runtime = runtime = MetaRuntime(module, tracer, work)
        for part, trained in zip((WEIGHTS, REFERENCE), module.policies, strict=False):
            tracer.name(part, _tensors(trained))
            _name_caches(trained, tracer)
        runtime.finish_earlier_step()
        idle = list(_idle_prompts(policy, micro_batches[2:], work))
        waiting = [_prompts(policy, work.train_batch_size, work.lengths) for _ in range(work.waiting_batches)]
        tracer.peaks.clear()
        module.step(batch)
        del idle, waiting
    tracer.peaks.pop("start", None)
    return tracer.peaks


def dry_run_evaluation(model: ModelSpec, work: Workload) -> Peaks:
    """Bytes of each part at the peak of greedy evaluation.

    Every part grows linearly with the batch size, so two small batches determine those of any.
    """
    two, three = (
        _evaluation(
            *(model.path, model.dtype, model.attn_implementation, model.quantization),
            *(work.eval_lengths, rows, work.waiting_batches),
        )
        for rows in (2, 3)
    )
    slope = {part: three[part] - two[part] for part in {*two, *three}}
    return {EVALUATION: Counter({part: two[part] + (work.eval_batch_size - 2) * slope[part] for part in slope})}


@lru_cache(maxsize=64)
def _evaluation(
    path: str,
    dtype: str,
    attn_implementation: str,
    quantization: str,
    lengths: Lengths,
    rows: int,
    waiting_batches: int,
) -> Counter[str]:
    policy = load_on_meta(ModelSpec(path, dtype, attn_implementation, quantization=quantization))
    tracer = MetaTracer(_vocab_size(policy))
    tracer.name(WEIGHTS, _tensors(policy))
    _name_caches(policy, tracer)
    with fused_attention(), tracer, tracer.phase(EVALUATION):
        sampling = Sampling(lengths.completion, -1, (1,), temperature=0.0)
        waiting = [_prompts(policy, rows, lengths) for _ in range(waiting_batches)]
        LastStepsEngine().generate(policy, _prompts(policy, rows, lengths), sampling)
        del waiting
    return tracer.peaks[EVALUATION]


class MetaRuntime(Runtime):
    """Runs the step of a module without a trainer, and names gradients and optimizer state."""

    # In place of the properties.
    world_size = 1
    is_sharded = False
    optimizer: Any = None
    scheduler: Any = None

    def __init__(self, module: PolicyModule, tracer: MetaTracer, work: Workload) -> None:
        super().__init__(module)
        self.is_sharded, self._tracer = work.is_sharded, tracer
        built = module.configure_optimizers()
        self.optimizer, self.scheduler = built["optimizer"], built["lr_scheduler"]
        self.optimizer.param_groups[0]["foreach"] = work.on_gpu
        self._trained = [p for p in module.policy.parameters() if p.requires_grad]

    def finish_earlier_step(self) -> None:
        """Leaves the optimizer state that a step leaves to the next one, and no gradients."""
        for parameter in self._trained:
            parameter.grad = torch.zeros_like(parameter)
            parameter.register_post_accumulate_grad_hook(self._name_gradient)  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._tracer.name(OPTIMIZER, [t for state in self.optimizer.state.values() for t in state.values()])

    def _name_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._tracer.name(GRADIENTS, [parameter.grad])

    def backward(self, loss: Tensor, *, synchronize: bool) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def all_finite(self, values: Sequence[Tensor]) -> bool:
        return True  # tensors on the meta device have no values

    def phase(self, name: str) -> AbstractContextManager[None]:
        return self._tracer.phase(name, OPTIMIZER if name == "optimizer" else ACTIVATIONS)


class LastStepsEngine(LocalEngine):
    """Decodes only the last tokens of completions, where the caches are longest."""

    def generate(
        self,
        policy: Policy,
        prompts: PromptBatch,
        sampling: Sampling,
        num_generations: int = 1,
        uniforms: Tensor | None = None,
        prefix: Prefix | None = None,
    ) -> Completions:
        if prefix is None:
            with torch.no_grad():
                prefix = policy.prefill(prompts)
        first_step = max(0, sampling.max_completion_length - 3)
        return rollout(policy, prefix, sampling, num_generations, uniforms, first_step=first_step)


def _name_caches(policy: Policy, tracer: MetaTracer) -> None:
    """Names the keys and values that a policy creates."""
    prefill, decoder = policy.prefill, policy.decoder

    def named_prefill(prompts: PromptBatch) -> Prefix:
        prefix = prefill(prompts)
        tracer.name(CACHES, [tensor for layer in prefix.layers for tensor in layer])
        return prefix

    def named_decoder(prefix: Prefix, num_generations: int, max_length: int) -> PolicyDecoder:
        made = decoder(prefix, num_generations, max_length)
        tracer.name(CACHES, made.buffers)
        return made

    policy.prefill, policy.decoder = named_prefill, named_decoder  # type: ignore[method-assign]


def _prompts(policy: Policy, rows: int, lengths: Lengths) -> PromptBatch:
    """Prompts of the given lengths, each with its own images. All but the first have one token of padding, so that
    masks are needed."""
    height, width = lengths.image_grid
    vision = policy.core.config.vision_config
    image_tokens = lengths.images * height * width // vision.spatial_merge_size**2
    ids = torch.zeros(rows, lengths.prompt, dtype=torch.long)
    ids[:, 1 : 1 + image_tokens] = policy.core.config.image_token_id
    mask = torch.ones(rows, lengths.prompt, dtype=torch.bool)
    mask[1:, 0] = False
    positions = torch.arange(lengths.prompt).expand(3, rows, -1).contiguous()
    patch = getattr(vision, "in_channels", 3) * vision.temporal_patch_size * vision.patch_size**2
    count = rows * lengths.images
    pixel_values = torch.empty(count * height * width, patch, device="meta")
    image_grid_thw = torch.tensor([[1, height, width]] * count)
    image_index = tuple(tuple(range(i, i + lengths.images)) for i in range(0, count, lengths.images))
    next_position = positions.amax(dim=(0, 2)) + 1
    return PromptBatch(ids, mask, positions, next_position, pixel_values, image_grid_thw, image_index)


def _idle_prompts(policy: Policy, micro_batches: list[list[int]], work: Workload) -> Iterator[PromptBatch]:
    """The images of the micro-batches that do not run: in the batch, and again in a rollout's micro-batches."""
    for rows in micro_batches:
        yield _prompts(policy, len(rows), work.lengths)
        if work.num_generations > 1:
            yield policy.precompute_image_features(_prompts(policy, len(rows), work.lengths))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _vocab_size(policy: Policy) -> int:
    return int(policy.core.config.get_text_config().vocab_size)
