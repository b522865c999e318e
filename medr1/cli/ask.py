"""Answers one question about one image: ``python -m medr1.ask IMAGE QUESTION OPTION OPTION ...``, or in Python:

from medr1.ask import ask, load
model = load("runs/RUN")
answer = ask(model, "image.png", "Which modality is this?", ["ct", "mri"])
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medr1.cli.process import prepare_process, shorten_spinning
from medr1.domain.reasoning import ReasoningMode, parse, question_text
from medr1.domain.records import LETTERS, BadRecord, check_choices, check_text
from medr1.domain.texts import one_line
from medr1.errors import USER_ERROR, DataError, Medr1Error

if TYPE_CHECKING:
    from medr1.data.images import DecodedImage
    from medr1.models.policy import Policy
    from medr1.models.processor import Processor
    from medr1.workflows.model_choice import ModelChoice

MAX_PIXELS = 64_000_000


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model with the settings of its training. Returned by ``load``."""

    choice: ModelChoice
    policy: Policy
    processor: Processor


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one question.

    ``letter``, ``text``: of the chosen option; None if strict parsing gives no letter.
    ``note``: why there is no letter or no probability, and remarks on the image (several frames, a transparent image
    that is of one colour on black). An empty string if there is nothing to say.
    ``probabilities``: letter -> probability, over the letters of the options alone, at the position of the answer's
    letter in the greedy completion (in Think-Before after the rationale). They sum to 1 and are not calibrated. None
    if the completion has no such position.
    ``completion``: the whole completion. ``format``: whether it matches the format of the reasoning mode.
    ``truncated``: whether it reached the maximum completion length.
    """

    letter: str | None
    text: str | None
    probabilities: dict[str, float] | None
    rationale: str
    completion: str
    format: bool
    truncated: bool
    note: str


def load(
    model: str | Path = "tiny",
    *,
    reasoning: str | None = None,
    image_size: int | None = None,
    max_completion_length: int | None = None,
) -> Model:
    """Loads a run directory, an export, a name in conf/model, a checkpoint directory or a hub id; on a GPU if possible.

    Reasoning mode, image size and maximum completion length are by default those of the model's training, or the
    defaults of medr1 for a model that medr1 has not trained.

    Raises:
        ConfigError: a value out of range. CheckpointError: no such model.
    """
    from medr1.workflows.model_choice import choose

    choice = choose(str(model), mode=reasoning, image_size=image_size, max_completion_length=max_completion_length)
    return _load(choice)


def ask(
    model: Model,
    image: str | Path,
    question: str,
    options: Sequence[str],
    *,
    window: tuple[float, float] | None = None,
    frame: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Answer:
    """Answers one question about one image (PNG, JPEG, TIFF; DICOM with the extra ``[dicom]``) by greedy decoding.

    ``window``: (center, width) of the grey levels, for DICOM only. ``frame``: index from 0 of the frame or page.

    Raises:
        DataError: no question, fewer than 2 or more than 10 options, two equal options, a text with a control token of
            the model's tokenizer, an image that cannot be read.
    """
    lettered = letter_options(question, options)
    return _ask(model, Path(image), _read(image, window, frame, max_pixels), question, lettered)


def letter_options(question: str, options: Sequence[str]) -> dict[str, str]:
    """The options by letter, A to J, each on one line.

    Raises:
        DataError: see ``ask``.
    """
    if isinstance(options, str):
        raise DataError(f"options must be a list of texts, not the text {options!r}")
    if len(options) > len(LETTERS):
        raise DataError(f"{len(options)} options; at most {len(LETTERS)} have letters ({LETTERS[0]} to {LETTERS[-1]})")
    lettered = {letter: one_line(text) for letter, text in zip(LETTERS, options, strict=False)}
    try:
        check_choices(question, lettered, LETTERS[0])
    except BadRecord as error:
        raise DataError(f"question {question!r}: {error.detail}") from error
    return lettered


def _read(image: str | Path, window: tuple[float, float] | None, frame: int | None, max_pixels: int) -> DecodedImage:
    from medr1.data.images import decode_image

    return decode_image(Path(image), window=window, frame=frame, max_pixels=max_pixels)


def _load(choice: ModelChoice) -> Model:
    shorten_spinning()
    import torch

    from medr1.models.loading import load_policy

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy, processor = load_policy(choice.spec(device))
    return Model(choice, policy.to(device), processor)


def _ask(model: Model, path: Path, image: DecodedImage, question: str, options: Mapping[str, str]) -> Answer:
    from medr1.evaluation.option_probabilities import generate_with_option_probabilities
    from medr1.models.processor import control_tokens_of

    check_text((question, *options.values()), control_tokens_of(model.processor.tokenizer))
    mode = model.choice.mode
    try:
        resized = model.choice.size.apply(image.image)
    except BadRecord as bad:
        raise DataError(f"{path} {bad.detail}") from bad
    prompt = model.processor.user_prompt(question_text(question, options, mode), (resized,))
    completion = generate_with_option_probabilities(
        model.policy, model.processor, prompt, options, model.choice.max_completion_length
    )
    read = parse(completion.text, mode, options)
    notes = []
    if read.answer is None:
        cut = (
            f", cut off after {model.choice.max_completion_length} tokens (max_completion_length),"
            if completion.truncated
            else ""
        )
        notes.append(f"no answer: the completion{cut} has no single answer block with one of {', '.join(options)}")
    elif completion.probabilities is None:
        notes.append("no probabilities: the tokenizer does not encode each letter as a single token at this position")
    notes += [f"{path} {note}" for note in image.notes]
    return Answer(
        letter=read.answer,
        text=options[read.answer] if read.answer is not None else None,
        probabilities=completion.probabilities,
        rationale=read.rationale,
        completion=completion.text,
        format=read.format,
        truncated=completion.truncated,
        note="; ".join(notes),
    )


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m medr1.ask",
        description="Answers one multiple-choice question about one image. For research only: its answers are not "
        "medical advice.",
    )
    parser.add_argument("image", help="PNG, JPEG, TIFF; DICOM with the extra [dicom]")
    parser.add_argument("question")
    parser.add_argument(
        "options", nargs="*", metavar="option", help="two to ten texts, in the order in which they are shown"
    )
    parser.add_argument(
        "--model", default="tiny", help="run directory, export, name in conf/model, checkpoint or hub id"
    )
    parser.add_argument("--reasoning", choices=[mode.value for mode in ReasoningMode], help="default: as trained")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="default: as trained")
    parser.add_argument("--max-completion-length", type=int, metavar="N", help="default: as trained")
    parser.add_argument(
        "--window", type=float, nargs=2, metavar=("C", "W"), help="DICOM: center and width of the grey levels"
    )
    parser.add_argument("--frame", type=int, metavar="N", help="image with several frames or pages: which one, from 0")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="larger images are refused")
    parser.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    return parser


def render(answer: Answer, options: Mapping[str, str]) -> str:
    """The answer as lines of text."""
    lines = [f"answer: {answer.letter}) {answer.text}" if answer.letter else answer.note]
    for letter, text in options.items() if answer.probabilities else ():
        assert answer.probabilities is not None
        lines.append(f"  {answer.probabilities[letter]:6.1%}  {letter}) {text}")
    if answer.letter and answer.note:
        lines.append(answer.note)
    if answer.rationale:
        lines.append(f"rationale: {answer.rationale}")
    return "\n".join([*lines, f"completion: {answer.completion}"])


def main(words: Sequence[str] | None = None) -> int:
    """The command line. Returns its exit status. Checks everything it can before torch is loaded."""
    prepare_process()
    given = _arguments().parse_intermixed_args(words)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        options = letter_options(given.question, given.options)
        image = _read(given.image, tuple(given.window) if given.window else None, given.frame, given.max_pixels)
        from medr1.workflows.model_choice import choose

        choice = choose(
            given.model,
            mode=given.reasoning,
            image_size=given.image_size,
            max_completion_length=given.max_completion_length,
        )
        answer = _ask(_load(choice), Path(given.image), image, given.question, options)
    except Medr1Error as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    print(json.dumps(asdict(answer), indent=2) if given.json else render(answer, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
