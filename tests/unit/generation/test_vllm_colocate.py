"""``rollout=vllm_colocate`` without vLLM: which interpreters are refused, and what vLLM is started with.

That it generates the completions of the policy is tested with a real vLLM (tests/integration/test_vllm_colocate.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medr1.config.enums import Precision
from medr1.config.settings import ModelConfig
from medr1.errors import ServerError
from medr1.generation.engines.vllm_colocate import VLLMColocateConfig, VLLMColocateEngine, _command, _environment
from medr1.generation.sampling import Sampling

MODEL = ModelConfig("hf", "tiny", "a checkpoint", dtype=Precision.float32)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("#!/bin/sh\necho 0.32.0+cpu", None),
        ("#!/bin/sh\necho 1.0", None),
        ("#!/bin/sh\necho 0.31.4", ["vLLM 0.31.4 is too old"]),
        ("#!/bin/sh\necho 'first\nNo package metadata was found for vllm' >&2; exit 1", ["No package metadata"]),
        ("#!/bin/sh\nexit 3", ["there is no vLLM", "status 3"]),
        ("#!/nowhere", ["cannot be run"]),
        ("no script", ["cannot be run"]),
    ],
    ids=["usable", "newer", "old", "without vLLM", "failing", "interpreter missing", "no program"],
)
def test_an_interpreter_without_a_usable_vllm_is_refused(script: str, words: list[str] | None, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(script)
    python.chmod(0o700)
    config = VLLMColocateConfig("vllm_colocate", python=str(python))
    if words is None:
        VLLMColocateEngine.check_available(config, MODEL)
        return
    with pytest.raises(ServerError) as error:
        VLLMColocateEngine.check_available(config, MODEL)
    for word in (f"rollout.python={python}", 'pip install "vllm>=0.32"', *words):
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        (torch.device("cuda", 1), "3,5", "5"),
        (torch.device("cuda", 1), None, "1"),
        (torch.device("cuda", 0), "GPU-12ab", "GPU-12ab"),
        (torch.device("cpu"), "3,5", "3,5"),
        (torch.device("cpu"), None, None),
    ],
    ids=str,
)
def test_vllm_gets_the_gpu_of_its_process_and_no_settings_of_another_python(
    device: torch.device, visible: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_PORT": "1",
        "PYTHONPATH": ".",
        "HF_HOME": "/hub",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = _environment(device)
    assert found.get("CUDA_VISIBLE_DEVICES") == expected
    assert not {"RANK", "WORLD_SIZE", "MASTER_PORT", "PYTHONPATH"} & found.keys()
    assert (found["HF_HOME"], found["VLLM_SERVER_DEV_MODE"]) == ("/hub", "1")


def test_vllm_starts_with_the_precision_and_the_limits_of_the_run(build: Any) -> None:
    policy, _ = build("qwen2_vl")
    policy.to(torch.bfloat16)
    config = VLLMColocateConfig("vllm_colocate", python="python", gpu_memory_utilization=0.4, max_model_length=900)
    with pytest.raises(ServerError, match=r"model\.path"):
        _command(config, policy, 1)
    policy.core.config.name_or_path = "somebody/model"
    words = " ".join(_command(config, policy, 8000))
    for part in ("serve somebody/model --host 127.0.0.1 --port 8000", "--dtype bfloat16", "--max-model-len 900"):
        assert part in words
    assert "--gpu-memory-utilization 0.4" in words and "--no-enable-chunked-prefill" in words  # on a CPU
    assert "--max-model-len auto" in " ".join(_command(VLLMColocateConfig(python="python"), policy, 1))


def test_completions_outside_of_a_run_are_refused(tiny: Any, make_prompts: Any) -> None:
    policy, processor = tiny("qwen2_vl")
    engine = VLLMColocateEngine(VLLMColocateConfig("vllm_colocate", python="python"))
    engine.sleep()
    with pytest.raises(ValueError, match="opened"):
        engine.generate(policy, processor.encode(make_prompts(processor, [None])), Sampling.greedy(3, processor))
