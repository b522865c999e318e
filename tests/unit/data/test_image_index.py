"""Image checks: decoded once, cached, rebuilt after damage; grouping by image content."""

from __future__ import annotations

import errno
import json
import logging
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medr1.data.image_index as image_index
import medr1.data.images as images
from medr1.data.image_index import ImageFacts, check_images, group_by_content, make_thumbnail
from medr1.data.images import DecodedImage
from medr1.domain.records import Reason

REAL = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "omnimedvqa-mini"
LIMIT = 1_000_000


def smooth(seed: int, width: int = 200, height: int = 160) -> Image.Image:
    """A smooth random image, similar to a scan."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def check(root: Path, names: list[str], limit: int = LIMIT) -> dict[str, ImageFacts]:
    return check_images(root, names, root / "cache", max_pixels=limit, workers=2)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The decoded paths, in order of decoding."""
    paths: list[str] = []
    real = images.decode

    def spy(root: Path, relative: str, max_pixels: int) -> DecodedImage:
        paths.append(relative)
        return real(root, relative, max_pixels)

    monkeypatch.setattr(images, "decode", spy)
    return paths


def test_only_new_and_changed_files_are_decoded(tmp_path: Path, decoded: list[str]) -> None:
    for name in ("a.png", "b.png"):
        smooth(ord(name[0])).save(tmp_path / name)
    (tmp_path / "broken.png").write_text("no image")
    names = ["a.png", "b.png", "broken.png", "a.png"]
    first = check(tmp_path, names)
    assert sorted(decoded) == ["a.png", "b.png", "broken.png"]
    assert first["broken.png"].reason is Reason.UNDECODABLE_IMAGE
    decoded.clear()
    assert check(tmp_path, names) == first
    assert decoded == []
    smooth(9).save(tmp_path / "a.png")
    changed = check(tmp_path, names)
    assert decoded == ["a.png"] and changed["a.png"].sha256 != first["a.png"].sha256
    assert changed["b.png"] == first["b.png"]


def test_other_images_stay_in_the_cache(tmp_path: Path, decoded: list[str]) -> None:
    for name in ("a.png", "b.png"):
        smooth(ord(name[0])).save(tmp_path / name)
        check(tmp_path, [name])
    decoded.clear()
    check(tmp_path, ["a.png", "b.png"])
    assert decoded == []


def test_another_pixel_limit_rebuilds_the_cache(tmp_path: Path) -> None:
    smooth(1).save(tmp_path / "a.png")
    assert check(tmp_path, ["a.png"], limit=100)["a.png"].reason is Reason.IMAGE_TOO_LARGE
    assert check(tmp_path, ["a.png"])["a.png"].reason is None


@pytest.mark.parametrize("damage", ["cut", "binary", "wrong_type", "short_thumbnail"])
def test_damaged_cache_is_rebuilt_with_a_warning(
    tmp_path: Path, damage: str, decoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    smooth(1).save(tmp_path / "a.png")
    first = check(tmp_path, ["a.png"])
    (cache,) = (tmp_path / "cache").iterdir()
    header, line = cache.read_text().splitlines()
    entry = json.loads(line)
    cache.write_bytes(
        {
            "cut": f"{header}\n{line[:40]}".encode(),
            "binary": b"\xff\xfe\x00\x01",
            "wrong_type": f"{header}\n[1, 2]\n".encode(),
            "short_thumbnail": f"{header}\n{json.dumps(entry | {'thumbnail': 'AAAA'})}\n".encode(),
        }[damage]
    )
    decoded.clear()
    with caplog.at_level(logging.WARNING):
        assert check(tmp_path, ["a.png"]) == first
    assert decoded == ["a.png"]
    assert "is damaged" in caplog.text and str(cache) in caplog.text
    assert json.loads(cache.read_text().splitlines()[1]) == entry
    assert list(cache.parent.iterdir()) == [cache], "a temporary file was left"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError("no memory")], ids=repr)
