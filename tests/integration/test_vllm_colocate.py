"""``rollout=vllm_colocate`` with a real vLLM of the shipped base: ``pytest -m vllm``."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from medr1.config.settings import LoraConfig
from medr1.errors import ServerError
from medr1.generation.engines.local import LocalEngine
from medr1.generation.engines.vllm_colocate import VLLMColocateConfig, VLLMColocateEngine
from medr1.models.adapters import set_trainable
from medr1.models.loading import ModelSpec, load_policy
from medr1.workflows.session import load_data
from tests.integration.conftest import command, only_run
from tests.integration.processes import train_together
from tests.integration.vllm_environment import (
    CFG,
    PYTHON,
    TINY,
    change_weights,
    check_whole,
    count_steps,
    needs_vllm,
    texts,
    wait_for,
)

pytestmark = [pytest.mark.vllm, needs_vllm]
SHARE = 0.1  # of the main memory
WORDS = (
    *("debug=quick", "modality=ct", "reasoning=no_think", "evaluation.limit=1", "trainer.save_steps=2"),
    *("rollout=vllm_colocate", f"rollout.python={PYTHON}", f"rollout.gpu_memory_utilization={SHARE}", "tracking=none"),
)


def config(**more: Any) -> VLLMColocateConfig:
    return VLLMColocateConfig("vllm_colocate", python=str(PYTHON), gpu_memory_utilization=SHARE, **more)


def children(folder: Path) -> list[int]:
    """The processes whose output goes to a log of vLLM below ``folder``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            output = Path(os.readlink(process / "fd" / "1"))
        except OSError:  # it has ended, or belongs to somebody else
            continue
        if output.is_relative_to(folder) and output.name.startswith("vllm"):
            found.append(int(process.name))
    return sorted(found)


def wait_until_none(folder: Path) -> None:
    end = time.monotonic() + 10
    while children(folder):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_greedy_texts_equal_those_of_the_local_engine_also_after_sleep_update_and_kill(tmp_path: Path) -> None:
    policy, processor = load_policy(ModelSpec(str(TINY)))
    set_trainable(policy, lora=LoraConfig(r=4))
    records = load_data(CFG).test[:100]
    engine = VLLMColocateEngine(config())
    with VLLMColocateEngine.opened(engine.config, tmp_path):
        engine.sleep()  # nothing was started yet
        before = texts(policy, processor, records, LocalEngine())
        assert texts(policy, processor, records, engine) == before
        (first, *_) = children(tmp_path)
        engine.sleep()
        assert engine._client.get("/is_sleeping")["is_sleeping"]
        engine.sleep()
        change_weights(policy)
        after = texts(policy, processor, records, LocalEngine())
        assert after != before
        assert texts(policy, processor, records, engine) == after
        assert texts(policy, processor, records, VLLMColocateEngine(config())) == after  # another engine of the run
        assert children(tmp_path)[0] == first
        for process in children(tmp_path)[1:]:  # all but the one that watches
            os.kill(process, signal.SIGKILL)
        engine.sleep()
        assert texts(policy, processor, records, engine) == after
        assert first not in children(tmp_path)
    wait_until_none(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["vllm.log"]


def test_a_vllm_that_does_not_start_is_reported_with_its_log(tmp_path: Path) -> None:
    policy, processor = load_policy(ModelSpec(str(TINY)))
    records = load_data(CFG).test[:1]
    engine = VLLMColocateEngine(config(max_model_length=10**9))
    with VLLMColocateEngine.opened(engine.config, tmp_path), pytest.raises(ServerError) as error:
        texts(policy, processor, records, engine)
    for word in (str(tmp_path / "vllm.log"), "max_model_len", "rollout.gpu_memory_utilization"):
        assert word in str(error.value)


def test_vllm_ends_with_a_training_that_is_killed_and_the_training_goes_on_without_it(tmp_path: Path) -> None:
    process = command("train.py", *WORDS, "trainer.max_steps=6", f"output_dir={tmp_path}")
    wait_for(lambda: count_steps(tmp_path) >= 3, process)
    run = only_run(tmp_path)
    assert children(run.path)
    process.kill()
    process.wait()
    wait_until_none(run.path)
    process = command("train.py", f"resume={run.path}")
    wait_for(lambda: count_steps(tmp_path) >= 4, process)
    os.kill(children(run.path)[-1], signal.SIGKILL)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and "starting vLLM again" in output, output
    check_whole(tmp_path, 6)
    wait_until_none(tmp_path)
    assert not (run.path / ".weights").exists()


def test_each_process_has_a_vllm_of_its_own(tmp_path: Path) -> None:
    more = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_steps=2")
    watched = train_together(2, tmp_path, *WORDS, *more, seconds=800)
    assert len(watched.curves) == 2
    assert all(line["sampling_logp_difference_max"] < 1e-3 for line in watched.curves)
    assert [len({record for record, *_ in step}) for step in watched.completions] == [4, 4]  # two of each process
    assert {file.name for file in tmp_path.glob("**/vllm*.log")} == {"vllm.log", "vllm-1.log"}
    wait_until_none(tmp_path)
