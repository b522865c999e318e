"""pass@k, circular evaluation and calibration in whole runs: each number can be computed again from stored files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from medr1.evaluation.measures import compare_measures, measure_items, read_measured, summarise_measures
from medr1.evaluation.predictions import Measure, read_predictions
from medr1.reporting.figures import RELIABILITY
from medr1.runs.run_directory import RunDirectory
from medr1.tracking.address import stored_run
from medr1.workflows.evaluate import evaluate
from medr1.workflows.train import train
from tests.integration.conftest import FEW_IMAGES, composed, read_json, run_command, train_here

pytestmark = pytest.mark.long

ASKED = ("evaluation.num_generations=4", "evaluation.circular=true", "evaluation.option_probabilities=true")
QUICK = ("debug=quick", "trainer.max_steps=1", "evaluation.limit=1", "modality=mri", "reasoning=no_think", *FEW_IMAGES)
WITHOUT_CONTROLS = ("evaluation.blank_image=false", "evaluation.shuffled_image=false")
FILES = [measure.file(condition) for condition in ("base", "trained") for measure in Measure]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDirectory]:
    folder = tmp_path_factory.mktemp("measured")
    yield train_here(folder / "run", *QUICK, *ASKED, "evaluation.k=[1,3]", f"tracking.uri=sqlite:///{folder}/mlflow.db")


def test_summary_table_and_mlflow_have_the_numbers_of_the_files(measured: RunDirectory) -> None:
    summary, text = read_json(measured.summary), measured.results.read_text()
    stored = stored_run(measured.path)
    assert stored is not None
    client = MlflowClient(tracking_uri=stored.uri)
    metrics = client.get_run(stored.run_id).data.metrics
    answers = [read_measured(measured.predictions, condition, [1, 3]) for condition in ("base", "trained")]
    found = {name: summarise_measures(of) for name, of in zip(("base", "trained"), answers, strict=True)}
    assert summary["measures"] == {name: of.to_dict() for name, of in found.items() if of}
    assert set(summary["measures"]["base"]["samples"]["pass_at_k"]) == {"1", "3"}
    logged = dict(measure_items({name: of for name, of in found.items() if of}))
    assert len(logged) == 5 and {name: metrics[name] for name in logged} == pytest.approx(logged)
    for model in summary["measures"].values():
        assert model["samples"]["n"] == model["circular"]["n"] == 40
        assert f"{100 * model['circular']['consistency']['value']:.1f} [" in text
    compared = {name: asdict(difference) for name, difference in compare_measures(*answers).items()}
    assert summary["measure_differences"] == compared and {"pass@3", "maj@1", "consistency"} < compared.keys()
    assert "![Reliability](figures/reliability.png)" in text
    assert (measured.figures / "reliability.png").read_bytes().startswith(b"\x89PNG")
    files = {f.path for folder in ("figures", "predictions") for f in client.list_artifacts(stored.run_id, folder)}
    assert {"figures/reliability.png", *(f"predictions/{name}.jsonl" for name in FILES)} <= files


def test_the_greedy_predictions_are_those_of_a_run_without_measures(measured: RunDirectory, tmp_path: Path) -> None:
    plain = train_here(tmp_path / "run", *QUICK, "tracking=none")
    for condition in ("base", "trained", "blank_image", "shuffled_image"):
        assert plain.predictions(condition).read_bytes() == measured.predictions(condition).read_bytes()
    before, after = read_json(plain.summary), read_json(measured.summary)
    assert not {"measures", "measure_differences"} & before.keys() and before["conditions"] == after["conditions"]
    assert measured.results.read_text().startswith(plain.results.read_text())
    assert not plain.figures.exists() and not plain.predictions(FILES[0]).exists()


def test_a_stopped_evaluation_continues_with_what_is_stored(measured: RunDirectory) -> None:
    before = {name: measured.predictions(name).read_bytes() for name in FILES}
    summary = read_json(measured.summary)["measures"]
    samples = measured.predictions("trained.samples")
    lines = before["trained.samples"].splitlines(keepends=True)
    samples.with_name(f"{samples.name}.partial").write_bytes(b"".join(lines[:50]) + lines[50][:20])
    for file in (samples, measured.predictions("trained.option_probabilities"), measured.finished):
        file.unlink()
    train(composed("train", f"resume={measured.path}"), measured.path, [])
    assert {name: measured.predictions(name).read_bytes() for name in FILES} == before
    assert read_json(measured.summary)["measures"] == summary


def test_evaluate_measures_a_run_and_a_model_as_it_is(measured: RunDirectory, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "trained")
    words = (f"run={measured.path}", f"output_dir={tmp_path}", "tracking=none")
    evaluate(composed("evaluate", *words), run.path, list(words))  # with the settings of the run
    expected = read_json(measured.summary)["measures"]
    assert read_json(run.summary)["measures"] == {"trained": expected["trained"]}
    base = RunDirectory(tmp_path / "base")
    limit = read_json(measured.summary)["conditions"]["base"]["overall"]["n"] // 40
    words = (
        "reasoning=no_think",
        f"evaluation.limit={limit}",
        *ASKED[:1],
        *WITHOUT_CONTROLS,
        "tracking=none",
        "seed=1",
    )
    evaluate(composed("evaluate", *words), base.path, list(words))
    assert read_json(base.summary)["measures"]["base"]["circular"] is None
    texts = [[line.text for line in read_predictions(r.predictions("base.samples"))] for r in (base, measured)]
    assert len(texts[0]) == len(texts[1]) and texts[0] != texts[1], "another seed"


def test_the_runs_of_a_sweep_share_the_measures_of_the_base_and_its_report_shows_all(tmp_path: Path) -> None:
    words = ("sweep=cross_modality", "modality=ct", "algorithm=grpo,sft", "tracking=none", f"output_dir={tmp_path}")
    run_command("train.py", *words, *QUICK[:3], "reasoning=no_think", *ASKED, *WITHOUT_CONTROLS)
    (sweep,) = tmp_path.iterdir()
    assert len(list((sweep / "base").glob("*.jsonl"))) == 4, "greedy, samples, rotations, probabilities"
    runs = [path.parent for path in sweep.glob("*/finished.json")]
    assert len(runs) == 2
    for name in ("base.samples", "base.option_probabilities"):
        assert len({RunDirectory(run).predictions(name).read_bytes() for run in runs}) == 1
    html, text = (sweep / "report" / "report.html").read_text(), (sweep / "report" / "results.md").read_text()
    assert "Further measures" in html and "pass@4" in html and RELIABILITY in html
    assert "## Samples, rotated options and calibration" in text and text.count("| CT | GRPO |") == 1
    assert (sweep / "report" / "figures" / "reliability.svg").is_file()
