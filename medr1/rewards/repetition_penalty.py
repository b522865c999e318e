"""The reward ``repetition_penalty``: repeated n-grams of words, as in open-r1 (``repetition_penalty_reward``)."""

from __future__ import annotations

from collections.abc import Sequence

from medr1.domain.records import Record
from medr1.rewards import reward_function


def _check(ngram_size: int, max_penalty: float) -> None:
    if ngram_size < 1:
        raise ValueError(f"ngram_size={ngram_size} must be at least 1")
    if not max_penalty < 0:
        raise ValueError(f"max_penalty={max_penalty} must be negative; it is the reward of endless repetition")


@reward_function("repetition_penalty", check=_check, maximum=0.0)
def repetition_penalty(
    completions: Sequence[str], records: Sequence[Record], *, ngram_size: int = 3, max_penalty: float = -1.0
) -> list[float]:
    """``max_penalty`` times the share of the n-grams of words that repeat an earlier one; 0 if none does.

    (1 - different n-grams / n-grams) * max_penalty (arXiv 2502.03373, appendix C.2). Words are separated by white
    space, in lower case, tags included. A completion of fewer words than an n-gram has 0.

    Range: ``max_penalty`` to 0.

    Settings:
        ngram_size: Words of an n-gram.
        max_penalty: Limit of the penalty, a negative number.
    """
    return [max_penalty * _repeated_share(text.lower().split(), ngram_size) for text in completions]


def _repeated_share(words: Sequence[str], size: int) -> float:
    ngrams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
