"""MedXpertQA-MM (Zuo et al., 2025) as released: JSON Lines and the folder images. Some questions have several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medr1.data.sources import SOURCES
from medr1.data.sources.mcqa.benchmark import Benchmark
from medr1.data.sources.mcqa.settings import BenchmarkConfig
from medr1.data.stored_data import Split

if TYPE_CHECKING:
    from medr1.data.sources.mcqa.layout import Cells, RawQuestion


@dataclass
class MedXpertQaMmConfig(BenchmarkConfig):
    """MedXpertQA-MM."""

    kind: str = "medxpertqa_mm"
    split: Split = Split.test_only
    train_part: str = "dev"


class MedXpertQaMm(Benchmark[MedXpertQaMmConfig]):
    """The text of a question repeats the options behind "Answer Choices:"; it is cut there."""

    kind = "medxpertqa_mm"
    settings = MedXpertQaMmConfig
    columns = ("id", "question", "options", "label", "images")

    def files(self, settings: MedXpertQaMmConfig) -> Iterator[tuple[str, str]]:
        for part in ("dev", "test"):
            yield part, f"MM/{part}.jsonl|{part}.jsonl"

    def question(self, cells: Cells, settings: MedXpertQaMmConfig) -> RawQuestion:
        from medr1.data.sources.mcqa.choices import AnswerFormat, parse_answer, parse_options
        from medr1.data.sources.mcqa.layout import RawQuestion

        options = parse_options(cells.value("options"))
        return RawQuestion(
            question=cells.text("question").rpartition("Answer Choices:")[0].strip() or cells.text("question"),
            options=options,
            answer=parse_answer(cells.value("label"), options, AnswerFormat.letter),
            images=cells.images("images", folder="images"),
            id=cells.text("id"),
            question_type=cells.text_or_none("question_type"),
        )


SOURCES.register(MedXpertQaMm())
