"""VQA-RAD (Lau et al., 2018) as released: one JSON file and an image folder. Closed questions only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medr1.data.sources import SOURCES
from medr1.data.sources.mcqa.benchmark import Benchmark
from medr1.data.sources.mcqa.settings import BenchmarkConfig

if TYPE_CHECKING:
    from medr1.data.sources.mcqa.layout import Cells, RawQuestion


@dataclass
class VqaRadConfig(BenchmarkConfig):
    """VQA-RAD, closed questions."""

    kind: str = "vqa_rad"


class VqaRad(Benchmark[VqaRadConfig]):
    """Test are the phrase types that begin with ``test_``. The release has no options and no modality."""

    kind = "vqa_rad"
    settings = VqaRadConfig
    columns = ("qid", "phrase_type", "image_name", "question", "answer", "answer_type")

    def files(self, settings: VqaRadConfig) -> Iterator[tuple[str, str]]:
        yield "", "VQA_RAD Dataset Public.json"

    def question(self, cells: Cells, settings: VqaRadConfig) -> RawQuestion:
        from medr1.data.sources.mcqa.closed import closed_question

        return closed_question(
            cells,
            is_closed=cells.text("answer_type").upper() == "CLOSED",  # the release also has "CLOSED "
            images=cells.images("image_name", folder="VQA_RAD Image Folder"),
            id=cells.text("qid"),
            question_type=cells.text_or_none("question_type"),
            part="test" if cells.text("phrase_type").startswith("test_") else "train",
        )


SOURCES.register(VqaRad())
