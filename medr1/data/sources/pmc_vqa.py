"""PMC-VQA (Zhang et al., 2023) as released: CSV files and the folder figures, in both versions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from medr1.data.sources import SOURCES
from medr1.data.sources.mcqa.benchmark import Benchmark
from medr1.data.sources.mcqa.settings import BenchmarkConfig

if TYPE_CHECKING:
    from medr1.data.sources.mcqa.layout import Cells, RawQuestion


class Version(StrEnum):
    """v1: train.csv, test.csv and test_clean.csv. v2: train_2.csv and test_2.csv."""

    v1 = "v1"
    v2 = "v2"


@dataclass
class PmcVqaConfig(BenchmarkConfig):
    """PMC-VQA."""

    kind: str = "pmc_vqa"
    version: Version = Version.v1
    """v1, whose cleaned test part is data.test_part=test_clean, or v2 (images without compound figures)."""


class PmcVqa(Benchmark[PmcVqaConfig]):
    """Choices are written as " A:Axial"; the letter is no part of the option."""

    kind = "pmc_vqa"
    settings = PmcVqaConfig
    columns = ("Figure_path", "Question", "Choice A", "Choice B", "Choice C", "Choice D")

    def files(self, settings: PmcVqaConfig) -> Iterator[tuple[str, str]]:
        if settings.version is Version.v1:
            yield from (("train", "train.csv"), ("test", "test.csv"), ("test_clean", "test_clean.csv"))
        else:
            yield from (("train", "train_2.csv"), ("test", "test_2.csv"))

    def question(self, cells: Cells, settings: PmcVqaConfig) -> RawQuestion:
        from medr1.data.sources.mcqa.choices import AnswerFormat, parse_answer, parse_options
        from medr1.data.sources.mcqa.layout import RawQuestion

        choices = {letter: cells.text_or_none(f"Choice {letter}") or "" for letter in "ABCD"}
        options = parse_options({letter: re.sub(rf"^{letter}\s*:\s*", "", text) for letter, text in choices.items()})
        # v1 has the letter in Answer_label; one copy of it spells the text's column Anwser. v2 has it in Answer.
        if label := cells.text_or_none("Answer_label"):
            answer = parse_answer(label, options, AnswerFormat.letter)
        else:
            text = cells.text_or_none("Answer") or cells.text("Anwser")
            answer = parse_answer(re.sub(r"^[A-D]\s*:\s*", "", text), options)
        return RawQuestion(
            question=cells.text("Question"),
            options=options,
            answer=answer,
            images=cells.images("Figure_path", folder="figures"),
            id=cells.text_or_none("index") or "",
        )


SOURCES.register(PmcVqa())
