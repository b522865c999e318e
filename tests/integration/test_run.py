"""One run from the command line: everything that is written and shown says the same, and can be computed again."""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from collections import Counter
from html import unescape
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.artifacts import download_artifacts
from mlflow.tracking import MlflowClient
from PIL import Image
from safetensors.torch import load_file

from medr1.ask import main as ask
from medr1.config.settings import TrainConfig
from medr1.data.dataset import load_dataset
from medr1.data.sources.phantoms.records import World, make_records
from medr1.evaluation.image_ablation import shuffled_images
from medr1.evaluation.metrics import compare, metric_items, summarise
from medr1.evaluation.predictions import Condition, read_predictions
from medr1.models.loading import load_policy
from medr1.runs.run_directory import RunDirectory
from medr1.tracking.address import stored_run
from medr1.workflows.evaluate import evaluate
from medr1.workflows.local_model import model_spec
from tests.composing import composed
from tests.integration.conftest import (
    FEW_IMAGES,
    MINI,
    SMALL_RUN,
    TWO_IMAGES,
    needs_mini,
    only_run,
    read_json,
    run_command,
    train_here,
)

THINK = ("modality=mri", "reasoning=think_after")
CONDITIONS = [condition.value for condition in Condition]


def client_and_run(run: RunDirectory):
    stored = stored_run(run.path)
    assert stored is not None
    client = MlflowClient(tracking_uri=stored.uri)
    return client, client.get_run(stored.run_id)


def test_numbers_agree_between_predictions_summary_table_and_mlflow(finished: tuple[RunDirectory, str]) -> None:
    run, printed = finished
    summary, (_, tracked) = read_json(run.summary), client_and_run(run)
    predictions = {name: read_predictions(run.predictions(name)) for name in CONDITIONS}
    computed = {name: summarise(lines) for name, lines in predictions.items()}
    for name in CONDITIONS:
        assert summary["conditions"][name] == json.loads(json.dumps(computed[name].to_dict()))
    comparison = compare(predictions["base"], predictions["trained"])
    for metric, value in metric_items(computed, comparison):
        assert tracked.data.metrics[metric] == pytest.approx(value, abs=1e-12)
    overall = summary["conditions"]["trained"]["overall"]
    line = next(line for line in printed.splitlines() if line.startswith("All questions"))
    assert f"{100 * overall['accuracy']['value']:.1f}" in line and str(overall["n"]) in line
    assert max(map(len, printed.split("By modality")[1].split("run directory")[0].splitlines())) <= 100


def test_mlflow_has_curves_parameters_files_and_a_finished_status(finished: tuple[RunDirectory, str]) -> None:
    run, printed = finished
    client, tracked = client_and_run(run)
    assert tracked.info.status == "FINISHED"
    rewards = ("train/reward", "train/accuracy_reward", "train/format_reward", "reward_std")
    for name in (*rewards, "kl", "entropy", "completion_length", "completion_clipped_ratio"):
        assert [m.step for m in client.get_metric_history(tracked.info.run_id, name)] == [0, 1, 2, 3]
    for name in ("frac_reward_zero_std", "grad_norm", "learning_rate", "rollout_time", "step_time", "data_time"):
        assert name in tracked.data.metrics
    parameters = tracked.data.params
    assert parameters["modality.name"] == "mri" and parameters["reasoning.mode"] == "think_after"
    assert parameters["algorithm.objective.loss_agg_mode"] == "token_mean"
    assert parameters["data_fingerprint"] == read_json(run.summary)["data_fingerprint"]
    files = {f.path for f in client.list_artifacts(tracked.info.run_id)}
    assert {"config.yaml", "environment.json", "overrides.yaml", "summary.json", "results.md", "predictions"} <= files
    assert {"completions.json", "report.html", "gallery.html"} <= files
    assert "mlflow ui --backend-store-uri sqlite:////" in printed


