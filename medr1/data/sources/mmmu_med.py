"""The health subjects of MMMU (Yue et al., 2024) as on the Hugging Face hub: Parquet in a folder for each subject."""

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

SUBJECTS = (
    "Basic_Medical_Science",
    "Clinical_Medicine",
    "Diagnostics_and_Laboratory_Medicine",
    "Pharmacy",
    "Public_Health",
)


@dataclass
class MmmuMedConfig(BenchmarkConfig):
    """The five health subjects of MMMU, multiple-choice questions."""

    kind: str = "mmmu_med"
    split: Split = Split.test_only
    train_part: str = "dev"
    test_part: str = "validation"


class MmmuMed(Benchmark[MmmuMedConfig]):
    """Lists are written as texts. Modality: the first image type; question type: the subfield; dataset: subject."""

    kind = "mmmu_med"
    settings = MmmuMedConfig
    columns = ("id", "question", "options", "answer", "image_1", "question_type")

    def files(self, settings: MmmuMedConfig) -> Iterator[tuple[str, str]]:
        for part in ("dev", "validation"):  # the answers of the test part are not public
            for subject in SUBJECTS:
                yield part, f"{subject}/{part}-*.parquet"

    def question(self, cells: Cells, settings: MmmuMedConfig) -> RawQuestion:
        from medr1.data.sources.mcqa.choices import AnswerFormat, first_of, parse_answer, parse_options
        from medr1.data.sources.mcqa.layout import LeftOut, LeftOutReason, RawQuestion

        if cells.text("question_type") != "multiple-choice":
            raise LeftOut(LeftOutReason.OPEN_QUESTION)
        options = parse_options(cells.value("options"))
        return RawQuestion(
            question=cells.text("question"),
            options=options,
            answer=parse_answer(cells.value("answer"), options, AnswerFormat.letter),
            images=cells.images(*(f"image_{i}" for i in range(1, 8))),
            id=cells.text("id"),
            modality=first_of(cells.text_or_none("img_type")),
            question_type=cells.text_or_none("subfield"),
            dataset=cells.table.name.partition("/")[0],
        )


SOURCES.register(MmmuMed())
