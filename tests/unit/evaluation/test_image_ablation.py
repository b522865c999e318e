"""Blank and exchanged images, also of records with several images of different sizes."""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from medr1.config.enums import Resize
from medr1.data.image_loader import cached_image_loader
from medr1.data.image_size import ImageSize
from medr1.data.sources.phantoms.records import World, make_records
from medr1.evaluation.image_ablation import MID_GREY, ImageAblation, ablated_loader, shuffled_images

PHANTOMS = make_records(World.TEST, 0, 6)[::5]  # one question of each image, 6 of each modality
PAIRS = [
    replace(record, id=f"{record.id}/pair", images=(*record.images, *other.images))
    for record, other in zip(PHANTOMS[::2], PHANTOMS[1::2], strict=True)
]
RECORDS = [record for pair in zip(PHANTOMS[::2], PAIRS, strict=True) for record in pair]


def load_sizes(record):
    """The number of images, each of another size."""
    return tuple(Image.new("RGB", (28 * i, 56), "red") for i in range(1, len(record.images) + 1))


def test_every_image_is_blank_and_keeps_its_size() -> None:
    load = ablated_loader(RECORDS, ImageAblation.BLANK, load_sizes)
    for record in RECORDS:
        images = load(record)
        assert [image.size for image in images] == [image.size for image in load_sizes(record)]
        assert all(image.getcolors() == [(image.width * image.height, MID_GREY)] for image in images)


def test_images_are_exchanged_for_as_many_others_of_the_modality() -> None:
    others = shuffled_images(RECORDS)
    for record, other in zip(RECORDS, others, strict=True):
        assert len(other.images) == len(record.images) and other.modality == record.modality
        assert other.image_key != record.image_key
    assert sorted(other.id for other in others) == sorted(record.id for record in RECORDS)
    load = ablated_loader(RECORDS, ImageAblation.SHUFFLED, lambda record: record.images)
    assert [load(record) for record in RECORDS] == [other.images for other in others]


def test_the_only_image_of_a_modality_is_exchanged_for_one_of_another() -> None:
    rare = [replace(PHANTOMS[0], modality="pet"), replace(PHANTOMS[1], modality="ecg"), *PHANTOMS[6:18]]
    others = shuffled_images([*rare, PAIRS[0]])
    assert all(other.image_key != record.image_key for record, other in zip(rare, others[:-1], strict=True))
    assert others[-1] == PAIRS[0], "no other record has two images"
    assert others[2:-1] == shuffled_images(rare[2:]), "those of other modalities do not depend on it"


def test_the_exchange_of_single_images_does_not_depend_on_records_with_several() -> None:
    alone = dict(zip((r.id for r in PHANTOMS), shuffled_images(PHANTOMS), strict=True))
    together = dict(zip((r.id for r in PHANTOMS + PAIRS), shuffled_images(PHANTOMS + PAIRS), strict=True))
    assert all(together[r.id] == alone[r.id] for r in PHANTOMS)


def test_native_images_are_exchanged_with_their_sizes() -> None:
    load = cached_image_loader(ImageSize(Resize.native, 84, 784, 3136, 28))
    shuffled = ablated_loader(PAIRS, ImageAblation.SHUFFLED, load)
    assert [image.size for image in shuffled(PAIRS[0])] == [(56, 56)] * 2
