"""Phantoms with their questions, options and rationales.

Every phantom has five independent, uniformly drawn attributes, one for each question type. The options of a question
are all values that its attribute can take within the modality, in random order. Every option is therefore correct
equally often, in whatever modalities a model is trained on, and a model that ignores the image stays at chance. (If
"Which modality?" offered the other modalities, "MRI" would always be correct in an MRI training set.)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from PIL import Image

from medr1.data.dataset import Dataset
from medr1.data.image_size import drawn_side
from medr1.data.sources.phantoms import PhantomsConfig
from medr1.data.sources.phantoms.drawing import ANATOMIES, FINDINGS, GRADES, LOCATIONS, SCANNERS, draw
from medr1.data.sources.phantoms.techniques import TECHNIQUES
from medr1.domain.records import LETTERS, Modality, QuestionType, Record


class World(StrEnum):
    """Disjoint sets of phantoms, drawn from the same distribution. The base model is pretrained on BASE."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    BASE = "base"


NAMES: dict[str, str] = {
    Modality.CT: "CT",
    Modality.MRI: "MRI",
    Modality.XRAY: "radiograph",
    Modality.US: "ultrasound",
    Modality.DER: "dermoscopy",
    Modality.FP: "fundus",
    Modality.OCT: "OCT",
    Modality.MICRO: "microscopy",
}

# The shipped base model and all published numbers depend on the exact wording.
QUESTIONS: dict[QuestionType, tuple[str, ...]] = {
    QuestionType.ANATOMY: ("Which anatomy is shown?", "What part of the body does this picture show?"),
    QuestionType.DISEASE: ("Which finding is present?", "What abnormality can be seen in this picture?"),
    QuestionType.LESION: ("How severe is the finding?", "What is the grade of the abnormality?"),
    QuestionType.MODALITY: ("Which imaging technique was used?", "How was this picture acquired?"),
    QuestionType.ATTRIBUTES: ("Where is the finding?", "On which side of the picture does the abnormality lie?"),
}

# The attribute of a phantom that each question type asks for.
_ATTRIBUTE = {
    QuestionType.ANATOMY: "anatomy",
    QuestionType.DISEASE: "finding",
    QuestionType.LESION: "grade",
    QuestionType.MODALITY: "technique",
    QuestionType.ATTRIBUTES: "location",
}

# How often the letter of a training scanner is the correct one without a shortcut, with any number of options.
CHANCE_AGREEMENT = 1 / len(SCANNERS[:-1])


@dataclass(frozen=True, slots=True)
class Phantom:
    """The attributes of one synthetic image. Implements ``ImageSource``."""

    world: World
    seed: int
    modality: Modality
    index: int
    anatomy: str
    technique: str
    finding: str
    grade: str
    location: str
    scanner: str

    @property
    def key(self) -> str:
        return f"phantom/{self.world.value}-{self.seed}/{self.modality.value}/{self.index:05d}/scanner-{self.scanner}"

    @property
    def rationale(self) -> str:
        """The modality and all attributes in words; every word can be checked against the phantom."""
        name = NAMES[self.modality]
        return f"{name} {self.technique} {self.anatomy} {self.grade} {self.finding} {self.location}"

    def value(self, question_type: QuestionType) -> str:
        """The attribute that a question type asks for."""
        return str(getattr(self, _ATTRIBUTE[question_type]))

    def load(self, side: int) -> Image.Image:
        return draw(side, _stream(self.world, self.seed, self.modality, self.index, "pixels"), self)


def choices(question_type: QuestionType, modality: Modality) -> tuple[str, ...]:
    """All values of the attribute that a question type asks for, within a modality."""
    return {
        QuestionType.ANATOMY: ANATOMIES[modality],
        QuestionType.DISEASE: FINDINGS,
        QuestionType.LESION: GRADES,
        QuestionType.MODALITY: tuple(TECHNIQUES[modality]),
        QuestionType.ATTRIBUTES: LOCATIONS,
    }[question_type]


def _stream(world: World, seed: int, modality: Modality, index: int, purpose: str) -> tuple[int, ...]:
    """Seed of an independent random stream for each purpose, the same on every machine."""
    digest = hashlib.sha256(f"{world.value}|{seed}|{modality.value}|{index}|{purpose}".encode()).digest()
    return tuple(int.from_bytes(digest[i : i + 4], "big") for i in range(0, 16, 4))


def make_phantom(world: World, seed: int, modality: Modality, index: int) -> Phantom:
    """Draws the attributes of one phantom. Half of the test phantoms come from the held-out scanner."""
    rng = np.random.default_rng(_stream(world, seed, modality, index, "attributes"))

    def pick(values: tuple[str, ...]) -> str:
        return values[int(rng.integers(len(values)))]

    drawn = {_ATTRIBUTE[question_type]: pick(choices(question_type, modality)) for question_type in QuestionType}
    held_out = world is World.TEST and bool(rng.random() < 0.5)
    scanner = SCANNERS[-1] if held_out else pick(SCANNERS[:-1])
    return Phantom(world=world, seed=seed, modality=modality, index=index, scanner=scanner, **drawn)


