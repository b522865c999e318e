"""Processes that each hold a shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.strategies import DDPStrategy

from medr1.training.distributed import ShardedStrategy


@pytest.mark.parametrize("keys", [("state_dict", "optimizer_states"), ("state_dict",)])
def test_every_process_gathers_in_the_same_order(
    keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each gathers when all do, so that another order ends the run."""
    gathered: list[Any] = []
    monkeypatch.setattr(DDPStrategy, "save_checkpoint", lambda *_, **__: None)
    monkeypatch.setattr(ShardedStrategy, "_full_tensors", lambda _, tree, directory: gathered.append(tree))
    ShardedStrategy().save_checkpoint({key: key for key in (*reversed(keys), "epoch")}, tmp_path)
    assert gathered == list(keys)
