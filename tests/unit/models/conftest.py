"""Checkpoints of each model family on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from medr1.models.export import save_policy
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from tests.conftest import FAMILIES


@pytest.fixture(scope="session", params=FAMILIES)
def saved(request, build, tmp_path_factory) -> tuple[Path, Policy, Processor]:
    """A checkpoint, and the policy that was saved in it."""
    policy, processor = build(request.param, seed=5)
    path = tmp_path_factory.mktemp("checkpoint") / request.param
    save_policy(policy, processor, path)
    return path, policy, processor


@pytest.fixture(scope="session")
def base(build, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("base") / "checkpoint"
    save_policy(*build("qwen2_vl", seed=6), path)
    return path
