"""The training step of supervised fine-tuning and of pretraining."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from medr1.generation.logprobs import Scores, completion_hidden, score
from medr1.models.tensors import PromptBatch, Targets
from medr1.training.batches import SupervisedBatch
from medr1.training.micro_batches import split_by_tokens
from medr1.training.module import PolicyModule


class SFTModule(PolicyModule):
    """Cross-entropy of the target completions: a weighted mean over all their tokens in the step."""

    def step(self, batch: SupervisedBatch) -> dict[str, Tensor]:
        prompts, targets = batch.prompts, batch.targets
        weight = self.all_reduce_sum((targets.weights * targets.mask).sum())
        sizes = prompts.mask.sum(1).tolist(), targets.mask.sum(1).tolist()
        row_lists = split_by_tokens(*sizes, self.max_tokens_per_device)
        split = self.equal_split([len(rows) for rows in row_lists])
        row_lists = [[rows[i] for i in new] for rows, lists in zip(row_lists, split, strict=True) for new in lists]
        sums: list[Tensor] = []  # loss and entropy of each micro-batch

        def losses() -> Iterator[Tensor]:
            for rows in row_lists:
                own = targets.select(rows)
                scores = self._score(prompts.select(rows), own)
                loss = -(scores.logprobs * own.weights * own.mask).sum() / weight
                sums.append(torch.stack([loss.detach(), scores.entropy.sum()]))
                yield loss

        with self.phase("update"):
            grad_norm = self.update(losses(), len(row_lists))
        loss, entropy = self.all_reduce_sum(torch.stack(sums, dim=1).sum(1))
        lengths = self.gather(targets.mask.sum(1).float())
        return {
            "train/loss": loss,
            "entropy": entropy / lengths.sum(),
            "completion_length": lengths.mean(),
            "grad_norm": grad_norm,
        }

    def _score(self, prompts: PromptBatch, targets: Targets) -> Scores:
        if self.policy.gradient_checkpointing:
            hidden = self.policy.hidden_without_cache(prompts, targets.ids, targets.mask)
        else:
            hidden = completion_hidden(self.policy, self.policy.prefill(prompts), targets.ids, targets.mask)
        return score(self.policy, hidden, targets.ids, targets.mask)
