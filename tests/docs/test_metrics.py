"""docs/reference/metrics.md: the metrics of a run are those of the page, no more and no fewer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from medr1.cli.main import CONF
from medr1.tracking.address import stored_run
from tests.integration.conftest import FEW_IMAGES, train_here

PAGE = (CONF.parent / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
VALUES = {"NAME": ["accuracy", "format"]}
OF_VLLM = "Training: rollout=vllm_server and vllm_colocate"  # compared with a run where there is a vLLM


def test_the_metrics_of_vllm_have_a_section() -> None:
    assert "importance_sampling_ratio" in documented(OF_VLLM)


def documented(section: str) -> set[str]:
    """The metrics of a section, with each placeholder replaced by its values."""
    rows = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    names = set(re.findall(r"^\| `([^`]+)` \|", rows, re.MULTILINE))
    for placeholder, values in VALUES.items():
        pattern = re.compile(rf"(?<![A-Za-z]){placeholder}(?![A-Za-z])")
        names = {
            pattern.sub(str(value), name) for name in names for value in (values if pattern.search(name) else [""])
        }
    return names


def logged(run_dir: Path) -> set[str]:
    stored = stored_run(run_dir)
    assert stored is not None
    return set(MlflowClient(tracking_uri=stored.uri).get_run(stored.run_id).data.metrics)


@pytest.mark.parametrize(
    ("algorithm", "sections"),
    [
        ("grpo", ["Training: GRPO"]),
        pytest.param("papo", ["Training: GRPO", "Training: PAPO"], marks=pytest.mark.long),
        pytest.param("sft", ["Training: SFT"], marks=pytest.mark.long),
    ],
    ids=str,
)
def test_the_page_has_the_metrics_of_a_run(algorithm: str, sections: list[str], tmp_path: Path) -> None:
    uri = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    run = train_here(tmp_path / "run", "debug=quick", *FEW_IMAGES, "trainer.max_steps=1", f"algorithm={algorithm}", uri)
    found = {name for name in logged(run.path) if not name.startswith("system/")}
    assert found == set().union(*map(documented, (*sections, "Evaluation")))
    assert len(found) <= 40


@pytest.mark.long
def test_the_page_has_the_metrics_of_validation(tmp_path: Path) -> None:
    words = ("debug=quick", "modality=ct", "trainer.max_steps=1", "algorithm=sft", "trainer.eval_steps=1")
    data = ("data.validation_fraction=0.1", "data.train_images_per_modality=10", "data.test_images_per_modality=1")
    run = train_here(tmp_path / "run", *words, *data, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    assert {name for name in logged(run.path) if "validation" in name} == documented("Validation")


def test_every_section_has_rows() -> None:
    for section in re.findall(r"^## (.+)$", PAGE, re.MULTILINE):
        assert documented(section), section
