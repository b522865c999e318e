"""``algorithm=sft``: supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from medr1.config.settings import AlgorithmConfig, TrainConfig
from medr1.domain.reasoning import ReasoningMode, target_text
from medr1.domain.records import Record
from medr1.training.algorithms import ALGORITHMS
from medr1.training.algorithms.algorithm import Algorithm, DryRun, Training

if TYPE_CHECKING:
    from medr1.data.dataset import Dataset
    from medr1.models.policy import Policy
    from medr1.models.processor import Processor
    from medr1.tracking.tracker import AnyTracker
    from medr1.training.module import PolicyModule


@dataclass
class SFTConfig(AlgorithmConfig):
    """Settings of ``algorithm=sft``."""

    kind: str = "sft"
    rationale: bool = True
    """Train on the rationale of a record too, if it has one and the reasoning mode has a rationale.

    TRL: -. verl: -."""


class SFT(Algorithm[SFTConfig]):
    """Supervised fine-tuning on the same records, in the same order and with the same prompts, as GRPO."""

    kind: ClassVar[str] = "sft"
    settings = SFTConfig

    def without_effect(self, cfg: TrainConfig) -> Iterator[tuple[str, Sequence[str]]]:
        recipe = ("num_generations", "rl_learning_rate")
        yield f"algorithm={cfg.algorithm.name}", [f"model.recipe.{name}" for name in recipe]

    def build(
        self, cfg: TrainConfig, data: Dataset, policy: Policy, processor: Processor, tracker: AnyTracker
    ) -> Training:
        from medr1.training.batches import RecordBatches
        from medr1.training.sft import SFTModule

        settings, max_tokens = self.settings_of(cfg), cfg.trainer.max_tokens_per_device
        batches = RecordBatches.from_config(cfg, data, processor, rationale=settings.rationale)
        module = SFTModule(policy, settings, total_steps=self.total_steps(cfg), max_tokens_per_device=max_tokens)
        return Training(module, batches.supervised)

    def completion_length(self, cfg: TrainConfig, records: Iterable[Record], count: Callable[[list[str]], int]) -> int:
        mode, rationale = ReasoningMode(cfg.reasoning.mode), self.settings_of(cfg).rationale
        end_token = 1
        return end_token + count([target_text(mode, r.answer, r.rationale if rationale else "") for r in records])

    def dry_run(self, settings: SFTConfig, policy: Policy, step: DryRun) -> tuple[PolicyModule, Any]:
        import torch

        from medr1.models.tensors import Targets
        from medr1.training.batches import SupervisedBatch
        from medr1.training.sft import SFTModule

        mask = torch.ones(len(step.prompts.ids), step.completion_length, dtype=torch.bool)
        targets = Targets(mask.long(), mask, mask.float())
        module = SFTModule(policy, settings, total_steps=1, max_tokens_per_device=step.max_tokens_per_device)
        return module, SupervisedBatch(0, step.prompts, targets)


ALGORITHMS.register(SFT())
