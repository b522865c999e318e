"""Searches for what fits: the largest group and token limit, and changes that make a run fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import nn

from medr1.config.enums import Distribution, Quantization
from medr1.config.settings import LoraConfig
from medr1.models.loading import ModelSpec
from medr1.planning.dry_run import EVALUATION, Workload, build_policy, dry_run_evaluation, dry_run_step
from medr1.planning.memory_ledger import (
    ACTIVATIONS,
    CACHES,
    GRADIENTS,
    LOGITS,
    OPTIMIZER,
    REFERENCE,
    WEIGHTS,
    Peaks,
    peak_bytes,
)

_GATHERED_GROUPS = 2  # groups of layers whose weights FSDP gathers at a time in training: the current and the next
_TRANSFERS = 2  # copies of a group while FSDP gathers it: the buffer of the transfer, and the weights
_MAX_TRIALS = 14  # dry runs of one search
_MAX_GENERATIONS = 4096


@dataclass(frozen=True, slots=True)
class Run:
    """A run of one or more processes. ``work`` is that of all processes together.

    ``validates``: whether it is also evaluated during training. ``gathers``: ``trainer.gather_for_generation``.
    ``may_quantize``: whether nothing but its tuning keeps it from ``model.quantization``.
    """

    model: ModelSpec
    work: Workload
    processes: int = 1
    strategy: Distribution = Distribution.auto
    validates: bool = False
    gathers: bool = False
    may_quantize: bool = False

    @property
    def local_work(self) -> Workload:
        """The part of one process."""
        batch_size = self.work.train_batch_size // self.processes
        return replace(self.work, train_batch_size=batch_size, is_sharded=self.strategy == Distribution.fsdp)

    def step(self) -> Peaks:
        """The phases of a training step on one device."""
        peaks = dry_run_step(self.model, self.local_work)
        if self.processes == 1 or not peaks:
            return peaks
        if self.strategy == Distribution.fsdp:
            return self._sharded(peaks)
        # DDP copies the gradients into buckets, which it keeps.
        buckets = Counter({GRADIENTS: _trained_bytes(self.model)})
        return {name: parts + buckets for name, parts in peaks.items()}

    def evaluation(self) -> Peaks:
        """The evaluation, which the first process does alone, with FSDP with its shard of the weights.

        During training, beside the gradients of the last step, the state of the optimizer and the reference.
        """
        peaks = dry_run_evaluation(self.model, self.work)
        if self.strategy == Distribution.fsdp and self.processes > 1:
            peaks = self._sharded(peaks)
        if self.validates:
            beside = self.step().get("optimizer", Counter())
            persistent = Counter({part: beside[part] for part in (REFERENCE, GRADIENTS, OPTIMIZER)})
            peaks = {name: parts + persistent for name, parts in peaks.items()}
        return peaks

    def _sharded(self, peaks: Peaks) -> Peaks:
        """The peaks with FSDP: weights, reference, gradients and optimizer state are divided by the processes.

        On top of its shards, a process holds one gathered group in the phases without gradients, and in the update the
        root group (embeddings and head) and two groups of layers.
        """
        policy = build_policy(self.model)
        core = policy.core.model
        total, *sizes = map(_bytes, (policy, *core.language_model.layers, *core.visual.blocks))
        root = total - sum(sizes)
        gathered = {"update": root + _GATHERED_GROUPS * max(sizes), "optimizer": 0}
        if self.gathers:
            gathered |= dict.fromkeys(("rollout", EVALUATION), total)
        sharded: Peaks = {}
        for phase, parts in peaks.items():
            own = (ACTIVATIONS, CACHES, LOGITS)
            local = Counter({part: n if part in own else n // self.processes for part, n in parts.items()})
            whole = REFERENCE if phase == "reference" and parts[REFERENCE] else WEIGHTS
            local[whole] += gathered.get(phase, _TRANSFERS * max(root, *sizes))
            if phase == "update" and parts[GRADIENTS]:
                local[GRADIENTS] += root + max(sizes)
            sharded[phase] = local
        return sharded

    def step_bytes(self) -> int:
        return peak_bytes(self.step())

    def with_work(self, **changes: int) -> Run:
        return replace(self, work=replace(self.work, **changes))  # type: ignore[arg-type]


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def host_bytes(run: Run) -> int:
    """Host memory of ``trainer.optimizer_offload``: a float32 copy and two moments of each trained weight."""
    return 3 * 4 * sum(p.numel() for p in _trained(run.model))


def _trained_bytes(model: ModelSpec) -> int:
    return sum(p.numel() * p.element_size() for p in _trained(model))


def _trained(model: ModelSpec) -> list[nn.Parameter]:
    return [p for p in build_policy(model).parameters() if p.requires_grad]


def largest(bytes_of: Callable[[int], int], low: int, high: int, usable_bytes: int) -> int | None:
    """The largest number from ``low`` to ``high`` whose bytes are usable, or None. ``bytes_of`` is increasing.

    Interpolates linearly between the largest number that is known to fit and the smallest that is known not to.
    """
    fits, too_large = (low, bytes_of(low)), None
    if fits[1] > usable_bytes:
        return None
    before = None
    for _ in range(_MAX_TRIALS):
        if too_large is None:
            if fits[0] == high:
                return high
            slope = 0.0 if before is None else (fits[1] - before[1]) / (fits[0] - before[0])
            guess = 2 * fits[0] if slope <= 0 else fits[0] + int((usable_bytes - fits[1]) / slope)
        else:
            if too_large[0] - fits[0] == 1:
                return fits[0]
            slope = max(1.0, (too_large[1] - fits[1]) / (too_large[0] - fits[0]))
            guess = min(too_large[0] - 1, fits[0] + int((usable_bytes - fits[1]) / slope))
        guess = min(high, max(fits[0] + 1, guess))
        trial = (guess, bytes_of(guess))
        if trial[1] <= usable_bytes:
            before, fits = fits, trial
        else:
            too_large = trial
    return fits[0]


def largest_group(run: Run, usable_bytes: int) -> int | None:
    """The largest ``algorithm.num_generations`` that fits, or None if not even 2 does."""

    def bytes_of(num_generations: int) -> int:
        return replace(run, work=run.work.with_generations(num_generations)).step_bytes()

    return largest(bytes_of, 2, _MAX_GENERATIONS, usable_bytes)


def largest_token_limit(run: Run, usable_bytes: int) -> int | None:
    """The largest ``trainer.max_tokens_per_device`` that fits. 0: the step fits as a whole. None: not even one prompt
    with its completions fits."""
    if run.with_work(max_tokens_per_device=0).step_bytes() <= usable_bytes:
        return 0
    tokens = run.work.tokens_per_prompt
    prompts = largest(
        lambda count: run.with_work(max_tokens_per_device=count * tokens).step_bytes(),
        1,
        max(1, run.local_work.train_batch_size - 1),
        usable_bytes,
    )
    return None if prompts is None else prompts * tokens


def largest_eval_batch(run: Run, usable_bytes: int) -> int | None:
    """The largest ``evaluation.batch_size`` that fits, up to the one of the run."""

    def bytes_of(size: int) -> int:
        return peak_bytes(run.with_work(eval_batch_size=size).evaluation())

    return largest(bytes_of, 1, run.work.eval_batch_size, usable_bytes)


def remedies(run: Run, usable_bytes: int) -> list[str]:
    """Overrides that make the run fit, one alternative per line; each has been tried in a dry run.

    If no single change is enough, the first combination of changes that is. Empty if there is none.
    """
    single = [fit for text, changed in _single_changes(run, usable_bytes) if (fit := _fit(text, changed, usable_bytes))]
    if single:
        return single
    return [fit for text, changed in _combined_changes(run) if (fit := _fit(text, changed, usable_bytes))][:1]


def _fit(text: str, run: Run, usable_bytes: int) -> str | None:
    """The overrides of a changed run that fits, with a smaller evaluation batch if it needs one. None: it does not."""
    if run.step_bytes() > usable_bytes:
        return None
    if peak_bytes(run.evaluation()) <= usable_bytes:
        return text or None
    batch_size = largest_eval_batch(run, usable_bytes)
    return None if batch_size is None else f"{text} evaluation.batch_size={batch_size}".strip()


def _single_changes(run: Run, usable_bytes: int) -> Iterator[tuple[str, Run]]:
    """Pairs of an override and the run that it gives."""
    yield "", run  # a smaller evaluation batch may be enough
    if run.step_bytes() <= usable_bytes:
        return
    yield from _model_changes(run)
    # On a CPU the state is in the same memory wherever it is.
    if run.work.on_gpu and run.strategy == Distribution.auto and not run.work.optimizer_offload:
        yield "trainer.optimizer_offload=true", run.with_work(optimizer_offload=True)
    if limit := largest_token_limit(run, usable_bytes):
        yield f"trainer.max_tokens_per_device={limit}", run.with_work(max_tokens_per_device=limit)
    if run.work.num_generations > 1:
        size = largest_group(run, usable_bytes)
        if size is not None and size < run.work.num_generations:
            yield f"algorithm.num_generations={size}", replace(run, work=run.work.with_generations(size))
    if run.gathers:
        yield "trainer.gather_for_generation=false", replace(run, gathers=False)
    yield from _more_processes("", run)


def _combined_changes(run: Run) -> Iterator[tuple[str, Run]]:
    """More and more of the changes of the model, then one prompt per micro-batch, then more devices, first for full
    tuning."""
    texts: list[str] = []
    changed, full = run, ("", run)
    while (change := next(_model_changes(changed), None)) is not None:
        texts, changed = [*texts, change[0]], change[1]
        yield " ".join(texts), changed
        if changed.model.lora is None:
            full = " ".join(texts), changed
    last = _one_prompt(" ".join(texts), changed)
    yield last
    if run.model.lora is None:
        yield from _more_processes(*_one_prompt(*full))
    yield from _more_processes(*last)


def _model_changes(run: Run) -> Iterator[tuple[str, Run]]:
    model = run.model
    if model.dtype == "float32":
        yield "model.dtype=bfloat16", replace(run, model=replace(model, dtype="bfloat16"))
    if not model.gradient_checkpointing:
        yield "model.gradient_checkpointing=true", replace(run, model=replace(model, gradient_checkpointing=True))
    if model.lora is None:
        yield "model.tuning=lora", replace(run, model=replace(model, lora=LoraConfig()))
    elif model.quantization == Quantization.none and run.may_quantize:
        yield "model.quantization=nf4", replace(run, model=replace(model, quantization=str(Quantization.nf4)))


def _one_prompt(text: str, run: Run) -> tuple[str, Run]:
    tokens = run.work.tokens_per_prompt
    return f"{text} trainer.max_tokens_per_device={tokens}".strip(), run.with_work(max_tokens_per_device=tokens)


def _more_processes(text: str, run: Run) -> Iterator[tuple[str, Run]]:
    for processes in (2, 4, 8):
        if run.processes < processes and run.work.train_batch_size % processes == 0:
            overrides = f"{text} trainer=fsdp trainer.devices={processes}".strip()
            if run.work.optimizer_offload:
                overrides += " trainer.optimizer_offload=false"
            work = replace(run.work, optimizer_offload=False)
            yield overrides, replace(run, processes=processes, strategy=Distribution.fsdp, work=work)
