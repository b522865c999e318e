"""What fits: of a group, of a token budget, on several devices, and what makes a run fit that does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from medr1.config.settings import LoraConfig
from medr1.models.loading import ModelSpec
from medr1.planning.memory_ledger import GRADIENTS, REFERENCE, WEIGHTS
from medr1.planning.rehearsal import Job, Peaks, build_policy, rehearse_answers, rehearse_step

_GATHERED = 2  # groups of weights that FSDP holds at once: the one that runs and the next
_TRIALS = 14  # rehearsals of one search
_LARGEST_GROUP = 4096


@dataclass(frozen=True, slots=True)
class Run:
    """A run of one or more processes. ``job`` is that of the whole step; each process does its share."""

    spec: ModelSpec
    job: Job
    processes: int = 1
    strategy: str = "auto"

    @property
    def share(self) -> Job:
        return replace(self.job, prompts=self.job.prompts // self.processes, sharded=self.strategy == "fsdp")

    def step(self) -> Peaks:
        """Phases of a step on one device."""
        peaks = rehearse_step(self.spec, self.share)
        if self.processes == 1 or not peaks:
            return peaks
        if self.strategy == "fsdp":
            return _sharded(peaks, self.spec, self.processes)
        # DDP copies gradients into buckets of its own, which stay.
        return {name: parts + Counter({GRADIENTS: _trained(self.spec)}) for name, parts in peaks.items()}

    def answers(self) -> Peaks:
        """The evaluation, which the first process does alone with all weights."""
        return rehearse_answers(self.spec, self.job)


def peak_bytes(peaks: Peaks) -> int:
    """Bytes at the highest of the phases."""
    return max((sum(parts.values()) for parts in peaks.values()), default=0)


def _trained(spec: ModelSpec) -> int:
    parameters = build_policy(spec).parameters()
    return sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)


def _sharded(peaks: Peaks, spec: ModelSpec, processes: int) -> Peaks:
    """FSDP: weights, reference, gradients and the optimizer's state in shards; the rollout gathers all weights once,
    every other phase a group at a time, besides the root group (embeddings and head)."""
    core = build_policy(spec).core.model
    blocks = [*core.language_model.layers, *core.visual.blocks]
    sizes = [sum(p.numel() * p.element_size() for p in block.parameters()) for block in blocks]
    found: Peaks = {}
    for name, parts in peaks.items():
        kept = ("activations", "caches", "logits")
        each = Counter({part: size if part in kept else size // processes for part, size in parts.items()})
        root = parts[WEIGHTS] - sum(sizes)
        group = root + _GATHERED * max(sizes)
        each[REFERENCE if name == "reference" and parts[REFERENCE] else WEIGHTS] += {
            "rollout": parts[WEIGHTS],
            "optimizer": 0,
        }.get(name, group)
        if name == "update" and parts[GRADIENTS]:
            each[GRADIENTS] += root + max(sizes)
        found[name] = each
    return found


def largest(peak_bytes: Callable[[int], int], low: int, high: int, usable_bytes: int) -> int | None:
    """The largest number whose need is within the room, or None; ``need`` rises, nearly in a straight line."""
    below, above = (low, peak_bytes(low)), None
    if below[1] > usable_bytes:
        return None
    before = None
    for _ in range(_TRIALS):
        if above is None:
            if below[0] == high:
                return high
            slope = 0.0 if before is None else (below[1] - before[1]) / (below[0] - before[0])
            guess = 2 * below[0] if slope <= 0 else below[0] + int((usable_bytes - below[1]) / slope)
        else:
            if above[0] - below[0] == 1:
                return below[0]
            slope = max(1.0, (above[1] - below[1]) / (above[0] - below[0]))
            guess = min(above[0] - 1, below[0] + int((usable_bytes - below[1]) / slope))
        guess = min(high, max(below[0] + 1, guess))
        found = (guess, peak_bytes(guess))
        if found[1] <= usable_bytes:
            before, below = below, found
        else:
            above = found
    return below[0]


def largest_group(run: Run, usable_bytes: int) -> int | None:
    """The largest ``algorithm.num_generations`` with everything else as it is; None where not even 2 fits."""

    def bytes_of(size: int) -> int:
        return peak_bytes(replace(run, job=replace(run.job, num_generations=size)).step())

    return largest(bytes_of, 2, _LARGEST_GROUP, usable_bytes)


def largest_budget(run: Run, usable_bytes: int) -> int | None:
    """The largest ``trainer.max_tokens_per_device`` with everything else as it is: 0 where the whole step fits at once, None
    where not even one prompt with its completions does."""
    whole = replace(run, job=replace(run.job, max_tokens_per_device=0))
    if peak_bytes(whole.step()) <= usable_bytes:
        return 0

    def budget(prompts: int) -> Run:
        return replace(run, job=replace(run.job, max_tokens_per_device=prompts * run.job.row))

    prompts = largest(lambda n: peak_bytes(budget(n).step()), 1, max(1, run.share.prompts - 1), usable_bytes)
    return None if prompts is None else prompts * run.job.row


def largest_batch(run: Run, usable_bytes: int) -> int | None:
    """The largest ``evaluation.batch_size`` up to the one that was wanted."""

    def bytes_of(size: int) -> int:
        return peak_bytes(replace(run, job=replace(run.job, eval_batch_size=size)).answers())

    return largest(bytes_of, 1, run.job.eval_batch_size, usable_bytes)


def remedies(run: Run, usable_bytes: int) -> list[str]:
    """Overrides that make the run fit, each line by itself; each was rehearsed. If no single change does, the shortest
    of some combinations; nothing if none does either."""
    alone = [fitting for text, other in _single(run, usable_bytes) if (fitting := _fitting(text, other, usable_bytes))]
    if alone:
        return alone
    return [fitting for text, other in _together(run) if (fitting := _fitting(text, other, usable_bytes))][:1]


def _fitting(text: str, run: Run, usable_bytes: int) -> str | None:
    """The change as overrides, with a smaller batch of questions where the evaluation needs one."""
    if peak_bytes(run.step()) > usable_bytes:
        return None
    if peak_bytes(run.answers()) <= usable_bytes:
        return text or None
    batch = largest_batch(run, usable_bytes)
    return None if batch is None else f"{text} evaluation.batch_size={batch}".strip()


def _single(run: Run, usable_bytes: int) -> Iterator[tuple[str, Run]]:
    spec, job = run.spec, run.job
    yield "", run  # a smaller batch of questions alone
    if not job.updates or peak_bytes(run.step()) <= usable_bytes:
        return
    yield from _models(run)
    budget = largest_budget(run, usable_bytes)
    if budget:
        yield f"trainer.max_tokens_per_device={budget}", replace(run, job=replace(job, max_tokens_per_device=budget))
    if job.num_generations:
        size = largest_group(run, usable_bytes)
        if size is not None and size < job.num_generations:
            yield f"algorithm.num_generations={size}", replace(run, job=replace(job, num_generations=size))
    for processes in (2, 4, 8):
        if run.processes < processes and job.prompts % processes == 0 and spec.lora is None:
            yield f"trainer=fsdp trainer.devices={processes}", replace(run, processes=processes, strategy="fsdp")


def _models(run: Run) -> Iterator[tuple[str, Run]]:
    spec = run.spec
    if spec.dtype == "float32":
        yield "model.dtype=bfloat16", replace(run, spec=replace(spec, dtype="bfloat16"))
    if not spec.gradient_checkpointing:
        yield "model.gradient_checkpointing=true", replace(run, spec=replace(spec, gradient_checkpointing=True))
    if spec.lora is None:
        yield "model.tuning=lora", replace(run, spec=replace(spec, lora=LoraConfig()))


def _together(run: Run) -> Iterator[tuple[str, Run]]:
    """More and more of what costs little; then one prompt at a time; at last, in full, over several devices."""
    words: list[str] = []
    other, in_full = run, ("", run)
    while (change := next(_models(other), None)) is not None:
        words, other = [*words, change[0]], change[1]
        yield " ".join(words), other
        if other.spec.lora is None:
            in_full = " ".join(words), other
    yield _one_prompt(" ".join(words), other)
    if run.spec.lora is None:
        text, one = _one_prompt(*in_full)
        for processes in (2, 4, 8):
            if run.processes < processes and run.job.prompts % processes == 0:
                sharded = replace(one, processes=processes, strategy="fsdp")
                yield f"{text} trainer=fsdp trainer.devices={processes}", sharded


def _one_prompt(text: str, run: Run) -> tuple[str, Run]:
    budget = run.job.row
    return f"{text} trainer.max_tokens_per_device={budget}".strip(), replace(
        run, job=replace(run.job, max_tokens_per_device=budget)
    )
