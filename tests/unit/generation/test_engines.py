"""Rollout engines: the local one, and what a further one has to be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch
from PIL import Image

from medr1.config.enums import Distribution
from medr1.config.settings import ModelConfig, TrainerConfig
from medr1.errors import ConfigError
from medr1.generation.engines import ENGINES, Engine
from medr1.generation.rollout import rollout
from medr1.generation.sampling import Sampling

SIZES = [(2, 2), None, (3, 1)]


@torch.no_grad()
def test_the_local_engine_decodes_prompts_or_their_prefix(tiny, make_prompts) -> None:
    policy, processor = tiny("qwen2_vl")
    prompts = processor.encode(make_prompts(processor, SIZES))
    sampling = Sampling(6, processor.eos_token_id, tuple(processor.suppressed_token_ids()))
    uniforms = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    prefix = policy.prefill(prompts)
    engine: Engine = ENGINES["local"]()
    expected = rollout(policy, prefix, sampling, 2, uniforms)
    for found in (
        engine.generate(policy, prompts, sampling, 2, uniforms),
        engine.generate(policy, prompts, sampling, 2, uniforms, prefix),
    ):
        assert torch.equal(found.ids, expected.ids) and torch.equal(found.logprobs, expected.logprobs)


def test_cuda_graphs_that_cannot_be_are_refused() -> None:
    engine = ENGINES["local"]
    config = engine.settings(cuda_graphs=True)  # type: ignore[call-arg]
    engine.check(config, TrainerConfig(accelerator="gpu"))
    for trainer, message in (
        (TrainerConfig(accelerator="cpu"), "accelerator=gpu"),
        (TrainerConfig(strategy=Distribution.fsdp), "strategy=fsdp"),
    ):
        with pytest.raises(ConfigError, match=message):
            engine.check(config, trainer)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="needs a GPU, and torch finds none"):
            engine.check_available(config, ModelConfig())


def test_prompts_keep_the_texts_and_images_that_another_engine_needs(tiny) -> None:
    _, processor = tiny("qwen2_vl")
    first, second = (Image.new("RGB", (28, 28), colour) for colour in ("black", "white"))
    prompts = [
        processor.user_prompt("Which?", [first]),
        processor.user_prompt("Which?", []),
        processor.user_prompt("Is <image 2> older than <image 1>?", [first, second]),
    ]
    expected = [(first, "Which?"), ("Which?",), ("Is ", second, " older than ", first, "?")]
    batch = processor.encode(prompts)
    for rows in ([0, 1, 2], [2, 0]):
        found = batch.select(rows).to(torch.device("cpu")).parts
        for parts, row in zip(found, rows, strict=True):
            assert all(a is b or a == b for a, b in zip(parts, expected[row], strict=True))


@pytest.fixture
def remote() -> Iterator[type]:
    @ENGINES.register
    class Remote(Engine):
        kind: ClassVar[str] = "remote"

    yield Remote
    del ENGINES._components["remote"]


def test_an_engine_is_found_by_its_kind(remote: type) -> None:
    assert ENGINES["remote"] is remote and {engine.kind for engine in ENGINES} == {
        *("local", "remote", "vllm_colocate", "vllm_server")
    }
    with pytest.raises(ConfigError, match="local"):
        ENGINES["locale"]


def test_engines_are_known_without_torch() -> None:
    code = "import sys, medr1.generation.engines; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
