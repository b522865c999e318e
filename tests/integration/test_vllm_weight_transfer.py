"""``rollout.weight_transfer=gloo`` with a real vLLM server: ``pytest -m vllm``."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from medr1.config.enums import WeightTransfer
from medr1.config.settings import LoraConfig
from medr1.domain.records import Record
from medr1.generation import weight_transfer
from medr1.generation.engines import ENGINES, Engine
from medr1.generation.engines.local import LocalEngine
from medr1.generation.engines.vllm_server import VLLMServerConfig
from medr1.generation.sampling import Sampling
from medr1.models.adapters import set_trainable
from medr1.models.export import checkpoint_state
from medr1.models.loading import ModelSpec, load_policy
from medr1.workflows.session import load_data
from tests.integration.conftest import train_here
from tests.integration.processes import train_together
from tests.integration.vllm_environment import (
    CFG,
    TINY,
    VLLM,
    change_weights,
    encode,
    needs_vllm,
    read_metrics,
    texts,
)

pytestmark = [pytest.mark.vllm, needs_vllm]


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLM]:
    server = VLLM(tmp_path_factory.mktemp("vllm") / "server.log", receives=True)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return load_data(CFG).test[:80]


def new_engine(vllm: VLLM, directory: Path) -> Engine:
    config = VLLMServerConfig("vllm_server", url=vllm.url, weights_dir=str(directory), timeout=120.0)
    config.weight_transfer = WeightTransfer.gloo
    return ENGINES["vllm_server"](config)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_server_generates_with_the_weights_that_were_sent(
    tuning: str, vllm: VLLM, records: list[Record], tmp_path: Path
) -> None:
    policy, processor = load_policy(ModelSpec(str(TINY)))
    torch.manual_seed(0)
    set_trainable(policy, lora=LoraConfig(r=4) if tuning == "lora" else None)
    engine = new_engine(vllm, tmp_path)
    before = texts(policy, processor, records, engine)
    assert before == texts(policy, processor, records, LocalEngine())
    change_weights(policy)
    after = texts(policy, processor, records, engine)
    assert after == texts(policy, processor, records, LocalEngine())
    assert sum(a != b for a, b in zip(before, after, strict=True)) > 20
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("at", ["visual.blocks.0.mlp.fc1.bias", "language_model.layers.0.self_attn.v_proj.weight"])
def test_a_training_that_ends_in_a_transfer_leaves_the_server_usable(
    at: str, vllm: VLLM, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with half of a layer sent, which vLLM must not mix with the next weights."""
    policy, processor = load_policy(ModelSpec(str(TINY)))
    prompts, greedy = encode(processor, records[:8]), Sampling.greedy(20, processor)
    engine, send, sent = new_engine(vllm, tmp_path), weight_transfer._send, []
    last = next(i for i, name in enumerate(checkpoint_state(policy)) if name.endswith(at))

    def end(*arguments: Any) -> None:
        sent.append(1)
        if len(sent) > last:
            raise KeyboardInterrupt
        send(*arguments)

    change_weights(policy, 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(weight_transfer, "_send", end)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(policy, prompts, greedy)
    assert len(sent) == last + 1
    policy, _ = load_policy(ModelSpec(str(TINY)))
    change_weights(policy)
    expected = LocalEngine().generate(policy, prompts, greedy).token_ids()
    assert new_engine(vllm, tmp_path).generate(policy, prompts, greedy).token_ids() == expected


def test_a_server_that_ends_in_a_transfer_gets_all_weights_when_it_is_back(
    vllm: VLLM, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, processor = load_policy(ModelSpec(str(TINY)))
    change_weights(policy, 0.01)
    prompts, greedy = encode(processor, records[:8]), Sampling.greedy(20, processor)
    expected = LocalEngine().generate(policy, prompts, greedy).token_ids()
    send, sent = weight_transfer._send, []
    restart = threading.Thread(target=lambda: (time.sleep(2), vllm.start()))

    def kill_after_ten(*arguments: Any) -> None:
        sent.append(1)
        if len(sent) == 10:
            vllm.kill()
            restart.start()
        send(*arguments)

    monkeypatch.setattr(weight_transfer, "_send", kill_after_ten)
    assert new_engine(vllm, tmp_path).generate(policy, prompts, greedy).token_ids() == expected
    restart.join()
    assert len(sent) > 10


def run_words(vllm: VLLM, *more: str) -> tuple[str, ...]:
    words = ("debug=quick", "modality=ct", "reasoning=no_think", "evaluation.limit=1", "tracking=none")
    return (*words, "rollout=vllm_server", f"rollout.url={vllm.url}", "rollout.weight_transfer=gloo", *more)


def test_grpo_trains(vllm: VLLM, tmp_path: Path) -> None:
    run = train_here(tmp_path / "run", *run_words(vllm, "trainer.max_steps=3"))
    steps = [line for line in read_metrics(run.metrics) if "grad_norm" in line]
    assert len(steps) == 3
    assert all(0 < line["sampling_logp_difference_max"] < 1e-3 for line in steps)


def test_two_processes_train(vllm: VLLM, tmp_path: Path) -> None:
    more = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_steps=2")
    watched = train_together(2, tmp_path, *run_words(vllm, *more))
    assert len(watched.curves) == 2
    assert all(line["sampling_logp_difference_max"] < 1e-3 for line in watched.curves)
