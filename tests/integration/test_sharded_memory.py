"""A model whose gathered weights exceed the memory of each process is evaluated and trained in shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration

from medr1.evaluation.predictions import read_predictions
from medr1.models.export import save_policy
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.models.tiny import build_image_processor, build_tokenizer, tiny_config
from medr1.runs.run_directory import RunDirectory
from tests.integration.processes import end, start
from tests.integration.test_distributed import SETTINGS

MIB = 1 << 20
HIDDEN, LAYERS = 512, 60
LIMIT = 780  # MiB of each process, beside what it shares with the process that it was forked from
ROOTS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))  # of the first and of the second version


@contextmanager
def cgroups(names: list[str], limit: int) -> Iterator[list[Path]]:
    """Memory cgroups with a limit in bytes, for one process each."""
    root = next(root for root in ROOTS if root.is_dir())
    limit_file = "memory.limit_in_bytes" if root == ROOTS[0] else "memory.max"
    made = [root / name for name in names]
    try:
        for group in made:
            group.mkdir()
            (group / limit_file).write_text(str(limit))
    except OSError as error:
        pytest.skip(f"this process may not limit the memory of others: {error}")
    try:
        yield made
    finally:
        for group in made:
            group.rmdir()


def store_model(place: Path) -> int:
    """Stores a Qwen2-VL of random weights; their bytes."""
    tokenizer = build_tokenizer(["lung liver A) B) C) D)"] * 4, 320)
    config = tiny_config(tokenizer)
    text = config.text_config
    text.hidden_size = config.vision_config.hidden_size = HIDDEN
    text.intermediate_size, text.num_hidden_layers, text.layer_types = 4 * HIDDEN, LAYERS, ["full_attention"] * LAYERS
    text.num_attention_heads, text.num_key_value_heads = 8, 1
    text.rope_parameters["mrope_section"] = [8, 12, 12]
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config)
    save_policy(Policy(model), Processor(tokenizer, build_image_processor(), model.model.get_rope_index), place)
    return sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.long
@pytest.mark.parametrize("gather", [False, True])
def test_a_model_that_is_larger_than_a_process_may_be(gather: bool, tmp_path: Path) -> None:
    """Gathered in each process, it is killed by the limit."""
    size = store_model(tmp_path / "start")
    assert size > LIMIT * MIB
    words = (
        *SETTINGS,
        f"model.path={tmp_path / 'start'}",
        *("model.tuning=lora", "model.gradient_checkpointing=true", "evaluation.batch_size=8"),
        "trainer=fsdp",
        "trainer.devices=4",
        "trainer.train_batch_size=4",
        "trainer.max_steps=1",
        "algorithm.num_generations=2",
        "algorithm.sampling.max_completion_length=4",
        "evaluation.max_completion_length=4",
        f"trainer.gather_for_generation={str(gather).lower()}",
    )
    names = [f"medr1-{tmp_path.parent.name}-{gather}-{rank}" for rank in range(4)]
    with cgroups(names, LIMIT * MIB) as groups:
        codes = end(start(4, tmp_path, *words, cgroups=groups), timeout=600)
    logs = "".join(log.read_text() for log in sorted(tmp_path.glob("rank*.log")))
    run = RunDirectory(tmp_path / "run")
    if gather:
        assert -9 in codes and not run.model.is_dir()
        return
    assert codes == [0] * 4, logs
    assert all(read_predictions(run.predictions(name)) for name in ("base", "trained"))
    assert json.loads(run.finished.read_text())
