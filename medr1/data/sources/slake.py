"""SLAKE (Liu et al., 2021) as released: a JSON file for each part, and imgs. Closed English questions only."""

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
class SlakeConfig(BenchmarkConfig):
    """SLAKE, closed English questions."""

    kind: str = "slake"


class Slake(Benchmark[SlakeConfig]):
    """The question type is the content type: Organ, Abnormality, ..."""

    kind = "slake"
    settings = SlakeConfig
    columns = ("qid", "img_name", "question", "answer", "q_lang", "answer_type")

    def files(self, settings: SlakeConfig) -> Iterator[tuple[str, str]]:
        yield "train", "train.json"
        yield "validation", "validation.json|validate.json"
        yield "test", "test.json"

    def question(self, cells: Cells, settings: SlakeConfig) -> RawQuestion:
        from medr1.data.sources.mcqa.closed import closed_question
        from medr1.data.sources.mcqa.layout import LeftOut, LeftOutReason

        if cells.text("q_lang") != "en":
            raise LeftOut(LeftOutReason.OTHER_LANGUAGE)
        return closed_question(
            cells,
            is_closed=cells.text("answer_type").upper() == "CLOSED",
            images=cells.images("img_name", folder="imgs"),
            id=cells.text("qid"),
            modality=cells.text_or_none("modality"),
            question_type=cells.text_or_none("content_type"),
        )


SOURCES.register(Slake())