def test_the_gallery_shows_questions_with_their_images_and_the_completions_before_and_after(
    finished: tuple[RunDirectory, str],
) -> None:
    run, _ = finished
    page = run.gallery.read_text(encoding="utf-8")
    images = [base64.b64decode(code) for code in re.findall(r' src="data:image/webp;base64,([^"]*)"', page)]
    text = re.sub(r' src="data:[^"]*"', "", page)
    assert "http" not in text and " src=" not in text and " href=" not in text, "nothing is loaded"
    assert "<answer>" not in text and "24 of 80 test questions" in text
    cards = text.split("<article>")[1:]
    assert len(cards) == len(images) == 24
    records = {record.id: record for record in make_records(World.TEST, 0, 80)}
    sources = {record.image_key: record.images[0] for record in records.values()}
    originals = {key: np.asarray(source.load(84)) for key, source in sources.items()}
    conditions = ("base", "trained", "blank_image")
    predictions = [{p.record: p for p in read_predictions(run.predictions(name))} for name in conditions]
    shown = []
    for card, image in zip(cards, images, strict=True):
        (name,) = re.findall(r'<div class="record">(.*)</div>', card)
        shown.append(record := records[name])
        own = [of[name] for of in predictions]
        assert [unescape(code) for code in re.findall("<code>(.*?)</code>", card, re.DOTALL)] == [p.text for p in own]
        labels = [f"{p.condition.replace('_', ' ')}, {'correct' if p.correct else 'wrong'}" for p in own]
        assert re.findall('<span class="label">(.*?)</span>', card) == labels
        assert record.question in unescape(card) and f"<b>{record.answer}) {record.answer_text}</b>" in unescape(card)
        pixels = np.asarray(Image.open(BytesIO(image)), dtype=float)
        distance = {key: np.abs(pixels - other).mean() for key, other in originals.items()}
        assert min(distance, key=distance.__getitem__) == record.image_key
    assert len({(record.modality, record.question_type) for record in shown}) == 24


def test_the_log_says_what_the_run_does_and_holds_what_was_printed(finished: tuple[RunDirectory, str]) -> None:
    run, printed = finished
    lines = run.log.read_text(encoding="utf-8").splitlines()
    records = len(load_dataset(run.stored_config(TrainConfig).data, "mri", "all").train)
    for words in ("model tiny on cpu", "grpo", "4 steps of 4 prompts", f"phantoms with {records} training and 80 test"):
        assert words in lines[0]
    assert lines[0].endswith(f"run directory {run.path}")
    shown = [line for line in printed.splitlines() if "it/s" not in line]  # updates of the progress bar
    assert [line for line in shown if line and line not in lines] == []
    assert not (run.path / "train.log").exists()


@pytest.mark.long
def test_the_curves_are_on_disk_whatever_the_tracking_is(finished: tuple[RunDirectory, str], tmp_path: Path) -> None:
    run, _ = finished
    client, tracked = client_and_run(run)
    points = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [point["step"] for point in points] == [0, 1, 2, 3]
    for name in ("train/reward", "policy_loss", "skipped_steps", "step_time"):
        history = client.get_metric_history(tracked.info.run_id, name)
        assert [m.value for m in sorted(history, key=lambda m: m.step)] == [point[name] for point in points]
    other = train_here(tmp_path / "run", "debug=quick", *TWO_IMAGES, *THINK, "tracking=none", "evaluation.limit=1")
    again = [json.loads(line) for line in other.metrics.read_text().splitlines()]
    assert [point["policy_loss"] for point in again] == pytest.approx([point["policy_loss"] for point in points])


REWARD = """
import zlib

def own(completions, records):
    return [zlib.crc32(f"{r.id} {text}".encode()) / 2**32 for text, r in zip(completions, records, strict=True)]
"""


