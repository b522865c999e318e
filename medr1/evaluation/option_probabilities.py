"""One greedy answer, and how probable the policy holds each option where it writes the answer's letter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from medr1.domain.reasoning import answer_place
from medr1.generation.rollout import rollout
from medr1.generation.sampling import Sampling
from medr1.models.policy import Policy
from medr1.models.processor import Processor, Prompt
from medr1.models.tensors import Decoder, Prefix, PromptBatch


@dataclass(frozen=True, slots=True)
class Told:
    """``text`` of a greedy completion, whether the token limit cut it, and the probability of each option's letter.

    ``probabilities`` is None where no answer block can be read, where its letter is none of the options', or where the
    tokenizer cannot write every letter as one token in its place.
    """

    text: str
    truncated: bool
    probabilities: dict[str, float] | None


class _Listening:
    """A policy that keeps the hidden states from which each token was decided."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.heard: list[Tensor] = []

    def prefill(self, prompts: PromptBatch) -> Prefix:
        return self.policy.prefill(prompts)

    def extend(self, prefix: Prefix, ids: Tensor, mask: Tensor) -> Tensor:
        return self.policy.extend(prefix, ids, mask)

    def decoder(self, prefix: Prefix, num_generations: int, max_length: int) -> Decoder:
        return self.policy.decoder(prefix, num_generations, max_length)

    def logits(self, hidden: Tensor) -> Tensor:
        self.heard.append(hidden)
        return self.policy.logits(hidden)


@torch.no_grad()
def tell(
    policy: Policy, processor: Processor, prompt: Prompt, options: Mapping[str, str], max_completion_length: int
) -> Told:
    """Decodes ``prompt`` greedily and reads the letters' probabilities at the place of the answer's letter.

    At the step of decoding that wrote the letter, after all that the completion says before it (in Think-Before after
    the rationale), the softmax over the options' letters alone: what the policy would answer if at that place it had
    to name an option. Because the letter was chosen greedily, none of the others is more probable.
    """
    listening = _Listening(policy)
    sampling = Sampling.greedy(max_completion_length, processor)
    done = rollout(listening, listening.prefill(processor.encode([prompt]).to(policy.device)), sampling)
    (text,) = processor.decode(done.ids, done.mask)
    ids = done.ids[0][done.mask[0]].tolist()
    probabilities = None
    place = answer_place(text)
    if place is not None and text[place] in options:
        step = _step_of(processor, ids, text[: place + 1])
        letters = _letter_ids(processor, ids[step], text[place], options)
        if letters is not None:
            logits = policy.logits(listening.heard[step])[0, list(letters.values())]
            shares = logits.double().softmax(-1).tolist()
            probabilities = dict(zip(letters, shares, strict=True))
    return Told(text, bool(done.truncated[0]), probabilities)


def _step_of(processor: Processor, ids: list[int], beginning: str) -> int:
    """The step that wrote the last character of ``beginning``, with which the completion ``ids`` begins."""
    for step in range(len(ids)):
        (so_far,) = processor.tokenizer.batch_decode([ids[: step + 1]], skip_special_tokens=True)
        if so_far.startswith(beginning):
            return step
    raise AssertionError(f"{beginning!r} is no beginning of its own completion")


def _letter_ids(processor: Processor, written: int, letter: str, options: Mapping[str, str]) -> dict[str, int] | None:
    """For each option the token that differs from ``written`` in the letter alone (``C``, ``(C``, ``>C``)."""
    spelling = str(processor.tokenizer.convert_ids_to_tokens(written))
    vocabulary = processor.tokenizer.get_vocab()
    ids = {option: vocabulary.get(spelling.replace(letter, option, 1)) for option in options}
    return None if None in ids.values() else {option: int(i) for option, i in ids.items() if i is not None}
