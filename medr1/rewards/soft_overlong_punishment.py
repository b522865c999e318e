"""The reward ``soft_overlong_punishment`` of DAPO (arXiv 2503.14476, equation 13), with TRL's names."""

from __future__ import annotations

from collections.abc import Sequence

from medr1.domain.records import Record
from medr1.rewards import reward_function


def _check(max_completion_len: int, soft_punish_cache: int) -> None:
    if not 0 < soft_punish_cache <= max_completion_len:
        raise ValueError(f"soft_punish_cache={soft_punish_cache} must lie between 1 and {max_completion_len=}")


@reward_function("soft_overlong_punishment", check=_check, maximum=0.0)
def soft_overlong_punishment(
    completions: Sequence[str],
    records: Sequence[Record],
    *,
    completion_ids: Sequence[Sequence[int]],
    max_completion_len: int,
    soft_punish_cache: int = 8,
) -> list[float]:
    """0 for a completion of at most L_max - L_cache tokens, then falling linearly to -1 at L_max tokens.

    (L_max - L_cache - tokens) / L_cache in between, and -1 above L_max (DAPO, arXiv 2503.14476, equation 13). Tokens
    include the EOS token.

    Range: -1 to 0.

    Settings:
        max_completion_len: L_max in tokens, ``${algorithm.sampling.max_completion_length}``.
        soft_punish_cache: L_cache in tokens, the last part of L_max, in which the punishment grows.
    """
    allowed = max_completion_len - soft_punish_cache
    return [max(-1.0, min(0.0, (allowed - len(ids)) / soft_punish_cache)) for ids in completion_ids]
