"""The model card of an exported run."""

from __future__ import annotations

from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined

from medr1.data.image_size import ImageSize
from medr1.domain.reasoning import ReasoningMode, question_text


def model_card(
    title: str,
    *,
    base: str,
    base_id: str | None,
    base_license: str | None,
    recipe: Mapping[str, str],
    results: str,
    mode: ReasoningMode,
    size: ImageSize,
    max_completion_length: int,
    adapter: bool,
) -> str:
    """Markdown with the Hugging Face hub's front matter, and code that uses the model without medr1.

    Args:
        base: description of the base model.
        base_id: hub id of the base model, if it has one.
        results: the result table of the run, or nothing if it is of other weights.
        adapter: the weights are a PEFT adapter instead of a full checkpoint.
    """
    environment = Environment(
        loader=PackageLoader("medr1.reporting", "templates"),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("model_card.md").render(
        title=title,
        base=base,
        base_id=base_id,
        base_license=base_license,
        recipe=recipe,
        results=results.strip(),
        question=repr(question_text("Which modality is this?", {"A": "ct", "B": "mri"}, mode)),
        size=size,
        max_completion_length=max_completion_length,
        adapter=adapter,
    )
