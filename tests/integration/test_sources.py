"""Every data source: read a miniature, train one step of GRPO on it, evaluate the model, and find the same records."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from medr1.data.dataset import load_dataset
from medr1.evaluation.predictions import read_predictions
from medr1.runs.run_directory import RunDirectory
from medr1.workflows.evaluate import evaluate
from tests.composing import composed
from tests.integration.conftest import MINI, needs_mini, read_json, train_here
from tests.miniatures import MINIATURES, save_png, write_json

FAST = (
    "trainer.max_steps=1",
    "trainer.train_batch_size=1",
    "algorithm.num_generations=2",
    "algorithm.sampling.max_completion_length=8",
    "evaluation.max_completion_length=8",
    "evaluation.blank_image=false",
    "evaluation.shuffled_image=false",
    "evaluation.limit=3",
    "data.image_size=28",
    "tracking=none",
)
# With the words that make test records of a benchmark without training records into both.
TRAINABLE = {"medframeqa", "medvlthinker_eval", "gmai_mmbench", "medxpertqa_mm", "mmmu_med"}


def write(words: str, root: Path) -> list[str]:
    """Writes a miniature; the words that choose it."""
    if words == "mcqa":
        rows = []
        for n in range(8):
            save_png(root / f"{n}.png", n)
            row = {"image": f"{n}.png", "question": "Which side?", "options": ["left", "right"], "answer": "AB"[n % 2]}
            rows.append(row | {"modality": ("PET", "ECG")[n % 2], "split": "test" if n > 4 else "train"})
        write_json(root / "q.json", rows)
        return ["data=mcqa", f"data.path={root / 'q.json'}"]
    MINIATURES[words][1](root)
    chosen = [*f"data={words}".split(), f"data.root={root}"]
    if words in TRAINABLE:
        chosen += ["data.split=image_grouped", "data.test_fraction=0.4"]
        if words in ("medframeqa", "medvlthinker_eval"):
            chosen.append("data.train_part=test")
        if words == "gmai_mmbench":
            chosen.append("data.train_part=VAL")
    return chosen


@pytest.mark.long
@pytest.mark.parametrize("words", ["mcqa", *MINIATURES, "phantoms", pytest.param("omnimedvqa", marks=needs_mini)])
def test_one_step_and_an_evaluation(words: str, tmp_path: Path) -> None:
    if words == "phantoms":
        chosen = ["data=phantoms", "data.train_images_per_modality=1", "data.test_images_per_modality=1"]
    elif words == "omnimedvqa":
        chosen = ["data=omnimedvqa", f"data.root={MINI}"]
    else:
        chosen = write(words, tmp_path / "data")
    run = train_here(tmp_path / "run", *chosen, *FAST)
    settings = composed("train", f"output_dir={tmp_path}", *chosen, *FAST)
    dataset = load_dataset(settings.data, "all", "all")
    summary = read_json(run.summary)
    assert summary["data_fingerprint"] == dataset.fingerprint
    predicted = read_predictions(run.predictions("trained"))
    cells = Counter((record.modality, record.question_type) for record in dataset.test)
    assert len(predicted) == sum(min(3, count) for count in cells.values())
    known = {record.id: record for record in dataset.test}
    assert all(p.record in known and p.answer == known[p.record].answer for p in predicted)
    options = [f"run={run.path}", "evaluation.blank_image=false", f"output_dir={tmp_path}"]
    evaluate(composed("evaluate", *options), tmp_path / "again", options)
    repeated = read_predictions(RunDirectory(tmp_path / "again").predictions("trained"))
    assert [(p.record, p.text) for p in repeated] == [(p.record, p.text) for p in predicted]


@pytest.mark.long
def test_an_evaluation_says_how_many_of_its_records_the_model_was_trained_on(tmp_path: Path) -> None:
    """Five of the eight records are training records, and without a division all are tested."""
    chosen = write("mcqa", tmp_path / "data")
    run = train_here(tmp_path / "run", *chosen, *FAST, "evaluation.limit=null")
    assert "was trained on" not in run.results.read_text("utf-8")
    again = RunDirectory(tmp_path / "again")
    for words, said in ((["data.split=test_only"], "trained on 5 of these 8 test records"), ([], "")):
        evaluate(composed("evaluate", f"run={run.path}", f"output_dir={tmp_path}", *words), again.path, words)
        results = again.results.read_text("utf-8")
        assert said in results if said else "was trained on" not in results
        again = RunDirectory(tmp_path / "own_test_records")
