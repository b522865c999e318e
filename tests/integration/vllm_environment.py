"""A real vLLM of the shipped base, and what the tests with it share.

It runs in an environment of its own, whose python is $MEDR1_VLLM_PYTHON (docs/guides/rollout.md).
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from medr1.data.image_loader import cached_image_loader
from medr1.data.image_size import ImageSize
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.evaluation.local_predictions import predict
from medr1.evaluation.prediction_store import partial_file
from medr1.evaluation.predictions import read_predictions
from medr1.generation import vllm_worker
from medr1.generation.child_process import ChildProcess, free_port
from medr1.generation.engines import Engine
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.models.tensors import PromptBatch
from tests.composing import composed
from tests.integration.conftest import ROOT, only_run

PYTHON = os.environ.get("MEDR1_VLLM_PYTHON")
needs_vllm = pytest.mark.skipif(not PYTHON, reason="no vLLM environment: MEDR1_VLLM_PYTHON=ENVIRONMENT/bin/python")
TINY = ROOT / "medr1" / "models" / "tiny_base"
CFG = composed("train", "data.test_images_per_modality=11", "data.train_images_per_modality=1")


class VLLM:
    """A vLLM server of the shipped base. ``receives``: it takes weights over a process group."""

    def __init__(self, log: Path, receives: bool = False) -> None:
        self.log, self.receives = log, receives
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        words = [str(Path(str(PYTHON)).with_name("vllm")), "serve", str(TINY), "--dtype", "float32"]
        words += ["--host", "127.0.0.1", "--port", str(self.port), "--logprobs-mode", "processed_logprobs"]
        words += ["--max-model-len", "1024", "--enforce-eager", "--max-num-seqs", "64", "--no-enable-chunked-prefill"]
        environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
        if self.receives:
            words += ["--worker-extension-cls", "medr1_weights.WeightReceiver"]
            environment["PYTHONPATH"] = str(Path(vllm_worker.__file__).parent)
        self.process = ChildProcess(words, self.log, environment)
        end = time.monotonic() + 300
        while not self.answers():
            assert self.process.is_running and time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.5)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        self.process.kill()


@torch.no_grad()
def change_weights(policy: Policy, scale: float = 0.02) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def encode(processor: Processor, records: list[Record]) -> PromptBatch:
    load = cached_image_loader(ImageSize.from_config(CFG.data, CFG.model))
    return processor.encode([processor.prompt(r, ReasoningMode.THINK_BEFORE, load(r)) for r in records])


def texts(policy: Policy, processor: Processor, records: list[Record], engine: Engine) -> list[str]:
    load = cached_image_loader(ImageSize.from_config(CFG.data, CFG.model))
    mode = ReasoningMode.THINK_BEFORE
    settings: dict[str, Any] = {"load": load, "batch_size": 64, "max_completion_length": 40, "engine": engine}
    return [p.text for p in predict(policy, processor, records, mode, "base", **settings)]


def read_metrics(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0][-3000:]
        time.sleep(0.05)


def count_steps(output_dir: Path) -> int:
    files = list(output_dir.glob("*/metrics.jsonl"))
    return len(files[0].read_text().splitlines()) if files else 0


def check_whole(output_dir: Path, steps: int) -> None:
    run = only_run(output_dir)
    lines = [line for line in read_metrics(run.metrics) if "grad_norm" in line]
    assert [line["step"] for line in lines] == list(range(steps))
    assert max(line["sampling_logp_difference_max"] for line in lines) < 1e-3
    for name in ("base", "trained"):
        ids = [p.record for p in read_predictions(run.predictions(name))]
        assert len(ids) == len(set(ids)) == 40 and not partial_file(run.predictions(name)).exists()
