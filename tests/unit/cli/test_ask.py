"""Asking about one picture: files of every kind, letters and their probabilities, mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from medr1.data.image_file import read_image
from PIL import Image

from medr1.ask import Model, ask, load, main
from medr1.data.sources.phantoms.records import World, make_records
from medr1.domain.reasoning import ReasoningMode
from medr1.errors import CheckpointError, ConfigError, DataError
from medr1.evaluation.local_predictions import predict
from medr1.evaluation.option_probabilities import _letter_ids
from medr1.models.export import save_policy
from medr1.workflows.model_choice import choose
from tests.command_lines import ROOT

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
        load=lambda r: r.image.load(84),
        batch_size=len(records),
        max_completion_length=32,
    )
    answered = 0
    for record, line in zip(records, expected, strict=True):
        if list(record.options) != sorted(record.options):
            continue
        record.image.load(84).save(tmp_path / "x.png")
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
        record.image.load(84).save(tmp_path / "x.png")
        options = dict(zip("ABCDEFGHIJ", record.options.values(), strict=False))
        answer = ask(model, tmp_path / "x.png", record.question, list(options.values()))
        if answer.letter is None:
            continue
        text = question_text(record.question, options, ReasoningMode.THINK_BEFORE)
        before = answer.completion.split("<answer>")[0] + "<answer>"
        shown = Image.open(tmp_path / "x.png").convert("RGB")
        batch = model.processor.encode([Prompt(model.processor.chat(text) + before, shown)])
        with torch.no_grad():
            logits = model.policy.logits(model.policy.prefill(batch).hidden)[0]
        ids = [model.processor.tokenizer.convert_tokens_to_ids(letter) for letter in options]
        assert list(answer.probabilities.values()) == pytest.approx(logits[ids].softmax(-1).tolist(), abs=1e-4)
        checked += 1
    assert checked >= 2


def test_letters_are_compared_as_they_are_written() -> None:
    class Words:
        vocabulary = {"(A": 1, "(B": 2, "A": 3, "B": 4, "C": 5}  # noqa: RUF012

        def convert_ids_to_tokens(self, i: int) -> str:
            return {v: k for k, v in self.vocabulary.items()}[i]

        def get_vocab(self) -> dict[str, int]:
            return self.vocabulary

    class Written:
        tokenizer = Words()

    two, three = {"A": "x", "B": "y"}, {"A": "x", "B": "y", "C": "z"}
    assert _letter_ids(Written(), 2, "B", two) == {"A": 1, "B": 2}  # type: ignore[arg-type]
    assert _letter_ids(Written(), 4, "B", three) == {"A": 3, "B": 4, "C": 5}  # type: ignore[arg-type]
    assert _letter_ids(Written(), 2, "B", three) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["lung"], "1 option(s); a question needs at least two"),
        ([], "0 option(s)"),
        (["lung", "liver", "Lung."], "options A and C both say 'Lung.'"),
        (["lung", " "], "option 'B' is ' '"),
        ([str(n) for n in range(11)], "11 options; at most 10 have letters (A to J)"),
        ("lung", "the one text 'lung'"),
    ],
)
def test_options_that_cannot_be_are_named(options: list[str], said: str) -> None:
    with pytest.raises(DataError) as error:
        ask(None, "nowhere.png", QUESTION, options)  # type: ignore[arg-type]
    assert said in str(error.value)


def test_pictures_that_cannot_be_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    grey = Image.new("L", (30, 20))
    grey.save(tmp_path / "grey.png")
    grey.save(tmp_path / "pages.tif", save_all=True, append_images=[grey])
    for name, arguments, said in (
        ("nowhere.png", {}, "does not exist"),
        ("text.png", {}, "cannot be decoded"),
        ("empty.png", {}, "0 bytes"),
        ("pages.tif", {}, "2 pages"),
        ("grey.png", {"max_pixels": 599}, "30 x 20; the limit is 599 pixels (max_pixels)"),
        ("grey.png", {"window": (40.0, 400.0)}, "remove window"),
        ("grey.png", {"frame": 0}, "remove frame"),
    ):
        with pytest.raises(DataError) as error:
            read_image(tmp_path / name, **arguments)  # type: ignore[arg-type]
        assert said in str(error.value) and name in str(error.value)
    (tmp_path / "link.png").symlink_to(tmp_path / "grey.png")
    assert read_image(tmp_path / "link.png").size == (30, 20)


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


def test_pictures_are_as_large_as_the_checkpoint_asked_wants_them(build, tmp_path: Path) -> None:
    """Without --image-size, and without a name that tells the family."""
    save_policy(*build("qwen3_vl"), tmp_path / "checkpoint")
    model = load(tmp_path / "checkpoint", image_size=64, max_completion_length=2)
    assert load(tmp_path / "checkpoint").choice.image_size == 384 and model.choice.image_size == 64
    Image.new("L", (30, 20)).save(tmp_path / "grey.png")
    assert ask(model, tmp_path / "grey.png", QUESTION, OPTIONS).truncated
    with pytest.raises(ConfigError, match="tokens of 32 pixels; use 96"):
        load(tmp_path / "checkpoint", image_size=84)
    assert choose("somebody/qwen3-vl-4b-med").image_size == 384
    assert choose("somebody/med", image_size=64).image_size == 64  # of which nobody knows before it is loaded


def test_a_cut_off_completion_says_so(records, tmp_path: Path) -> None:
    records[0].image.load(84).save(tmp_path / "x.png")
    answer = ask(load("tiny", max_completion_length=2), tmp_path / "x.png", QUESTION, OPTIONS)
    assert (answer.letter, answer.truncated) == (None, True)
    assert "cut off after 2 tokens" in answer.note


def test_the_command_line(records, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = records[0]
    options = list(record.options.values())
    record.image.load(84).save(tmp_path / "x.tif")
    words = [str(tmp_path / "x.tif"), record.question, "--reasoning", "no_think", *options]
    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert answer["letter"] and f"answer: {answer['letter']}) {answer['text']}" in shown
    assert shown.count("%") == len(options) and answer["completion"] in shown
    assert main([str(tmp_path / "nowhere.png"), QUESTION, *OPTIONS]) == 2
    assert capsys.readouterr().err.startswith("error: ")


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


# DICOM


def write_dicom(path: Path, values: np.ndarray, kind: str = "MONOCHROME2", **attributes: object) -> Path:
    pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra [dicom]")
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, generate_uid()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    colour = kind == "RGB"
    frames = values.ndim - 2 - colour
    data.Rows, data.Columns = values.shape[frames : frames + 2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 3 if colour else 1, kind
    if colour:
        data.PlanarConfiguration = 0
    if frames:
        data.NumberOfFrames = values.shape[0]
    data.BitsAllocated = data.BitsStored = 8 * values.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(values.dtype.kind == "i")
    data.PixelData = values.tobytes()
    for name, value in attributes.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def greys(path: Path, **arguments: object) -> list[int]:
    return [int(v) for v in np.asarray(read_image(path, **arguments))[..., 0].ravel()]  # type: ignore[arg-type]


CT = np.array([[0, 824, 1064, 1304], [2000, 3000, 1023, 1025]], dtype=np.int16)  # -1024 to 1976 HU
RESCALED = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def test_a_dicom_window_is_that_of_the_file_or_the_one_given(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "ct.dcm", CT, **RESCALED, WindowCenter=[40, -600], WindowWidth=[400, 1500])
    hounsfield = CT.astype(float) - 1024

    def linear(center: float, width: float) -> list[int]:
        return (
            np.rint(255 * np.clip((hounsfield - center + 0.5) / (width - 1) + 0.5, 0, 1)).astype(int).ravel().tolist()
        )

    assert greys(path) == linear(40, 400)
    assert greys(path, window=(-600.0, 1500.0)) == linear(-600, 1500) != linear(40, 400)
    bare = write_dicom(tmp_path / "bare", CT, **RESCALED)  # known by its content
    assert (min(greys(bare)), max(greys(bare))) == (0, 255)
    negative = write_dicom(tmp_path / "n.dcm", CT, "MONOCHROME1", **RESCALED, WindowCenter=40, WindowWidth=400)
    assert greys(negative) == [255 - g for g in linear(40, 400)]
    exact = write_dicom(
        tmp_path / "e.dcm", CT, **RESCALED, WindowCenter=40, WindowWidth=400, VOILUTFunction="LINEAR_EXACT"
    )
    assert greys(exact) == np.rint(255 * np.clip((hounsfield - 40) / 400 + 0.5, 0, 1)).astype(int).ravel().tolist()


def test_dicom_colour_and_frames(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    colour = write_dicom(tmp_path / "c.dcm", rgb, "RGB")
    assert np.array_equal(np.asarray(read_image(colour)), rgb)
    film = write_dicom(tmp_path / "f.dcm", np.stack([CT, CT[::-1]]), **RESCALED)
    assert greys(film, frame=0) != greys(film, frame=1)
    (tmp_path / "text.dcm").write_text("no DICOM")
    for path, arguments, said in (
        (colour, {"window": (40.0, 400.0)}, "colour image (RGB)"),
        (film, {}, "2 frames; choose one with frame=0 to 1"),
        (film, {"frame": 2}, "no frame 2"),
        (film, {"frame": 0, "window": (40.0, 0.0)}, "width must be at least 1"),
        (film, {"frame": 0, "max_pixels": 7}, "4 x 2; the limit is 7 pixels"),
        (tmp_path / "text.dcm", {}, "cannot be read as DICOM"),
    ):
        with pytest.raises(DataError) as error:
            read_image(path, **arguments)  # type: ignore[arg-type]
        assert said in str(error.value)


def test_a_dicom_is_answered_as_the_picture_it_shows(tmp_path: Path) -> None:
    values = (np.random.default_rng(0).random((96, 96)) * 2000).astype(np.int16)
    path = write_dicom(tmp_path / "ct.dcm", values, **RESCALED, WindowCenter=40, WindowWidth=400)
    read_image(path).save(tmp_path / "ct.png")
    model = load("tiny", reasoning="think_after")
    options = ["lung", "liver", "heart", "knee"]
    answer = ask(model, path, QUESTION, options)
    assert answer == ask(model, tmp_path / "ct.png", QUESTION, options) and answer.completion
    assert answer.letter is None or sum((answer.probabilities or {}).values()) == pytest.approx(1)