@pytest.mark.long
def test_mlflow_has_as_much_as_the_settings_of_tracking_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
    (tmp_path / "own.py").write_text(REWARD)
    own = f"+reward.functions.own={{function:{tmp_path}/own.py:own,weight:0}}"
    words = (own, "trainer.max_steps=4", "trainer.logging_steps=3", "tracking.registered_model_name=reader")
    shown = ("tracking.num_completions=5", "tracking.log_completions_steps=2", "tracking.log_system_metrics=false")
    run = train_here(tmp_path / "run", *SMALL_RUN, "evaluation.blank_image=false", *words, *shown)
    client, tracked = client_and_run(run)
    run_id = tracked.info.run_id
    assert sorted(m.step for m in client.get_metric_history(run_id, "train/reward")) == [0, 3]
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [0, 3]
    assert not [name for name in tracked.data.metrics if name.startswith("system/")]

    pages = [Path(file.path).stem for file in client.list_artifacts(run_id, "completions")]
    assert pages == ["step_000000", "step_000002", "step_000003"], "every second step, and the last one"
    table = read_json(Path(client.download_artifacts(run_id, "completions.json", str(tmp_path))))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["step"] for row in rows] == [0] * 5 + [2] * 5 + [3] * 5
    pairs = [rows[start + i : start + i + 2] for start in (0, 5, 10) for i in (0, 2)]
    assert all(one["record"] == other["record"] for one, other in pairs), "two of each prompt"
    assert all(len({row["record"] for row in rows[start : start + 5]}) == 3 for start in (0, 5, 10))
    assert any(one["completion"] != other["completion"] for one, other in pairs)
    for row in rows:
        assert row["reward/own"] == zlib.crc32(f"{row['record']} {row['completion']}".encode()) / 2**32

    (version,) = client.search_model_versions("name='reader'")
    assert (version.run_id, int(version.version)) == (run_id, 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    registered = Path(download_artifacts("models:/reader/1", dst_path=str(tmp_path / "registered")))
    assert (registered / "model.safetensors").read_bytes() == (run.model / "model.safetensors").read_bytes()


def test_states_along_a_training_are_models(tmp_path: Path) -> None:
    words = ("algorithm=sft", "trainer.save_model_steps=[1,2]", "evaluation.blank_image=false", "tracking=none")
    run = train_here(tmp_path / "run", *SMALL_RUN, *words)
    cfg = composed("train")
    base, first, second, last = (
        load_file(place / "model.safetensors")
        for place in (Path(cfg.model.path), run.models / "step-1", run.models / "step-2", run.model)
    )
    assert all(torch.equal(value, last[name]) for name, value in second.items())
    for state in (first, second):
        assert not torch.equal(state["lm_head.weight"], base["lm_head.weight"])
    assert not torch.equal(first["lm_head.weight"], second["lm_head.weight"])
    policy, processor = load_policy(model_spec(composed("train", f"model.path={run.models}/step-1")))
    assert all(torch.equal(value, first[name]) for name, value in policy.core.state_dict().items() if name in first)
    assert processor.tokenizer.chat_template


def test_every_test_record_of_every_modality_is_answered_once_in_each_condition(
    finished: tuple[RunDirectory, str],
) -> None:
    run, _ = finished
    asked = [sorted(p.record for p in read_predictions(run.predictions(name))) for name in CONDITIONS]
    assert all(names == asked[0] for names in asked) and len(set(asked[0])) == len(asked[0])
    cells = Counter((p.modality, p.question_type) for p in read_predictions(run.predictions("trained")))
    assert len(cells) == 40 and set(cells.values()) == {2}


def test_evaluate_gives_the_numbers_of_a_run_again(finished: tuple[RunDirectory, str], tmp_path: Path) -> None:
    run, _ = finished
    again = RunDirectory(tmp_path / "run")
    words = (f"run={run.path}", "tracking=none")
    evaluate(composed("evaluate", *words), again.path, list(words))
    assert read_predictions(again.predictions("trained")) == read_predictions(run.predictions("trained"))
    before, after = read_json(run.summary)["conditions"], read_json(again.summary)["conditions"]
    assert after == {name: before[name] for name in CONDITIONS if name != "base"}


def test_one_question_from_the_command_line_is_answered_as_in_the_evaluation(
    finished: tuple[RunDirectory, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished
    base, trained = ({p.record: p.text for p in read_predictions(run.predictions(name))} for name in CONDITIONS[:2])
    records = [r for r in make_records(World.TEST, 0, 80) if r.id in base and list(r.options) == sorted(r.options)]
    changed = [record for record in records if base[record.id] != trained[record.id]]
    assert changed
    for record in changed[:2]:
        record.images[0].load(84).save(tmp_path / "x.png")
        words = (str(tmp_path / "x.png"), record.question, *record.options.values(), "--model", str(run.path), "--json")
        assert ask(words) == 0
        assert json.loads(capsys.readouterr().out)["completion"] == trained[record.id]


@pytest.mark.long
def test_evaluate_of_a_plain_model_is_the_base_row(finished: tuple[RunDirectory, str], tmp_path: Path) -> None:
    run, _ = finished
    run_command("evaluate.py", *TWO_IMAGES, *THINK, f"output_dir={tmp_path}")
    summary = read_json(only_run(tmp_path).summary)["conditions"]
    assert summary["base"] == read_json(run.summary)["conditions"]["base"]


@pytest.mark.parametrize(
    "overrides",
    [
        ("algorithm=sft", "reasoning=think_before"),
        pytest.param(("algorithm=sft", "algorithm.rationale=false", "reasoning=think_after"), marks=pytest.mark.long),
        pytest.param(("reasoning=no_think", "algorithm=medr1_legacy"), marks=pytest.mark.long),
        ("reasoning=no_think", "model.tuning=lora", "model.gradient_checkpointing=true"),
        pytest.param(
            ("reasoning=no_think", "algorithm.num_iterations=2", "model.freeze_vision_tower=true"),
            marks=pytest.mark.long,
        ),
        pytest.param(
            ("question_type=lesion", "algorithm.objective.beta=0", "reward=accuracy_only"), marks=pytest.mark.long
        ),
    ],
    ids=" ".join,
)
def test_each_kind_of_training_ends_with_a_model_and_a_table(overrides: tuple[str, ...], tmp_path: Path) -> None:
    run = train_here(tmp_path / "run", "debug=quick", *FEW_IMAGES, "evaluation.limit=1", "tracking=none", *overrides)
    assert read_json(run.summary)["comparison"]["overall"]["n"] == 40
    assert "All questions" in run.results.read_text()
    adapter = "model.tuning=lora" in overrides
    file = run.model / ("adapter_model.safetensors" if adapter else "model.safetensors")
    assert load_file(file)
    assert adapter == (not (run.model / "model.safetensors").exists())


def test_without_training_the_base_answers_and_so_do_its_controls(
    finished: tuple[RunDirectory, str], tmp_path: Path
) -> None:
    settings = (*THINK, *TWO_IMAGES, "debug=quick", "tracking=none")
    run = train_here(tmp_path / "run", "algorithm=zero_shot", *settings)
    assert not run.model.exists() and not run.predictions("trained").exists()
    assert read_predictions(run.predictions("base")) == read_predictions(finished[0].predictions("base"))
    assert set(read_json(run.summary)["conditions"]) == set(CONDITIONS) - {"trained"}
    assert "seen in training" not in run.results.read_text(encoding="utf-8")
    assert "seen in training" in finished[0].results.read_text(encoding="utf-8")
    assert "Zero-shot: none" in run.report.read_text(encoding="utf-8")
    assert "GRPO: 4 steps of 4 prompts x" in finished[0].report.read_text(encoding="utf-8")


def test_the_shuffled_image_control_shows_another_image(
    finished: tuple[RunDirectory, str],
) -> None:
    run, _ = finished
    records = make_records(World.TEST, 0, 80)
    for record, other in zip(records, shuffled_images(records), strict=True):
        assert other.image_key != record.image_key and other.modality == record.modality
    ablated_loader = Counter(other.image_key for other in shuffled_images(records))
    assert set(ablated_loader.values()) == {5}, "each image as often as before"
    own, shuffled = (read_predictions(run.predictions(name)) for name in ("trained", "shuffled_image"))
    assert [p.record for p in own] == [p.record for p in shuffled]
    assert [p.text for p in own] != [p.text for p in shuffled]


@pytest.mark.long
def test_debug_quick_lora_adapter_is_evaluated_on_its_base(tmp_path: Path) -> None:
    run = train_here(
        tmp_path / "run",
        "debug=quick",
        *FEW_IMAGES,
        "evaluation.limit=1",
        "tracking=none",
        "model.tuning=lora",
        "algorithm=sft",
    )
    run_command("evaluate.py", f"run={run.path}", f"output_dir={tmp_path / 'again'}", "tracking=none")
    again = only_run(tmp_path / "again")
    assert read_predictions(again.predictions("trained")) == read_predictions(run.predictions("trained"))


@pytest.mark.long
@needs_mini
def test_real_ultrasound_trains_and_all_real_test_questions_are_answered(tmp_path: Path) -> None:
    run = train_here(
        tmp_path / "run",
        "debug=quick",
        "data=omnimedvqa",
        f"data.root={MINI}",
        "modality=us",
        "reasoning=no_think",
        "evaluation.limit=null",
        "evaluation.blank_image=false",
        "evaluation.max_completion_length=8",
        "tracking=none",
    )
    splits = MINI / "Splits" / "modality"
    counted = {part: [r for f in (splits / part).glob("*.json") for r in read_json(f)] for part in ("train", "test")}
    facts = read_json(run.path / "environment.json")["data"]["counts"]
    everything = counted["train"] + counted["test"]
    assert facts["questions_read"] == len(everything)
    assert facts["images_read"] == len({r["image"] for r in everything})
    assert facts["questions_used"] + sum(facts["bad"].values()) == len(everything)
    answered = read_predictions(run.predictions("trained"))
    assert len(answered) == len(counted["test"])
    assert {p.image for p in answered} and len({p.modality for p in answered}) == 8


@needs_mini
@pytest.mark.long
def test_the_papers_recipe_counts_its_steps_by_epochs(tmp_path: Path) -> None:
    words = ("experiment=paper", f"data.root={MINI}", "model=tiny", "modality=us", "reasoning=no_think")
    few = ("trainer.train_batch_size=4", "trainer.num_train_epochs=0.02", "evaluation.limit=1", "tracking=none")
    cfg = train_here(tmp_path / "run", *words, *few).stored_config(TrainConfig)
    records = len(load_dataset(cfg.data, "us", "all").train)
    assert cfg.algorithm.name == "medr1_legacy" and records > 200
    assert cfg.trainer.max_steps == math.ceil(0.02 * records / 4)


@pytest.mark.long
def test_a_run_whose_database_is_gone_is_resumed_with_another(tmp_path: Path) -> None:
    """The remedies that are printed work, whatever flags stand before them."""
    small = ("debug=quick", "modality=ct", "trainer.max_steps=1", "evaluation.limit=1")
    run_command("train.py", *small, f"output_dir={tmp_path / 'runs'}")
    run = only_run(tmp_path / "runs")
    (tmp_path / "runs" / "mlflow.db").unlink()
    said = run_command("train.py", f"resume={run.path}", status=2)
    assert "there is no" in said and "tracking.enabled=false" in said, said
    assert "mode: think" in run_command("train.py", "--cfg", "job", f"resume={run.path}")
    said = run_command("train.py", f"resume={run.path}", "trainer.save_steps=0", status=2)
    assert "trainer.save_steps=0: must lie between 1 and" in said, said
    run_command("train.py", f"resume={run.path}", "tracking.enabled=false")
    other = tmp_path / "other.db"
    said = run_command("train.py", f"resume={run.path}", f"tracking.uri=sqlite:///{other}", status=2)
    assert "tracking.uri= has no effect with tracking.enabled=false" in said, said
    run_command("train.py", f"resume={run.path}", f"tracking.uri=sqlite:///{other}", "tracking.enabled=true")
    stored = stored_run(run.path)
    assert stored is not None and stored.uri == f"sqlite:///{other}"
    found = MlflowClient(tracking_uri=stored.uri).get_run(stored.run_id)
    assert found.info.status == "FINISHED" and "test_accuracy" in found.data.metrics
