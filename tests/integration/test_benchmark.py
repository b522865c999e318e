"""The benchmarks run: medr1 alone, and with TRL if the extra [bench] is installed."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import evaluation, gpu_report, methods
from tests.integration.conftest import ROOT, SMALL_RUN, run_command
from tests.integration.vllm_environment import PYTHON, needs_vllm

SMALL = ("--shape", "tiny", "--image-size", "84", "--max-completion-length", "3", "--device", "cpu")


def benchmark(*arguments: str, name: str = "grpo_step") -> str:
    command = [sys.executable, "-m", f"benchmarks.{name}", *SMALL, "--num-generations", "4", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_our_side_runs_without_the_peer() -> None:
    assert json.loads(benchmark("--memory-of", "medr1").splitlines()[-1])["peak"] > 0


@pytest.mark.long
def test_both_sides_compute_the_same_and_are_timed() -> None:
    pytest.importorskip("trl", reason="the peer (the extra [bench]) is not installed")
    output = benchmark("--steps", "2")
    loss, their_loss, norm, their_norm = map(float, re.findall(r"-?\d+\.\d{6}", output)[:4])
    assert norm > 0.01 and abs(norm - their_norm) < 1e-4 * their_norm and abs(loss - their_loss) < 1e-4
    for line in ("rollout", "reference", "update", "step", "ideal", "memory"):
        assert re.search(rf"^ +{line} .*medr1.*TRL|^ +{line} .*ratio", output, re.MULTILINE), output


def rates(output: str) -> list[list[float]]:
    """The median tokens a second of each engine, in the rows of the table."""
    rows = re.findall(r"^ +4 +[23] (.*)$", output, re.MULTILINE)
    return [[float(rate) for rate in re.findall(r"([\d.]+) \[", row.replace(",", ""))] for row in rows]


@pytest.mark.long
def test_generation_is_measured_without_vllm() -> None:
    output = benchmark("--rounds", "2", "--max-completion-length", "2,3", "--vllm-python", "", name="generation")
    assert "vllm: not measured" in output
    sides = 3 if importlib.util.find_spec("trl") else 2
    assert [len(row) for row in rates(output)] == [sides, sides], output
    assert all(rate > 0 for row in rates(output) for rate in row), output


@pytest.mark.vllm
@needs_vllm
def test_generation_is_measured_with_vllm() -> None:
    output = benchmark("--rounds", "1", "--vllm-python", str(PYTHON), name="generation")
    (row,) = rates(output)
    assert len(row) in (3, 4) and all(rate > 0 for rate in row) and " vllm " in output, output


@pytest.mark.long
def test_the_report_of_a_gpu_in_its_form_for_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    few = ("data.test_images_per_modality=1", "data.train_images_per_modality=4")
    monkeypatch.setattr(sys, "argv", ["gpu_report", *SMALL, "--steps", "2", "--output", str(page), *few])
    gpu_report.main()
    text = page.read_text(encoding="utf-8")
    assert "not measured on a GPU" in text
    for tuning in ("lora", "full"):
        assert re.search(rf"^\| {tuning} \| \d+\.\d+ \| \d+% \| 0\.\d+ \| not measured", text, re.MULTILINE), text
    for size in (4, 8, 16):
        assert re.search(rf"^\| 4 x {size} \| [\d,]+ \| not measured \| [\d,]+ \| \d+%", text, re.MULTILINE), text
    assert re.search(r"mean difference \d\.\d+e-0\d nats", text) and "2 process(es) by gloo: 2 steps" in text


def test_without_a_gpu_the_page_says_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_report", "--device", "cpu", "--output", str(tmp_path / "page.md")])
    gpu_report.main()
    assert (tmp_path / "page.md").read_text(encoding="utf-8").count("Not measured.") == 4
    assert "written" in capsys.readouterr().out


@pytest.mark.long
def test_records_a_second_of_the_engines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MEDR1_VLLM_PYTHON", raising=False)
    few = ("--records", "5", "--batch-size", "3", "--turns", "1")
    monkeypatch.setattr(sys, "argv", ["evaluation", *SMALL, *few])
    evaluation.main()
    printed = capsys.readouterr().out
    assert "server: not measured" in printed
    for name in ("local", "transformers"):
        assert re.search(rf"^ +{name} +\d+\.\d+ \[\d+\.\d+, \d+\.\d+\] +100%", printed, re.MULTILINE), printed


@pytest.mark.long
def test_the_curves_of_the_methods_are_means_over_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    validated = ("data.validation_fraction=0.5", "trainer.eval_steps=1", "tracking=none", f"output_dir={tmp_path}")
    run_command("train.py", "-m", "sweep=headline", *SMALL_RUN, "algorithm=sft", "seed=0,1", *validated)
    (sweep,) = tmp_path.iterdir()
    monkeypatch.setattr(sys, "argv", ["methods", "curves", str(sweep)])
    methods.main()
    lines = [file.read_text().splitlines() for file in sweep.glob("*/metrics.jsonl")]
    last = [next(v for v in map(json.loads, reversed(of_run)) if "validation/accuracy" in v) for of_run in lines]
    values = [100 * line["validation/accuracy"] for line in last]
    row = f"| `sft` | {sum(values) / 2:.1f} [{min(values):.1f}, {max(values):.1f}] |"
    assert len(values) == 2 and row in capsys.readouterr().out


@pytest.mark.long
def test_the_seconds_of_the_methods_have_a_ratio_to_grpo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--method", "sft", "--rounds", "1", "--steps", "4")
    monkeypatch.setattr(sys, "argv", ["methods", "seconds", *given])
    methods.main()
    printed = capsys.readouterr().out
    numbers = re.findall(r"^\| `(\w+)` \| ([\d.]+) \[[\d., ]+\] \| ([\d.]+) ", printed, re.MULTILINE)
    assert [name for name, *_ in numbers] == ["grpo", "sft"] and numbers[0][2] == "1.00"
    assert all(float(seconds) > 0 for _, seconds, _ in numbers)
