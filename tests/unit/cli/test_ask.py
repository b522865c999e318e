"""medr1.ask: answers, letters and their probabilities, and mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medr1.ask import Model, ask, load, main
from medr1.cli.ask import letter_options
from medr1.config.enums import Resize
from medr1.data.images import decode_image
from medr1.data.sources.phantoms.records import World, make_records
from medr1.domain.reasoning import ReasoningMode, question_text
from medr1.errors import CheckpointError, ConfigError, DataError
from medr1.evaluation.local_predictions import predict
from medr1.evaluation.option_probabilities import _letter_ids
from medr1.generation.engines.local import LocalEngine
from medr1.generation.rollout import rollout
from medr1.generation.sampling import Sampling
from medr1.models.export import save_policy
from medr1.models.tiny import build_tokenizer
from medr1.workflows.model_choice import choose
from tests.command_lines import ROOT
from tests.conftest import Build
from tests.dicom_files import RESCALED, write_dicom

QUESTION, OPTIONS = "Which organ does the picture show?", ["lung", "liver", "heart"]


@pytest.fixture(scope="module", params=list(ReasoningMode))
def model(request: pytest.FixtureRequest) -> Model:
    """The shipped base in each mode."""
    return load("tiny", reasoning=request.param)


@pytest.fixture(scope="module")
def records():
    return make_records(World.TEST, 0, 1)[::3]


def test_the_answer_is_that_of_the_evaluation_and_its_letter_the_most_probable(
    model: Model, records, tmp_path: Path
) -> None:
    expected = predict(
        model.policy,
        model.processor,
        records,
        model.choice.mode,
        "base",
        load=lambda r: (r.images[0].load(84),),
        batch_size=len(records),
        max_completion_length=32,
        engine=LocalEngine(),
    )
    answered = 0
    for record, line in zip(records, expected, strict=True):
        if list(record.options) != sorted(record.options):
            continue
        record.images[0].load(84).save(tmp_path / "x.png")
        answer = ask(model, tmp_path / "x.png", record.question, list(record.options.values()))
        assert (answer.completion, answer.letter, answer.format) == (line.text, line.parsed, line.format)
        if answer.letter is None:
            assert answer.text is None and answer.probabilities is None and answer.note.startswith("no answer")
            continue
        answered += 1
        assert answer.probabilities is not None and answer.note == ""
        assert list(answer.probabilities) == list(record.options)
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-12)
        assert max(answer.probabilities, key=answer.probabilities.__getitem__) == answer.letter
        assert answer.text == record.options[answer.letter]
        assert bool(answer.rationale) == (model.choice.mode is not ReasoningMode.NO_THINK)
    assert answered >= 5


def test_probabilities_are_those_of_the_whole_text_scored_at_once(records, tmp_path: Path) -> None:
    """Against a plain forward pass over prompt and completion, in the mode where much stands before the letter."""
    import torch

    from medr1.domain.reasoning import question_text
    from medr1.models.processor import Prompt

    model = load("tiny", reasoning="think_before")
    checked = 0
    for record in records[:6]:
        record.images[0].load(84).save(tmp_path / "x.png")
        options = dict(zip("ABCDEFGHIJ", record.options.values(), strict=False))
        answer = ask(model, tmp_path / "x.png", record.question, list(options.values()))
        if answer.letter is None:
            continue
        text = question_text(record.question, options, ReasoningMode.THINK_BEFORE)
        before = answer.completion.split("<answer>")[0] + "<answer>"
        shown = Image.open(tmp_path / "x.png").convert("RGB")
        batch = model.processor.encode([Prompt(model.processor.chat(text) + before, (shown,))])
        with torch.no_grad():
            logits = model.policy.logits(model.policy.prefill(batch).hidden)[0]
        ids = [model.processor.tokenizer.convert_tokens_to_ids(letter) for letter in options]
        assert list(answer.probabilities.values()) == pytest.approx(logits[ids].softmax(-1).tolist(), abs=1e-4)
        checked += 1
    assert checked >= 2


def test_letters_are_compared_as_they_are_written(build: Build) -> None:
    """The full-width letter is one token here, whose name in the vocabulary is that of its bytes."""
    _, processor = build("qwen2_vl")
    wide = "\uff22"
    tokenizer = build_tokenizer([wide] * 9, 300)
    tokenizer.add_tokens(["(A", "(B"])
    processor = replace(processor, tokenizer=tokenizer)

    def ids(*texts: str) -> list[int]:
        """The ids of texts that are one token each."""
        return [i for text in texts for (i,) in processor.token_ids([text])]

    def letter_ids(text: str, letter: str, options: str) -> dict[str, int] | None:
        return _letter_ids(processor, ids(text)[0], letter, dict.fromkeys(options, "x"))

    assert letter_ids("(B", "B", "AB") == dict(zip("AB", ids("(A", "(B"), strict=True))
    assert letter_ids("B", "B", "ABC") == dict(zip("ABC", ids("A", "B", "C"), strict=True))
    assert letter_ids("(B", "B", "ABC") is None
    assert letter_ids("b", "b", "AB") == dict(zip("AB", ids("a", "b"), strict=True))
    assert letter_ids(wide, wide, "AB") is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["lung"], "1 option(s); a question needs at least two"),
        ([], "0 option(s)"),
        (["lung", "liver", "Lung."], "options A and C both say 'Lung.'"),
        (["lung", "liver", "“ＬＵＮＧ”"], "options A and C"),  # noqa: RUF001
        (["< 5 mm", "&lt;\u00a05 mm"], "options A and B"),
        (["lung", "<|image_pad|>"], "<|image_pad|>"),
        (["lung", "\ud800"], "\\ud800"),
        (["lung", " "], "option 'B' is ''"),
        (["lung", "\u200b"], "option 'B' is '\\u200b'"),
        ([str(n) for n in range(11)], "11 options; at most 10 have letters (A to J)"),
        ("lung", "not the text 'lung'"),
    ],
)
def test_options_that_cannot_be_are_named(options: list[str], said: str) -> None:
    with pytest.raises(DataError) as error:
        ask(None, "nowhere.png", QUESTION, options)  # type: ignore[arg-type]
    assert said in str(error.value)


@pytest.mark.parametrize(("question", "options"), [("Seen [SEP]?", OPTIONS), (QUESTION, ["lung", "[SEP]"])])
def test_a_control_token_of_the_model_is_named(question: str, options: list[str], tmp_path: Path) -> None:
    Image.new("L", (30, 20)).save(tmp_path / "grey.png")
    model = load("tiny", max_completion_length=2)
    assert ask(model, tmp_path / "grey.png", question, options).truncated
    model.processor.tokenizer.add_special_tokens({"additional_special_tokens": ["[SEP]"]})
    with pytest.raises(DataError, match=r"control token \[SEP\]"):
        ask(model, tmp_path / "grey.png", question, options)


def test_an_option_is_one_line() -> None:
    lettered = letter_options(QUESTION, ["old\n fracture", " lung\t", "5 mm", "5 μm", "10⁵", "105"])
    assert list(lettered.values()) == ["old fracture", "lung", "5 mm", "5 μm", "10⁵", "105"]


def test_models_that_cannot_be_are_named(tmp_path: Path) -> None:
    (tmp_path / "medr1.json").write_text("{}")
    for given, arguments, error, said in (
        ("runs/no_run", {}, CheckpointError, "no such directory"),
        (str(tmp_path), {}, CheckpointError, "medr1.json is damaged"),
        ("tiny", {"reasoning": "think_around"}, ConfigError, "think_before, no_think, think_after"),
        ("tiny", {"image_size": 100}, ConfigError, "use 112"),
        ("tiny", {"max_completion_length": 0}, ConfigError, "at least 1"),
    ):
        with pytest.raises(error) as raised:
            load(given, **arguments)  # type: ignore[arg-type]
        assert said in str(raised.value)


def test_images_have_the_size_of_the_checkpoint(build, tmp_path: Path) -> None:
    """Without --image-size, and without a name that tells the family."""
    save_policy(*build("qwen3_vl"), tmp_path / "checkpoint")
    model = load(tmp_path / "checkpoint", image_size=64, max_completion_length=2)
    assert load(tmp_path / "checkpoint").choice.image_size == 384 and model.choice.image_size == 64
    Image.new("L", (30, 20)).save(tmp_path / "grey.png")
    assert ask(model, tmp_path / "grey.png", QUESTION, OPTIONS).truncated
    with pytest.raises(ConfigError, match=r"not a multiple of 32.*; use 96"):
        load(tmp_path / "checkpoint", image_size=84)
    assert choose("somebody/qwen3-vl-4b-med").image_size == 384
    assert choose("somebody/med", image_size=64).image_size == 64  # of which nobody knows before it is loaded


def test_a_model_trained_on_native_images_is_asked_about_them(build, tmp_path: Path) -> None:
    policy, processor = build("qwen2_5_vl")
    save_policy(policy, processor, tmp_path)
    choice = replace(choose("tiny"), resize=Resize.native, min_pixels=784, max_pixels=9000, max_completion_length=3)
    (tmp_path / "medr1.json").write_text(json.dumps(choice.prompt_settings()))
    model = load(tmp_path)
    assert replace(model.choice, path=choice.path) == choice and model.choice.size.of(300, 90) == (168, 28)
    Image.linear_gradient("L").resize((300, 90)).save(tmp_path / "x.png")
    answer = ask(model, tmp_path / "x.png", QUESTION, OPTIONS)
    image = decode_image(tmp_path / "x.png").image.resize((168, 28), Image.Resampling.BICUBIC)
    text = question_text(QUESTION, letter_options(QUESTION, OPTIONS), model.choice.mode)
    prefix = policy.prefill(processor.encode([processor.user_prompt(text, [image])]))
    done = rollout(policy, prefix, Sampling.greedy(3, processor))
    assert answer.completion == processor.decode(done.ids, done.mask)[0]
    with pytest.raises(ConfigError, match="image_size has no effect"):
        load(tmp_path, image_size=84)
    Image.new("L", (402, 2)).save(tmp_path / "strip.png")
    with pytest.raises(DataError, match=r"strip\.png has 402 x 2 pixels"):
        ask(model, tmp_path / "strip.png", QUESTION, OPTIONS)
    (tmp_path / "medr1.json").write_text(json.dumps(choice.prompt_settings() | {"image_token_size": 32}))
    with pytest.raises(CheckpointError, match=r"use model\.image_token_size=28"):
        load(tmp_path)


def test_a_cut_off_completion_says_so(records, tmp_path: Path) -> None:
    records[0].images[0].load(84).save(tmp_path / "x.png")
    answer = ask(load("tiny", max_completion_length=2), tmp_path / "x.png", QUESTION, OPTIONS)
    assert (answer.letter, answer.truncated) == (None, True)
    assert "cut off after 2 tokens" in answer.note


def test_the_command_line(records, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = records[0]
    options = list(record.options.values())
    record.images[0].load(84).save(tmp_path / "x.tif")
    words = [str(tmp_path / "x.tif"), record.question, "--reasoning", "no_think", *options]
    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert answer["letter"] and f"answer: {answer['letter']}) {answer['text']}" in shown
    assert shown.count("%") == len(options) and answer["completion"] in shown
    assert main([str(tmp_path / "nowhere.png"), QUESTION, *OPTIONS]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def printed(capsys: pytest.CaptureFixture[str], image: Path, *words: str) -> dict[str, Any]:
    """What the command line answers about an image, as JSON."""
    assert main([str(image), QUESTION, *OPTIONS, *words, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_window_and_frame_of_the_command_line_choose_what_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = (np.random.default_rng(0).random((2, 96, 96)) * 2000).astype(np.int16)
    path = write_dicom(tmp_path / "ct.dcm", values, **RESCALED)
    answers = []
    for window, frame in (((40.0, 400.0), 1), ((400.0, 40.0), 1), ((40.0, 400.0), 0)):
        decode_image(path, window=window, frame=frame).image.save(tmp_path / "ct.png")
        chosen = ("--window", *map(str, window), "--frame", str(frame))
        answers.append(printed(capsys, path, *chosen))
        assert answers[-1] == printed(capsys, tmp_path / "ct.png")
    assert all(a != b for a, b in combinations(answers, 2))
    assert main([str(path), QUESTION, *OPTIONS, "--frame", "2"]) == 2
    assert "no frame 2" in capsys.readouterr().err


def test_a_larger_image_than_the_command_line_allows_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (30, 20)).save(tmp_path / "grey.png")
    assert main([str(tmp_path / "grey.png"), QUESTION, *OPTIONS, "--max-pixels", "599"]) == 2
    said = capsys.readouterr().err
    assert "30 x 20" in said and "599" in said
    assert printed(capsys, tmp_path / "grey.png", "--max-pixels", "600")["completion"]


def test_the_command_line_asks_the_model_that_it_names_with_its_settings(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_policy(*build("qwen2_5_vl"), tmp_path)
    trained = replace(choose("tiny"), mode=ReasoningMode.THINK_AFTER, image_size=56, max_completion_length=5)
    (tmp_path / "medr1.json").write_text(json.dumps(trained.prompt_settings()))
    Image.linear_gradient("L").save(tmp_path / "x.png")
    given: dict[str, Any] = {"reasoning": "no_think", "image_size": 84, "max_completion_length": 28}
    answers = []
    for left_out in (*given, None, "all"):
        settings = {name: value for name, value in given.items() if left_out not in (name, "all")}
        words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        answers.append(printed(capsys, tmp_path / "x.png", "--model", str(tmp_path), *words))
        assert answers[-1] == asdict(ask(load(tmp_path, **settings), tmp_path / "x.png", QUESTION, OPTIONS))
    assert all(a != b for a, b in combinations(answers, 2))


def test_help_and_mistakes_answer_before_anything_heavy_is_loaded() -> None:
    code = (
        "import sys; from medr1.ask import main\n"
        "for words in (['x.png', 'Which?', 'a'], ['nowhere.png', 'Which?', 'a', 'b'], ['--help']):\n"
        "    try: main(words)\n"
        "    except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'scipy', 'mlflow', 'pydicom'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr.count("error: ") == 2 and "Traceback" not in done.stderr


def test_an_image_with_frames_or_without_content_is_named_in_the_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = [Image.new("L", (20, 20), 90 * i) for i in range(3)]
    pages[0].save(tmp_path / "film.gif", save_all=True, append_images=pages[1:])
    Image.new("RGBA", (20, 20)).save(tmp_path / "clear.png")
    model = load("tiny", reasoning="no_think")
    for name, word in (("film.gif", "3 frames"), ("clear.png", "empty")):
        note = ask(model, tmp_path / name, QUESTION, OPTIONS).note
        assert word in note and name in note
        assert main([str(tmp_path / name), QUESTION, *OPTIONS, "--reasoning", "no_think"]) == 0
        assert word in capsys.readouterr().out
    assert "frames" not in ask(model, tmp_path / "film.gif", QUESTION, OPTIONS, frame=1).note
    assert "frames" not in printed(capsys, tmp_path / "film.gif", "--frame", "1")["note"]


def test_a_dicom_header_that_cannot_be_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dicom(tmp_path / "ct.dcm", np.zeros((4, 4), np.int16), RescaleSlope=b"steep")
    assert main([str(tmp_path / "ct.dcm"), QUESTION, *OPTIONS]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("ct.dcm", "RescaleSlope", "(0028,1053)")) and said.count("\n") == 1


def test_a_dicom_file_gives_the_same_answer_as_its_image(tmp_path: Path) -> None:
    values = (np.random.default_rng(0).random((96, 96)) * 2000).astype(np.int16)
    path = write_dicom(tmp_path / "ct.dcm", values, **RESCALED, WindowCenter=40, WindowWidth=400)
    decode_image(path).image.save(tmp_path / "ct.png")
    model = load("tiny", reasoning="think_after")
    options = ["lung", "liver", "heart", "knee"]
    answer = ask(model, path, QUESTION, options)
    assert answer == ask(model, tmp_path / "ct.png", QUESTION, options) and answer.completion
    assert answer.letter is None or sum((answer.probabilities or {}).values()) == pytest.approx(1)
