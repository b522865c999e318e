"""``rollout=vllm_server`` with a real vLLM server of the shipped base: ``pytest -m vllm``."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medr1.config.settings import LoraConfig
from medr1.domain.records import Record
from medr1.errors import ServerError
from medr1.generation.engines import ENGINES, Engine
from medr1.generation.engines.local import LocalEngine
from medr1.generation.engines.vllm_server import VLLMServerConfig, fingerprint
from medr1.generation.logprobs import completion_hidden
from medr1.generation.sampling import Sampling, warped_log_probs
from medr1.models.adapters import set_trainable
from medr1.models.loading import ModelSpec, load_policy
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.workflows.session import load_data
from tests.docs.test_metrics import OF_VLLM, documented, logged
from tests.integration.conftest import command, only_run, read_json, train_here
from tests.integration.processes import train_together
from tests.integration.vllm_environment import (
    CFG,
    TINY,
    VLLM,
    change_weights,
    check_whole,
    count_steps,
    encode,
    needs_vllm,
    read_metrics,
    texts,
    wait_for,
)

pytestmark = [pytest.mark.vllm, needs_vllm]


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLM]:
    server = VLLM(tmp_path_factory.mktemp("vllm") / "server.log")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def engine(vllm: VLLM, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    weights = str(tmp_path_factory.mktemp("weights"))
    return ENGINES["vllm_server"](VLLMServerConfig("vllm_server", url=vllm.url, weights_dir=weights, timeout=120.0))


@pytest.fixture(scope="module")
def records() -> list[Record]:
    records = load_data(CFG).test
    assert len(records) >= 400
    return records


@pytest.fixture(params=["full", "lora"])
def loaded(request: pytest.FixtureRequest) -> tuple[Policy, Processor]:
    policy, processor = load_policy(ModelSpec(str(TINY)))
    torch.manual_seed(0)
    set_trainable(policy, lora=LoraConfig(r=4) if request.param == "lora" else None)
    return policy, processor


def test_greedy_texts_equal_those_of_the_local_engine_before_and_after_an_update(
    loaded: tuple[Policy, Processor], records: list[Record], engine: Engine
) -> None:
    policy, processor = loaded
    before = texts(policy, processor, records, LocalEngine())
    assert texts(policy, processor, records, engine) == before
    change_weights(policy)
    weights = {name: p.clone() for name, p in policy.named_parameters()}
    after = texts(policy, processor, records, LocalEngine())
    assert sum(a != b for a, b in zip(before, after, strict=True)) > 100
    assert texts(policy, processor, records, engine) == after
    assert all(torch.equal(p, weights[name]) for name, p in policy.named_parameters())


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.7, 1.0, 0), (1.0, 0.8, 0), (1.5, 1.0, 5), (1.2, 0.9, 20)]
)
@torch.no_grad()
def test_samples_have_the_log_probabilities_of_the_policy(
    temperature: float,
    top_p: float,
    top_k: int,
    loaded: tuple[Policy, Processor],
    records: list[Record],
    engine: Engine,
) -> None:
    policy, processor = loaded
    change_weights(policy)
    prompts = encode(processor, records[:24])
    suppressed = tuple(processor.suppressed_token_ids())
    sampling = Sampling(30, processor.eos_token_id, suppressed, temperature, top_p, top_k)
    uniforms = torch.from_numpy(np.random.default_rng(0).random((24 * 4, 30)))
    found = engine.generate(policy, prompts, sampling, 4, uniforms)
    hidden = completion_hidden(policy, policy.prefill(prompts), found.ids, found.mask)
    log_p = warped_log_probs(policy.logits(hidden[found.mask]), sampling, torch.tensor(suppressed))
    expected = log_p.gather(-1, found.ids[found.mask].unsqueeze(-1)).squeeze(-1)
    assert (found.logprobs[found.mask] - expected).abs().max() < 1e-3
    assert not set(found.ids[found.mask].tolist()) & set(suppressed)
    ended = [row[-1] == processor.eos_token_id for row in found.token_ids()]
    assert found.truncated.tolist() == [not e for e in ended] and any(ended)
    assert len({tuple(row) for row in found.token_ids()[:4]}) > 1
    again = engine.generate(policy, prompts, sampling, 4, uniforms)
    assert again.token_ids() == found.token_ids()
    others = engine.generate(policy, prompts, sampling, 4, 1 - uniforms)
    assert others.token_ids() != found.token_ids()


def test_another_model_or_tokenizer_is_refused_and_leaves_the_server_usable(
    records: list[Record], engine: Engine, build: Any, make_prompts: Any
) -> None:
    policy, processor = load_policy(ModelSpec(str(TINY)))
    greedy = Sampling.greedy(8, processor)
    prompts = encode(processor, records[:2])
    expected = LocalEngine().generate(policy, prompts, greedy).token_ids()
    other, other_processor = build("qwen2_vl")
    with pytest.raises(ServerError, match="another model"):
        engine.generate(other, other_processor.encode(make_prompts(other_processor, [(2, 2)])), greedy)
    changed = encode(processor, records[:2])
    changed.ids[1, -1] += 1
    with pytest.raises(ServerError, match=r"tokens of a prompt.*model\.path"):
        engine.generate(policy, changed, greedy)
    assert engine.generate(policy, prompts, greedy).token_ids() == expected


def test_weights_that_another_run_has_sent_are_not_used(records: list[Record], engine: Engine) -> None:
    policy, processor = load_policy(ModelSpec(str(TINY)))
    other, _ = load_policy(ModelSpec(str(TINY)))
    change_weights(other)
    prompts, greedy = encode(processor, records[:8]), Sampling.greedy(20, processor)
    expected = LocalEngine().generate(policy, prompts, greedy).token_ids()
    assert fingerprint(policy) != fingerprint(other)
    client, post, intruded = engine._client, engine._client.post, []  # type: ignore[attr-defined]

    def intruding_post(path: str, body: Any) -> Any:
        """After the first completion another run sends its weights."""
        reply = post(path, body)
        if path == "/v1/chat/completions" and not intruded:
            intruded.append(path)
            engine._send_weights(other, fingerprint(other))  # type: ignore[attr-defined]
        return reply

    client.post = intruding_post
    try:
        assert engine.generate(policy, prompts, greedy).token_ids() == expected and intruded
    finally:
        client.post = post


def run_words(vllm: VLLM, *more: str) -> tuple[str, ...]:
    words = ("debug=quick", "modality=ct", "reasoning=no_think", "evaluation.limit=1", "trainer.save_steps=2")
    return (*words, "rollout=vllm_server", f"rollout.url={vllm.url}", *more)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_grpo_trains_and_logs_how_the_samplers_differ(tuning: str, vllm: VLLM, tmp_path: Path) -> None:
    more = (f"model.tuning={tuning}", "trainer.max_steps=3", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    run = train_here(tmp_path / "run", *run_words(vllm, *more))
    steps = [line for line in read_metrics(run.metrics) if "grad_norm" in line]
    assert len(steps) == 3
    for line in steps:
        assert 0 < line["sampling_logp_difference_max"] < 1e-3
        assert abs(line["importance_sampling_ratio"] - 1) < 1e-3
    found = {name for name in logged(run.path) if not name.startswith("system/")}
    sections = ("Training: GRPO", OF_VLLM, "Evaluation")
    assert found == set().union(*map(documented, sections))
    assert not list((tmp_path / ".weights").glob("*/*"))


def test_two_processes_send_the_weights_once_and_each_its_prompts(vllm: VLLM, tmp_path: Path) -> None:
    more = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_steps=2", "tracking=none")
    before = loads(vllm)
    watched = train_together(2, tmp_path, *run_words(vllm, *more))
    assert len(watched.curves) == 2
    assert all(line["sampling_logp_difference_max"] < 1e-3 for line in watched.curves)
    assert [len({record for record, *_ in step}) for step in watched.completions] == [4, 4]  # two of each process
    assert loads(vllm) - before in (2, 3)  # after each step, and the base if the server has other weights


def loads(vllm: VLLM) -> int:
    """How often the server has loaded weights."""
    return vllm.log.read_text().count("Reloading and processing weights took")


def test_a_run_ends_without_its_server_and_is_resumed(vllm: VLLM, tmp_path: Path) -> None:
    more = ("trainer.max_steps=6", "tracking=none", f"output_dir={tmp_path}", "rollout.timeout=3")
    process = command("train.py", *run_words(vllm, *more))
    wait_for(lambda: count_steps(tmp_path) >= 3, process)
    vllm.kill()
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 2 and "resume=" in output and "Traceback" not in output, output
    refused = command("train.py", f"resume={only_run(tmp_path).path}")
    output, _ = refused.communicate(timeout=240)
    assert refused.returncode == 2 and "VLLM_SERVER_DEV_MODE=1 vllm serve" in output, output
    vllm.start()
    process = command("train.py", f"resume={only_run(tmp_path).path}", "rollout.timeout=100")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    check_whole(tmp_path, 6)
    assert read_json(only_run(tmp_path).finished)


def test_kills_at_random_moments_leave_whole_predictions(vllm: VLLM, tmp_path: Path) -> None:
    """Five times the training, the server or both are killed. The server is started and the training resumed."""
    rng, steps = random.Random(2), 10
    victims = ["trainer", "trainer", "trainer", "server", "both"]
    rng.shuffle(victims)
    words = run_words(vllm, f"trainer.max_steps={steps}", "tracking=none", f"output_dir={tmp_path}")
    process = command("train.py", *words)
    for kill, victim in enumerate(victims):
        step = 2 * kill + rng.randint(0, 1)
        if victim == "server":  # a run does not start without one
            step = max(step, count_steps(tmp_path) + 1)
        while count_steps(tmp_path) < step:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 2))  # also at the start, in the evaluation, and after the end of a run
        if victim != "trainer":
            vllm.kill()
        if victim != "server":
            process.kill()
            process.communicate()
        if victim != "trainer":
            vllm.start()
        if victim != "server":
            started = list(tmp_path.glob("*/config.yaml"))
            process = command("train.py", *([f"resume={started[0].parent}"] if started else words))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "is back" in only_run(tmp_path).log.read_text()
    check_whole(tmp_path, steps)


def test_the_first_weights_are_sent_again_after_a_restart(vllm: VLLM, records: list[Record], engine: Engine) -> None:
    policy, processor = load_policy(ModelSpec(str(TINY)))
    change_weights(policy)
    prompts, greedy = encode(processor, records[:8]), Sampling.greedy(20, processor)
    first = engine.generate(policy, prompts, greedy).token_ids()
    vllm.kill()
    vllm.start()
    assert engine.generate(policy, prompts, greedy).token_ids() == first
