"""A reward function of the user's own that fails in training: nothing is lost, and the run goes on after the fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from medr1.tracking.address import stored_run
from tests.integration.conftest import only_run, run_command

GOOD = """
def brevity(completions, completion_ids, records, answers, longest, **others):
    assert sorted(others) == ["reasoning", "truncated"]
    assert answers == [record.answer for record in records] and len(completions) == len(completion_ids)
    return [float(len(ids) <= longest) for ids in completion_ids]
"""
FAILING = f"calls = []\n{GOOD}".replace("    return", "    calls.append(1)\n    return").replace(
    "float(len(ids) <= longest)", "1 / (len(calls) < 3)"
)
SETTINGS = (
    *("debug=quick", "modality=ct", "data.train_images_per_modality=12", "data.test_images_per_modality=1"),
    *("evaluation.limit=1", "evaluation.blank_image=false", "evaluation.shuffled_image=false", "trainer.save_steps=1"),
)


@pytest.mark.long
def test_a_failing_reward_is_mended_and_the_run_goes_on(tmp_path: Path) -> None:
    file, output_dir = tmp_path / "mine.py", tmp_path / "runs"
    file.write_text(FAILING, encoding="utf-8")
    own = f"+reward.functions.brevity={{function:{file}:brevity,weight:0.5,longest:10}}"
    said = run_command("train.py", *SETTINGS, own, "trainer.max_steps=4", f"output_dir={output_dir}", status=2)
    run = only_run(output_dir)
    for words in (
        "error: reward brevity raised ZeroDivisionError for ",
        f"{file}, line",
        f"resume={run.path}",
        "the checkpoint step=2",
    ):
        assert words in said, said
    file.write_text(GOOD, encoding="utf-8")
    again = f"reward.functions.brevity.function={file}:brevity"
    said = run_command("train.py", f"resume={run.path}", status=2)
    assert f"add {again}" in said and not run.model.exists(), said
    run_command("train.py", f"resume={run.path}", again)
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [0, 1, 2, 3]
    assert [path.read_text() for path in run.reward_sources("brevity")] == [FAILING, GOOD]
    assert "reward brevity has changed: from the checkpoint step=2 on" in run.log.read_text()

    stored = stored_run(run.path)
    assert stored is not None
    client = MlflowClient(tracking_uri=stored.uri)
    assert "train/brevity_reward" in client.get_run(stored.run_id).data.metrics
    names = {Path(artifact.path).name for artifact in client.list_artifacts(stored.run_id, "rewards")}
    assert names == {"brevity.py", "brevity-2.py"}
    table = json.loads(Path(client.download_artifacts(stored.run_id, "completions.json", str(tmp_path))).read_text())
    assert {"reward", "reward/accuracy", "reward/format", "reward/brevity", "advantage"} <= set(table["columns"])

    file.write_text("raise SystemExit('executed')", encoding="utf-8")
    said = run_command("evaluate.py", f"run={run.path}", "evaluation.limit=1", f"output_dir={tmp_path / 'evaluated'}")
    assert "executed" not in said, "an evaluation needs no rewards"


@pytest.mark.long
def test_gdpo_trains_with_dynamic_sampling(tmp_path: Path) -> None:
    words = (*SETTINGS, "algorithm=gdpo", "algorithm.filter_groups=2", "tracking=none", "trainer.max_steps=2")
    run_command("train.py", *words, f"output_dir={tmp_path}")
    assert "adv_estimator: gdpo" in only_run(tmp_path).config.read_text()
