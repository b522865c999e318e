"""``plan=true`` from the command line, and its memory beside that of real training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.plan_against_measured import Measurement, overrides
from medr1.data.dataset import load_dataset
from medr1.errors import ConfigError
from medr1.planning.device import GIB, Device, find_device
from medr1.planning.memory_ledger import peak_bytes
from medr1.workflows.forecast import check_fits, forecast_memory, refuse_what_cannot_fit
from medr1.workflows.plan import plan
from medr1.workflows.train import train
from tests.integration.conftest import FEW_IMAGES, ROOT, composed, run_command

TINY = ROOT / "medr1" / "models" / "tiny_base"
# A GPU on which the tiny model can be trained and evaluated only with changes.
SMALL = (
    "debug=quick",
    "algorithm=sft",
    "tracking=none",
    "evaluation.batch_size=4",
    "trainer.train_batch_size=3",
    "plan_memory=0.635",
)


def test_validation_counts_where_there_are_more_records_than_in_test() -> None:
    """Both are answered in batches of the same size."""
    few_tested = ("evaluation.limit=1", "evaluation.batch_size=256", "debug=quick", "data.validation_fraction=0.3")
    without, validated = (
        forecast_memory(composed("train", *few_tested, "tracking=none", f"trainer.eval_steps={steps}")).run.work
        for steps in (0, 1)
    )
    assert without.eval_batch_size < validated.eval_batch_size


@pytest.mark.parametrize(
    "setting",
    [
        ["algorithm=grpo"],
        pytest.param(
            [
                "algorithm=grpo",
                "model.tuning=lora",
                "model.gradient_checkpointing=true",
                "trainer.max_tokens_per_device=700",
            ],
            marks=pytest.mark.long,
        ),
    ],
    ids=["grpo", "grpo-lora-checkpointing-split"],
)
def test_memory_is_what_training_takes(setting: list[str], tmp_path: Path) -> None:
    """Counts every tensor of train.py: evaluation, two steps, evaluation.

    Completions are truncated, so that they are as long as the plan assumes.
    """
    short = ("model.recipe.max_completion_length=8", "evaluation.max_completion_length=2", "evaluation.batch_size=8")
    given = overrides(TINY, 168, "cpu", [*setting, *short, *FEW_IMAGES])
    cfg = composed("train", *given)
    ledger = Measurement()
    with ledger:
        train(cfg, tmp_path / "run", given)
    assert forecast_memory(composed("train", *given)).peak == pytest.approx(peak_bytes(ledger.peaks), rel=0.2)


@pytest.mark.long
def test_a_run_that_cannot_fit_is_refused_with_overrides_that_help(tmp_path: Path) -> None:
    given = ("debug=quick", "algorithm=zero_shot", "plan=true", "plan_memory=0.64")
    printed = run_command("train.py", *given, f"output_dir={tmp_path / 'runs'}", status=2)
    assert "does not fit" in printed and re.search(r"^weights +0\.006", printed, re.MULTILINE)
    (batch,) = re.findall(r"^  (evaluation\.batch_size=\d+)$", printed, re.MULTILINE)
    assert forecast_memory(composed("train", *given)).peak > find_device("auto", 1, 0.64).usable_bytes
    assert forecast_memory(composed("train", *given, batch)).peak <= find_device("auto", 1, 0.64).usable_bytes
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_plan_of_several_runs_writes_nothing(tmp_path: Path) -> None:
    printed = run_command(
        *("train.py", "-m", "algorithm=zero_shot", "reasoning=no_think,think_after", "debug=quick", "plan=true"),
        *("plan_memory=2", f"output_dir={tmp_path / 'runs'}"),
    )
    assert printed.count("plan: zero_shot of tiny") == 2 and "[2/2]" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_plan_measures_the_time_of_real_steps(capsys: pytest.CaptureFixture[str]) -> None:
    filtered = ("data.filter.pass_rate=[0.1,0.9]", "data.filter.num_generations=2", "data.train_images_per_modality=1")
    plan(composed("train", "plan=true", "debug=quick", "algorithm=sft", "trainer=cpu", *filtered))
    printed = capsys.readouterr().out
    assert "4 steps" in printed and "fits: " in printed
    assert "before them 80 completions for pass rates" in printed and "leaves fewer questions" in printed
    assert re.search(
        r"^time: about \d+ s: 4 steps of .* \(measured in 4 steps and a batch of predictions on this CPU\)",
        printed,
        re.M,
    )


@pytest.mark.long
def test_a_run_on_a_gpu_is_refused_before_weights_are_loaded() -> None:
    cfg = composed("train", *SMALL, "plan=true")
    with pytest.raises(ConfigError, match="cannot fit") as refusal:
        refuse_what_cannot_fit(cfg, load_dataset(cfg.data, cfg.modality.name, cfg.question_type.name))
    lines = re.findall(r"^  (\S+=.*)$", str(refusal.value), re.MULTILINE)
    assert any(line.startswith("trainer.max_tokens_per_device=") for line in lines), refusal.value
    for line in lines:
        if "devices" not in line:
            assert (
                forecast_memory(composed("train", *SMALL, "plan=true", *line.split())).peak
                <= find_device("auto", 1, 0.635).usable_bytes
            )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["plan_memory=24"], "plan_memory=24"),
        (["plan=true", "algorithm=pretrain", "experiment=tiny_base"], "algorithm=pretrain"),
    ],
)
def test_a_plan_that_makes_no_sense(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed("train", *given)


def test_memory_of_a_device() -> None:
    here, other = find_device("cpu", 1, None), find_device("cpu", 1, 24.0)
    assert 0 < here.usable_bytes <= here.total and not here.on_gpu and here.is_here
    assert 20 * GIB < other.usable_bytes < 24 * GIB and other.on_gpu and not other.is_here
    assert find_device("cpu", 2, None).usable_bytes == pytest.approx(here.usable_bytes / 2, rel=0.2)


def test_an_offloaded_optimizer_must_fit_the_main_memory() -> None:
    forecast = forecast_memory(
        composed("train", "debug=quick", "plan=true", "plan_memory=24", "trainer.optimizer_offload=true")
    )
    enough, none = (Device("GPU", True, 24 * GIB, 24 * GIB, host_bytes=host) for host in (GIB, 1000.0))
    check_fits(forecast, enough)
    with pytest.raises(ConfigError, match=r"keeps 0\.0 GiB in main memory"):
        check_fits(forecast, none)
