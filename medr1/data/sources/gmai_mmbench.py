"""GMAI-MMBench (Ye et al., 2024) as released: a TSV file with images in base64."""

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
class GmaiMmBenchConfig(BenchmarkConfig):
    """GMAI-MMBench, validation part: the answers of its test part are not public."""

    kind: str = "gmai_mmbench"
    split: Split = Split.test_only
    test_part: str = "VAL"


class GmaiMmBench(Benchmark[GmaiMmBenchConfig]):
    """Questions have two to five options; the columns of the others are empty."""

    kind = "gmai_mmbench"
    settings = GmaiMmBenchConfig
    columns = ("index", "image", "question", "A", "B", "answer")

    def files(self, settings: GmaiMmBenchConfig) -> Iterator[tuple[str, str]]:
        yield "VAL", "*VAL*.tsv"

    def question(self, cells: Cells, settings: GmaiMmBenchConfig) -> RawQuestion:
        from medr1.data.sources.mcqa.choices import AnswerFormat, parse_answer, parse_options
        from medr1.data.sources.mcqa.layout import RawQuestion

        options = parse_options({letter: cells.value(letter) for letter in "ABCDE"})
        return RawQuestion(
            question=cells.text("question"),
            options=options,
            answer=parse_answer(cells.value("answer"), options, AnswerFormat.letter),
            images=cells.images("image"),
            id=cells.text("index"),
            modality=cells.text_or_none("modality"),
            question_type=cells.text_or_none("clinical vqa task"),
        )


SOURCES.register(GmaiMmBench())
