"""With FSDP, four processes evaluate a model whose gathered weights do not fit into the memory that one may use.

Linux kills a process that needs more than the limit of its control group.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from medr1.evaluation.predictions import read_predictions
from medr1.models.export import save_policy
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.models.tiny import build_image_processor, build_tokenizer, initialize, tiny_config
from medr1.runs.run_directory import RunDirectory
from medr1.training.base_mixture import corpus
from tests.integration.conftest import SMALL_RUN
from tests.integration.processes import start

pytestmark = pytest.mark.long

MIB = 1 << 20
LIMIT = 400 * MIB
HIDDEN, LAYERS, FEED_FORWARD = 768, 13, 2816
CONTROL_GROUPS = Path("/sys/fs/cgroup")
SETTINGS = (
    *SMALL_RUN,
    "algorithm=zero_shot",
    "trainer=fsdp",
    "trainer.devices=4",
    "trainer.accelerator=cpu",
    "evaluation.max_completion_length=3",
    "evaluation.blank_image=false",
    "tracking=none",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2-VL with random weights, larger than ``LIMIT``."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer(corpus(0), 768)
    config = tiny_config(tokenizer).to_dict()
    config["text_config"] |= {
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "max_window_layers": LAYERS,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "layer_types": ["full_attention"] * LAYERS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [16, 24, 24]},
    }
    config["vision_config"] |= {"hidden_size": HIDDEN}
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(config))
    initialize(model, 0)
    assert sum(p.numel() * p.element_size() for p in model.parameters()) > LIMIT
    processor = Processor(tokenizer, build_image_processor(), model.model.get_rope_index)
    save_policy(Policy(model), processor, folder)
    return folder


@pytest.fixture
def groups(tmp_path: Path) -> Iterator[list[Path]]:
    """Four control groups with ``LIMIT`` bytes of memory each."""
    version_1 = (CONTROL_GROUPS / "memory").is_dir()
    parent = CONTROL_GROUPS / "memory" if version_1 else CONTROL_GROUPS
    made = [parent / f"medr1_{tmp_path.name}_{rank}" for rank in range(4)]
    try:
        for group in made:
            group.mkdir()
            (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(LIMIT))
    except OSError as error:
        pytest.skip(f"control groups with a memory limit cannot be made: {error}")
    yield made
    for group in made:
        group.rmdir()


def run(checkpoint: Path, folder: Path, groups: list[Path], *overrides: str) -> list[int | None]:
    """The exit codes. When the first process fails the others are killed, which would wait for it."""
    words = (*SETTINGS, "model=hf", f"model.path={checkpoint}", *overrides)
    processes = start(4, folder, *words, groups=groups)
    deadline = time.monotonic() + 400
    while any(p.is_alive() for p in processes) and not any(p.exitcode for p in processes):
        assert time.monotonic() < deadline, "".join(log.read_text() for log in sorted(folder.glob("rank*.log")))
        time.sleep(0.1)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def test_it_is_evaluated_in_shards(checkpoint: Path, groups: list[Path], tmp_path: Path) -> None:
    assert run(checkpoint, tmp_path, groups) == [0] * 4, (tmp_path / "rank0.log").read_text()
    stored = RunDirectory(tmp_path / "run")
    assert stored.finished.exists() and len(read_predictions(stored.predictions("base"))) == 40


def test_gathered_it_does_not_fit(checkpoint: Path, groups: list[Path], tmp_path: Path) -> None:
    codes = run(checkpoint, tmp_path, groups, "trainer.gather_for_generation=true")
    assert -9 in codes and not RunDirectory(tmp_path / "run").predictions("base").exists()
