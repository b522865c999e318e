"""PathVQA (He et al., 2020) as on the Hugging Face hub: Parquet with image bytes. Yes/no questions only.

The original release has pickles, which are not read.
"""

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
class PathVqaConfig(BenchmarkConfig):
    """PathVQA, yes/no questions."""

    kind: str = "path_vqa"


class PathVqa(Benchmark[PathVqaConfig]):
    """A question is closed if its answer is yes or no."""

    kind = "path_vqa"
    settings = PathVqaConfig
    columns = ("image", "question", "answer")

    def files(self, settings: PathVqaConfig) -> Iterator[tuple[str, str]]:
        for part in ("train", "validation", "test"):
            yield part, f"data/{part}-*.parquet|{part}-*.parquet"

    def question(self, cells: Cells, settings: PathVqaConfig) -> RawQuestion:
        from medr1.data.sources.mcqa.choices import yes_or_no
        from medr1.data.sources.mcqa.closed import closed_question

        is_closed = yes_or_no(cells.text("answer")) is not None
        return closed_question(cells, is_closed=is_closed, images=cells.images("image"))


SOURCES.register(PathVqa())
