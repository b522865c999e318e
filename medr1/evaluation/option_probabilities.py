"""One greedy completion with the policy's probability of each option at the position of the answer's letter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from medr1.domain.reasoning import answer_position
from medr1.generation.rollout import rollout
from medr1.generation.sampling import Sampling
from medr1.models.policy import Policy
from medr1.models.processor import Processor, Prompt


@dataclass(frozen=True, slots=True)
class ScoredCompletion:
    """``text`` of a greedy completion, whether it reached the token limit, and the probability of each option's letter.

    ``probabilities`` is None if there is no readable answer block, if its letter is not an option, or if the tokenizer
    has no single token for one of the letters at this position.
    """

    text: str
    truncated: bool
    probabilities: dict[str, float] | None


@torch.no_grad()
def generate_with_option_probabilities(
    policy: Policy, processor: Processor, prompt: Prompt, options: Mapping[str, str], max_completion_length: int
) -> ScoredCompletion:
    """Decodes ``prompt`` greedily and computes the probability of each option.

    The probabilities are the softmax over the letters of the options at the step that generated the answer's letter,
    given all earlier tokens of the completion (in Think-Before, the rationale). The generated letter has the highest.
    """
    hidden_states: list[Tensor] = []  # from which each token was chosen
    hook = policy.core.lm_head.register_forward_pre_hook(lambda head, inputs: hidden_states.append(inputs[0]))
    prefix = policy.prefill(processor.encode([prompt]).to(policy.device))
    completion = rollout(policy, prefix, Sampling.greedy(max_completion_length, processor))
    hook.remove()
    (text,) = processor.decode(completion.ids, completion.mask)
    ids = completion.ids[0][completion.mask[0]].tolist()
    probabilities = None
    place = answer_position(text)
    if place is not None and text[place].upper() in options:
        step = _step_of(processor, ids, text[: place + 1])
        letters = _letter_ids(processor, ids[step], text[place], options)
        if letters is not None:
            logits = policy.logits(hidden_states[step])[0, list(letters.values())]
            probabilities = dict(zip(letters, logits.double().softmax(-1).tolist(), strict=True))
    return ScoredCompletion(text, bool(completion.truncated[0]), probabilities)


def _step_of(processor: Processor, ids: list[int], prefix: str) -> int:
    """The step of the completion ``ids`` that generated the last character of its beginning ``prefix``."""
    for step in range(len(ids)):
        if processor.text(ids[: step + 1]).startswith(prefix):
            return step
    raise AssertionError(f"the completion does not begin with {prefix!r}")


def _letter_ids(processor: Processor, generated: int, letter: str, options: Mapping[str, str]) -> dict[str, int] | None:
    """For each option, the token that differs from ``generated`` only in the letter (``C``, ``(C``, ``>C``, ``c``)."""
    spelling = str(processor.tokenizer.convert_ids_to_tokens(generated))
    if letter not in spelling:
        return None
    vocabulary, case = processor.tokenizer.get_vocab(), str.lower if letter.islower() else str.upper
    ids = {option: vocabulary.get(spelling.replace(letter, case(option), 1)) for option in options}
    return None if None in ids.values() else {option: int(i) for option, i in ids.items() if i is not None}
