"""Data with modalities of its own and without question types: trained, swept and reported as any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from medr1.evaluation.predictions import read_predictions
from tests.integration.conftest import read_json, run_command

pytestmark = pytest.mark.long

SOURCE = '''
import dataclasses
from dataclasses import dataclass

from medr1.config.settings import DataConfig
from medr1.data.dataset import Dataset
from medr1.data.sources import SOURCES
from medr1.data.sources.source import Source
from medr1.domain.records import UNSPECIFIED


@dataclass
class ScansConfig(DataConfig):
    kind: str = "scans"


class Scans(Source[ScansConfig]):
    """Phantoms under the names of other modalities, without question types."""

    kind = "scans"
    settings = ScansConfig

    def load(self, settings, selection):
        from medr1.data.sources.phantoms.records import World, make_records

        names = {"ct": "PET", "mri": "ECG"}

        def renamed(world, images):
            return [
                dataclasses.replace(record, modality=names[record.modality], question_type=UNSPECIFIED)
                for record in make_records(world, 0, images)
                if record.modality in names
            ]

        return Dataset(renamed(World.TRAIN, 4), renamed(World.TEST, 2), "scans", facts={}, messages=[])


SOURCES.register(Scans())
'''
YAML = "defaults: [scans_schema]\nname: scans\nimage_size: ${model.image_size}\n"


def test_two_modalities_of_own_data_give_a_matrix(tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    (plugins / "data").mkdir(parents=True)
    (plugins / "scans.py").write_text(SOURCE, encoding="utf-8")
    (plugins / "data" / "scans.yaml").write_text(YAML, encoding="utf-8")
    own = (f"plugins={plugins}", "data=scans", "debug=quick", "trainer.max_steps=1", f"output_dir={tmp_path / 'runs'}")
    run_command("train.py", "-m", *own, "modality=PET,ECG")

    (sweep,) = (tmp_path / "runs").glob("multirun-modality*")
    tables = read_json(sweep / "report" / "matrices.json")
    (matrix,) = tables["matrices"]
    assert (tables["row_axis"], tables["column_axis"]) == ("modality", "modality")
    assert (matrix["rows"], matrix["columns"]) == (["ECG", "PET"], ["ECG", "PET"])
    assert {(row, column) for row, cells in matrix["cells"].items() for column in cells} == {
        (row, column) for row in ("ECG", "PET") for column in ("ECG", "PET", "all")
    }
    for row, cells in matrix["cells"].items():  # recounted from the predictions of the run
        (run,) = cells["ECG"]["runs"]
        assert f"_{row}_" in run
        lines = read_predictions(sweep / run / "predictions" / "trained.jsonl")
        for column in ("ECG", "PET"):
            correct = [line.correct for line in lines if line.modality == column]
            assert cells[column]["n"] == len(correct) == 2
            assert cells[column]["accuracy"]["value"] == sum(correct) / len(correct)
        results = (sweep / run / "results.md").read_text(encoding="utf-8")
        assert f"| {row}\N{DAGGER} |" in results and "**By type**" not in results and "unspecified" not in results
    report = (sweep / "report" / "report.html").read_text(encoding="utf-8")
    assert 'data-row="PET" data-column="ECG"' in report
