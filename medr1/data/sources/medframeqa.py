"""MedFrameQA (Yu et al., 2025) as on the Hugging Face hub: Parquet, two to five images for each question."""

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
class MedFrameQaConfig(BenchmarkConfig):
    """MedFrameQA."""

    kind: str = "medframeqa"
    split: Split = Split.test_only


class MedFrameQa(Benchmark[MedFrameQaConfig]):
    """There is only a test part."""

    kind = "medframeqa"
    settings = MedFrameQaConfig
    columns = ("question_id", "question", "options", "correct_answer", "image_1")

    def files(self, settings: MedFrameQaConfig) -> Iterator[tuple[str, str]]:
        yield "test", "data/test-*.parquet|test-*.parquet"

    def question(self, cells: Cells, settings: MedFrameQaConfig) -> RawQuestion:
        from medr1.data.sources.mcqa.choices import parse_answer, parse_options
        from medr1.data.sources.mcqa.layout import RawQuestion

        options = parse_options(cells.value("options"))
        return RawQuestion(
            question=cells.text("question"),
            options=options,
            answer=parse_answer(cells.value("correct_answer"), options),
            images=cells.images(*(f"image_{i}" for i in range(1, 6))),
            id=cells.text("question_id"),
            modality=cells.text_or_none("modality"),
        )


SOURCES.register(MedFrameQa())
