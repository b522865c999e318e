"""The policy's probability of each option at the position of the answer's letter in a greedy completion."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from medr1.domain.reasoning import answer_position
from medr1.generation.logprobs import completion_hidden
from medr1.generation.rollout import rollout
from medr1.generation.sampling import Sampling
from medr1.models.policy import Policy
from medr1.models.processor import Processor, Prompt
from medr1.models.tensors import Prefix

Probabilities = dict[str, float]


@dataclass(frozen=True, slots=True)
class ScoredCompletion:
    """``text`` of a greedy completion, whether it reached the token limit, and the probability of each option's letter
    as in ``option_probabilities``."""

    text: str
    truncated: bool
    probabilities: Probabilities | None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a completion has its answer: the step that generated the letter, and the token of each option there."""

    step: int
    letters: dict[str, int]


@torch.no_grad()
def generate_with_option_probabilities(
    policy: Policy, processor: Processor, prompt: Prompt, options: Mapping[str, str], max_completion_length: int
) -> ScoredCompletion:
    """Decodes ``prompt`` greedily and computes the probability of each option."""
    prefix = policy.prefill(processor.encode([prompt]).to(policy.device))
    completion = rollout(policy, prefix, Sampling.greedy(max_completion_length, processor))
    (text,) = processor.decode(completion.ids, completion.mask)
    place = _find(processor, completion.token_ids()[0], text, options)
    probabilities = None
    if place is not None:
        (probabilities,) = _score(policy, prefix, completion.token_ids(), [place])
    return ScoredCompletion(text, bool(completion.truncated[0]), probabilities)


@torch.no_grad()
def option_probabilities(
    policy: Policy,
    processor: Processor,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    options: Sequence[Mapping[str, str]],
) -> list[Probabilities | None]:
    """The probability of each option for greedy completions ``texts`` of ``prompts``, which are tokenized again.

    The probabilities are the softmax over the letters of the options at the step that generated the answer's letter,
    given all earlier tokens of the completion (in Think-Before, the rationale). The generated letter has the highest.

    None if there is no readable answer block, if its letter is not an option, if the tokenizer has no single token for
    one of the letters at this position, or if it does not give the text back.
    """
    rows = processor.token_ids(texts)
    places = [_find(processor, *completion) for completion in zip(rows, texts, options, strict=True)]
    found = [(row, place) for row, place in enumerate(places) if place is not None]
    probabilities: list[Probabilities | None] = [None] * len(prompts)
    if found:
        prefix = policy.prefill(processor.encode([prompts[row] for row, _ in found]).to(policy.device))
        scored = _score(policy, prefix, [rows[row] for row, _ in found], [place for _, place in found])
        for (row, _), of_row in zip(found, scored, strict=True):
            probabilities[row] = of_row
    return probabilities


def _find(processor: Processor, ids: list[int], text: str, options: Mapping[str, str]) -> _Place | None:
    """Where the completion ``ids``, decoded as ``text``, has its answer."""
    index = answer_position(text)
    if index is None or text[index].upper() not in options:
        return None
    # The first step after which the decoded text has the letter.
    step = bisect_left(range(len(ids)), 1, key=lambda at: processor.text(ids[: at + 1]).startswith(text[: index + 1]))
    letters = None if step == len(ids) else _letter_ids(processor, ids[step], text[index], options)
    return None if letters is None else _Place(step, letters)


def _score(policy: Policy, prefix: Prefix, rows: Sequence[list[int]], places: Sequence[_Place]) -> list[Probabilities]:
    """The probabilities for completions ``rows`` of the B prompts of ``prefix``, each given its earlier tokens."""
    width = 1 + max(place.step for place in places)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (tokens, place) in enumerate(zip(rows, places, strict=True)):
        ids[row, : place.step + 1], mask[row, : place.step + 1] = torch.tensor(tokens[: place.step + 1]), True
    hidden = completion_hidden(policy, prefix, ids.to(policy.device), mask.to(policy.device))
    logits = policy.logits(hidden[range(len(rows)), [place.step for place in places]])
    return [
        dict(zip(place.letters, of_row[list(place.letters.values())].double().softmax(-1).tolist(), strict=True))
        for of_row, place in zip(logits, places, strict=True)
    ]


def _letter_ids(processor: Processor, generated: int, letter: str, options: Mapping[str, str]) -> dict[str, int] | None:
    """For each option, the token that differs from ``generated`` only in the letter (``C``, ``(C``, ``>C``, ``c``)."""
    spelling = str(processor.tokenizer.convert_ids_to_tokens(generated))
    if letter not in spelling:
        return None
    case = str.lower if letter.islower() else str.upper
    ids = {option: processor.vocabulary.get(spelling.replace(letter, case(option), 1)) for option in options}
    return None if None in ids.values() else {option: int(i) for option, i in ids.items() if i is not None}