def test_an_error_of_the_machine_is_not_cached(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smooth(1).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_text("no image")

    def fail(*args: object, **settings: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(images, "to_rgb", fail)
        failed = check(tmp_path, ["a.png", "broken.png"])
    assert {facts.reason for facts in failed.values()} == {Reason.UNDECODABLE_IMAGE}
    again = check(tmp_path, ["a.png", "broken.png"])
    assert again["a.png"].reason is None and again["broken.png"] == failed["broken.png"]
    (cache,) = (tmp_path / "cache").glob("*.jsonl")
    assert "broken.png" in cache.read_text()


def test_missing_and_outside_files_are_named_but_not_cached(tmp_path: Path) -> None:
    facts = check(tmp_path, ["absent.png", "../x.png"])
    assert [fact.reason for fact in facts.values()] == [Reason.NO_IMAGE, Reason.PATH_LEAVES_ROOT]
    smooth(1).save(tmp_path / "absent.png")
    assert check(tmp_path, ["absent.png"])["absent.png"].reason is None


def test_format_size_and_brightness_do_not_change_the_content(tmp_path: Path) -> None:
    original = smooth(1)
    original.save(tmp_path / "a.png")
    original.save(tmp_path / "b.jpg", quality=75)
    original.resize((224, 224)).convert("L").save(tmp_path / "c.png")
    original.point(lambda value: int(value * 0.8) + 20).save(tmp_path / "d.png")
    original.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
    for seed in range(2, 30):
        smooth(seed).save(tmp_path / f"other{seed}.png")
    (tmp_path / "broken.png").write_text("no image")
    names = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    groups = group_by_content(check(tmp_path, names).values())
    assert [groups[name] for name in ("a.png", "b.jpg", "c.png", "d.png")] == ["a.png"] * 4
    assert len(set(groups.values())) == 1 + 1 + 28
    assert "broken.png" not in groups


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_an_image_that_exif_data_turns_has_the_content_of_the_upright_one(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # of Image.Transpose
    smooth(1).save(tmp_path / "a.png")
    smooth(1).transpose(Image.Transpose(turns[orientation])).save(tmp_path / "b.jpg", exif=exif)
    smooth(1).transpose(Image.Transpose(turns[orientation])).save(tmp_path / "c.jpg")
    groups = group_by_content(check(tmp_path, ["a.png", "b.jpg", "c.jpg"]).values())
    assert groups == {"a.png": "a.png", "b.jpg": "a.png", "c.jpg": "c.jpg"}


def test_notes_are_cached_and_another_dicom_support_rebuilds_the_cache(
    tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    smooth(1).save(tmp_path / "a.gif", save_all=True, append_images=[smooth(2), smooth(3)])
    first = check(tmp_path, ["a.gif"])
    assert "3 frames" in first["a.gif"].notes[0]
    assert check(tmp_path, ["a.gif"]) == first and decoded == ["a.gif"]
    monkeypatch.setattr(image_index, "can_read_dicom", lambda: False)
    assert check(tmp_path, ["a.gif"]) == first and decoded == ["a.gif", "a.gif"]


def test_groups_are_transitive_and_end_at_the_threshold() -> None:
    base = np.random.default_rng(0).normal(size=256)
    step = np.random.default_rng(1).normal(size=256)
    step *= 0.1 * 16 / np.linalg.norm(step)

    def fact(name: str, steps: float) -> ImageFacts:
        values = np.rint((base + steps * step) * 16).astype(np.int8)
        return ImageFacts(name, 1, 1, "", values.tobytes())

    assert group_by_content([fact("b", 0), fact("a", 1)]) == {"a": "a", "b": "a"}
    assert group_by_content([fact("a", 0), fact("b", 2)]) == {"a": "a", "b": "b"}
    assert set(group_by_content([fact("a", 0), fact("b", 2), fact("c", 1)]).values()) == {"a"}


def test_ten_thousand_images_and_a_thousand_copies_take_seconds() -> None:
    rng = np.random.default_rng(0)
    thumbnails = rng.normal(0, 16, (10_000, 256)).clip(-127, 127).astype(np.int8)
    thumbnails[:1000] = thumbnails[0]
    facts = [ImageFacts(f"{i:05d}", 1, 1, "", row.tobytes()) for i, row in enumerate(thumbnails)]
    start = time.process_time()
    groups = group_by_content(facts)
    assert len(set(groups.values())) == 9001
    assert time.process_time() - start < 20


def test_thumbnail_ignores_brightness_and_size() -> None:
    a, b = smooth(3), smooth(3).resize((97, 301)).point(lambda value: value // 2 + 60)
    distance = np.frombuffer(make_thumbnail(a), np.int8) / 16 - np.frombuffer(make_thumbnail(b), np.int8) / 16
    assert np.sqrt((distance**2).mean()) < image_index.MAX_CONTENT_DISTANCE / 2


@pytest.mark.skipif(not REAL.is_dir(), reason="the OmniMedVQA sample is not beside the repository")
def test_real_images_form_the_groups_found_by_inspection(tmp_path: Path) -> None:
    names = [str(path.relative_to(REAL)) for path in (REAL / "Images").rglob("*") if path.is_file()]
    found = check_images(REAL, names, tmp_path, max_pixels=LIMIT)
    groups = group_by_content(found.values())
    assert len(groups) == 1194 and len(set(groups.values())) == 1151
    sperm = [name for name in groups if "/MHSMA/" in name]
    pairs = [(name, name[:-3] + "png") for name in sperm if name.endswith("jpg") and name[:-3] + "png" in groups]
    assert len(pairs) == 22 and all(groups[a] == groups[b] for a, b in pairs)
    assert len({groups[name] for name in sperm}) == len({Path(name).stem for name in sperm})
    radiographs = {Path(name).name: name for name in groups if "/CoronaHack/" in name}
    copies = [name for name in groups if "/OCT & X-Ray 2017/" in name and Path(name).name in radiographs]
    assert copies and all(groups[name] == groups[radiographs[Path(name).name]] for name in copies)
