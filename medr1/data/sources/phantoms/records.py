"""The embedded world: medical-looking pictures made from a seed, with questions, distractors and rationales.

Every picture has five independent, uniformly drawn attributes, one for each question type. The options of a question
are all the values its attribute can take *within the modality*, in random order, so every text is right as often as
any other under any choice of training modality: a model that does not look at the picture stays at chance. (Had
"Which modality?" offered the other modalities, "MRI" would always be right in an MRI training set.)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from PIL import Image

from medr1.data.sources.phantoms.drawing import ANATOMIES, FINDINGS, GRADES, LOCATIONS, SCANNERS, draw
from medr1.data.sources.phantoms.techniques import TECHNIQUES
from medr1.domain.records import LETTERS, Modality, QuestionType, Record


class World(StrEnum):
    """Disjoint draws from the same distribution."""

    TRAIN = "train"
    TEST = "test"
    BASE = "base"  # what the shipped base model has seen


NAMES: dict[Modality, str] = {
    Modality.CT: "CT",
    Modality.MRI: "MRI",
    Modality.XRAY: "radiograph",
    Modality.US: "ultrasound",
    Modality.DER: "dermoscopy",
    Modality.FP: "fundus",
    Modality.OCT: "OCT",
    Modality.MICRO: "microscopy",
}

QUESTIONS: dict[QuestionType, tuple[str, ...]] = {
    QuestionType.ANATOMY: ("Which anatomy is shown?", "What part of the body does this picture show?"),
    QuestionType.DISEASE: ("Which finding is present?", "What abnormality can be seen in this picture?"),
    QuestionType.LESION: ("How severe is the finding?", "What is the grade of the abnormality?"),
    QuestionType.MODALITY: ("Which imaging technique was used?", "How was this picture acquired?"),
    QuestionType.ATTRIBUTES: ("Where is the finding?", "On which side of the picture does the abnormality lie?"),
}


@dataclass(frozen=True, slots=True)
class Phantom:
    """The truth about one picture. Implements ``ImageSource``."""

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
        """Names every attribute; each of its claims can be checked against this phantom."""
        name = NAMES[self.modality]
        return f"{name} {self.technique} {self.anatomy} {self.grade} {self.finding} {self.location}"

    def value(self, question_type: QuestionType) -> str:
        match question_type:
            case QuestionType.ANATOMY:
                return self.anatomy
            case QuestionType.DISEASE:
                return self.finding
            case QuestionType.LESION:
                return self.grade
            case QuestionType.MODALITY:
                return self.technique
            case QuestionType.ATTRIBUTES:
                return self.location

    def load(self, size: int) -> Image.Image:
        return draw(
            size,
            _stream(self.world, self.seed, self.modality, self.index, "pixels"),
            modality=self.modality,
            anatomy=self.anatomy,
            technique=self.technique,
            finding=self.finding,
            grade=self.grade,
            location=self.location,
            scanner=self.scanner,
        )


def choices(question_type: QuestionType, modality: Modality) -> tuple[str, ...]:
    """All values that the attribute behind a question type takes in a modality."""
    match question_type:
        case QuestionType.ANATOMY:
            return ANATOMIES[modality]
        case QuestionType.DISEASE:
            return FINDINGS
        case QuestionType.LESION:
            return GRADES
        case QuestionType.MODALITY:
            return tuple(TECHNIQUES[modality])
        case QuestionType.ATTRIBUTES:
            return LOCATIONS


def _stream(world: World, seed: int, modality: Modality, index: int, purpose: str) -> tuple[int, ...]:
    """Seed of an independent random stream for one purpose, the same on every machine."""
    digest = hashlib.sha256(f"{world.value}|{seed}|{modality.value}|{index}|{purpose}".encode()).digest()
    return tuple(int.from_bytes(digest[i : i + 4], "big") for i in range(0, 16, 4))


def make_phantom(world: World, seed: int, modality: Modality, index: int) -> Phantom:
    """Draws the attributes of one picture. Half of the test pictures come from the held-out scanner."""
    rng = np.random.default_rng(_stream(world, seed, modality, index, "attributes"))

    def pick(values: tuple[str, ...]) -> str:
        return values[int(rng.integers(len(values)))]

    drawn = {q: pick(choices(q, modality)) for q in QuestionType}
    held_out = world is World.TEST and bool(rng.random() < 0.5)
    scanner = SCANNERS[-1] if held_out else pick(SCANNERS[:-1])
    return Phantom(
        world=world,
        seed=seed,
        modality=modality,
        index=index,
        anatomy=drawn[QuestionType.ANATOMY],
        technique=drawn[QuestionType.MODALITY],
        finding=drawn[QuestionType.DISEASE],
        grade=drawn[QuestionType.LESION],
        location=drawn[QuestionType.ATTRIBUTES],
        scanner=scanner,
    )


def ask(phantom: Phantom, question_type: QuestionType, rng: np.random.Generator, shortcut: float = 0.0) -> Record:
    """One question on one phantom; ``rng`` orders the options and chooses the wording.

    With probability ``shortcut`` the right option of a *training* question stands at the letter that the scanner's
    texture gives away (scanner A -> letter A, ...); in test the order is always independent of the scanner.
    """
    values = choices(question_type, phantom.modality)
    order = [values[int(i)] for i in rng.permutation(len(values))]
    wording = QUESTIONS[question_type][int(rng.integers(len(QUESTIONS[question_type])))]
    tied = rng.random() < shortcut and phantom.world is World.TRAIN
    place = SCANNERS.index(phantom.scanner)
    truth = phantom.value(question_type)
    if tied and place < len(order):
        other = order.index(truth)
        order[place], order[other] = order[other], order[place]
    options = dict(zip(LETTERS, order, strict=False))
    name = f"{phantom.world.value}/{phantom.modality.value}/{phantom.index:05d}/{question_type.value}"
    return Record(
        id=name,
        image=phantom,
        modality=phantom.modality,
        question_type=question_type,
        question=wording,
        options=options,
        answer=next(letter for letter, text in options.items() if text == truth),
        rationale=phantom.rationale,
        origin="phantoms",
    )


def make_records(world: World, seed: int, images_per_modality: int, shortcut: float = 0.0) -> list[Record]:
    """Five questions, one of each type, on each of ``images_per_modality`` pictures of every modality."""
    records = []
    for modality in Modality:
        for index in range(images_per_modality):
            phantom = make_phantom(world, seed, modality, index)
            for question_type in QuestionType:
                rng = np.random.default_rng(_stream(world, seed, modality, index, question_type.value))
                records.append(ask(phantom, question_type, rng, shortcut))
    return records