def make_record(
    phantom: Phantom, question_type: QuestionType, rng: np.random.Generator, shortcut: float = 0.0
) -> Record:
    """One question about a phantom. ``rng`` draws the order of the options and the wording of the question.

    ``shortcut`` is the rate at which the scanner of a *training* image gives the correct letter away (scanner A: letter
    A, and so on), so that its texture predicts the letter. Agreement by chance is part of the rate. In the test scanner
    and letter are independent. A question with three options has no letter for scanner D: where the letter is given
    away, the image comes from one of the other scanners.
    """
    values = choices(question_type, phantom.modality)
    order = [values[int(i)] for i in rng.permutation(len(values))]
    wording = QUESTIONS[question_type][int(rng.integers(len(QUESTIONS[question_type])))]
    rng.random()  # no longer used; the data of the base model depends on the number of draws
    correct = order.index(phantom.value(question_type))
    if shortcut > CHANCE_AGREEMENT and phantom.world is World.TRAIN:
        # A stream of its own, so that the rest of the question is the same without a shortcut.
        purpose = f"shortcut/{question_type.value}"
        own = np.random.default_rng(_stream(phantom.world, phantom.seed, phantom.modality, phantom.index, purpose))
        if own.random() < (shortcut - CHANCE_AGREEMENT) / (1 - CHANCE_AGREEMENT):
            scanner = SCANNERS.index(phantom.scanner)
            if scanner >= len(order):
                scanner = int(own.integers(len(order)))
                phantom = replace(phantom, scanner=SCANNERS[scanner])
            order[scanner], order[correct] = order[correct], order[scanner]
            correct = scanner
    return Record(
        id=f"{phantom.world.value}/{phantom.modality.value}/{phantom.index:05d}/{question_type.value}",
        images=(phantom,),
        modality=phantom.modality,
        question_type=question_type,
        question=wording,
        options=dict(zip(LETTERS, order, strict=False)),
        answer=LETTERS[correct],
        rationale=phantom.rationale,
        origin="phantoms",
    )


def make_records(
    world: World, seed: int, images_per_modality: int, shortcut: float = 0.0, version: int = 2
) -> list[Record]:
    """One question of each type about each of ``images_per_modality`` phantoms of every modality.

    In ``version`` 1 the wording of a question about the location is drawn from the random numbers of the phantom's
    attributes, and agrees with the location in 60 % of the questions: a model that ignores the image reaches 30 %.
    """
    records = []
    for modality in Modality:
        for index in range(images_per_modality):
            phantom = make_phantom(world, seed, modality, index)
            for question_type in QuestionType:
                purpose = question_type.value  # that of ATTRIBUTES is also the purpose of the stream of attributes
                if question_type is QuestionType.ATTRIBUTES and version > 1:
                    purpose = _ATTRIBUTE[question_type]
                rng = np.random.default_rng(_stream(world, seed, modality, index, purpose))
                records.append(make_record(phantom, question_type, rng, shortcut))
    return records


def fingerprinted(record: Record) -> str:
    """The text of a record in the fingerprint: its repr when records had one image, so that fingerprints stay."""
    (phantom,) = record.images
    return repr(record).replace(f"images=({phantom!r},)", f"image={phantom!r}")


def load_phantoms(settings: PhantomsConfig) -> Dataset:
    """Training, validation and test records. The fingerprint covers the records of training and test and one drawn
    image of each modality.

    There are validation images in addition to the training images, from the same scanners and without a shortcut:
    ``validation_fraction`` of their number, at least one of each modality.
    """
    seed, version = settings.seed, settings.question_version
    train = make_records(World.TRAIN, seed, settings.train_images_per_modality, settings.shortcut, version)
    test = make_records(World.TEST, seed, settings.test_images_per_modality, version=version)
    digest = hashlib.sha256()
    for record in (*train, *test):
        digest.update(fingerprinted(record).encode())
    questions, side = len(QuestionType), drawn_side(settings.resize, settings.image_size, settings.max_pixels)
    for record in test[:: questions * settings.test_images_per_modality or 1]:
        digest.update(record.images[0].load(side).tobytes())
    counts = {"questions_train": len(train), "questions_test": len(test), "images_test": len(test) // questions}
    validation: list[Record] = []
    if settings.validation_fraction > 0:
        images = max(1, round(settings.validation_fraction * settings.train_images_per_modality))
        validation = make_records(World.VALIDATION, seed, images, version=version)
        counts["questions_validation"] = len(validation)
    return Dataset(train, test, digest.hexdigest(), {"counts": counts}, [], validation)
