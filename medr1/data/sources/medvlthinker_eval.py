"""MedVLThinker-Eval (Huang et al., 2025) as on the Hugging Face hub: six benchmarks in one Parquet layout."""

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
class MedVlThinkerEvalConfig(BenchmarkConfig):
    """PMC-VQA, PathVQA, SLAKE, VQA-RAD, MMMU-Med and MedXpertQA-MM in one schema."""

    kind: str = "medvlthinker_eval"
    split: Split = Split.test_only


class MedVlThinkerEval(Benchmark[MedVlThinkerEvalConfig]):
    """Options are a JSON text. There is only a test part; ``dataset`` is the benchmark."""

    kind = "medvlthinker_eval"
    settings = MedVlThinkerEvalConfig
    columns = ("images", "question", "options", "answer_label", "dataset_name", "dataset_index")

    def files(self, settings: MedVlThinkerEvalConfig) -> Iterator[tuple[str, str]]:
        yield "test", "data/test-*.parquet|test-*.parquet"

    def question(self, cells: Cells, settings: MedVlThinkerEvalConfig) -> RawQuestion:
        from medr1.data.sources.mcqa.choices import AnswerFormat, parse_answer, parse_options
        from medr1.data.sources.mcqa.layout import RawQuestion

        options = parse_options(cells.value("options"))
        dataset = cells.text("dataset_name")
        return RawQuestion(
            question=cells.text("question"),
            options=options,
            answer=parse_answer(cells.value("answer_label"), options, AnswerFormat.letter),
            images=cells.images("images"),
            id=f"{dataset}/{cells.text('dataset_index')}",
            dataset=dataset,
        )


SOURCES.register(MedVlThinkerEval())
