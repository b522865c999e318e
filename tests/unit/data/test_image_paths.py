"""Image paths: the exact one first, then the only file that is spelled otherwise, never outside the root."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medr1.data.image_paths import ImagePaths
from medr1.domain.records import BadRecord, Reason


def put(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def rejected(root: Path, written: str) -> BadRecord:
    with pytest.raises(BadRecord) as caught:
        ImagePaths(root).find(written)
    assert repr(written) in caught.value.detail
    return caught.value


NFC, NFD = (unicodedata.normalize(form, "Images/Bösch/é 1.png") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("file", "written"),
    [
        ("Images/D/1.png", "Images\\D\\1.png"),
        ("Images/D/1.png", "Images/D\\1.png"),
        ("Images/D/1.png", "Images//D/./1.png "),
        ("Images/D/1.png", "images/d/1.PNG"),
        ("Images/D/1.PNG", "Images/D/1.png"),
        ("IMAGES/D/1.png", "Images/D/1.png"),
        ("Images/D/1.png", "Images/D/1.png\n"),
        ("Images/D/1.png", " Images/ D /1.png"),
        ("Images/D /1.png", "Images/D/1.png"),
        ("Images/D/1.png ", "Images/D/1.png"),
        ("Images/a b/1 (6).png", "Images/a%20b/1%20%286%29.png"),
        ("Images/a%20b/1.png", "Images/a b/1.png"),
        ("Images/a b/1.png", "Images%2Fa%20b%2F1.png"),
        ("Images/a b/1.png", "Images%5Ca b%5c1.png"),
        ("Images/50%.png", "Images/50%25.png"),
        (NFC, NFD),
        (NFD, NFC),
        (NFC, "Images/B%C3%B6sch/%C3%A9 1.png"),
        (NFD, "IMAGES\\BÖSCH\\É%201.PNG "),
    ],
)
def test_one_file_in_another_spelling_is_found_and_counted(tmp_path: Path, file: str, written: str) -> None:
    paths = ImagePaths(put(tmp_path, file, "Images/D/2.png", "Images/E/1.png"))
    if (tmp_path / written).is_file():
        pytest.skip("this file system does not tell the two spellings apart")
    assert paths.find(written) == paths.find(written) == file
    assert paths.respelled == {written: file}


@pytest.mark.parametrize(
    "written",
    ["Images/D/1.png", "Images/d/1.png", "Images/D/1%20.png", "Images\\D\\1.png", "Images/D/1.png ", NFC, NFD],
)
def test_the_exact_path_comes_first(tmp_path: Path, written: str) -> None:
    put(tmp_path, "Images/D/1.png", "Images/d/1.png", "Images/D/1 .png", "Images/D/1%20.png", NFC, NFD)
    paths = ImagePaths(put(tmp_path, written))
    assert paths.find(written) == written and paths.respelled == {}


@pytest.mark.parametrize(
    ("files", "written"),
    [
        (("Images/D/1.png", "Images/D/1.PNG"), "Images/D/1.Png"),
        (("Images/D/1.png", "images/D/1.png"), "IMAGES/D/1.png"),
        (("Images/D/1.png", "Images/d/1.png"), "Images\\D\\1.png"),
        (("Images/a b.png", "Images/a%20b.png"), "Images/A B.png"),
        (("Images/1.png", "Images/1.png "), "images/1.png"),
    ],
)
def test_several_files_that_fit_are_an_error_that_names_them(tmp_path: Path, files: tuple[str], written: str) -> None:
    bad = rejected(put(tmp_path, *files), written)
    assert bad.reason is Reason.AMBIGUOUS_IMAGE
    assert all(repr(file) in bad.detail for file in files) and "Remedy" in bad.detail


def test_two_spellings_of_one_file_are_not_ambiguous(tmp_path: Path) -> None:
    put(tmp_path, "Images/D/1.png")
    (tmp_path / "images").symlink_to(tmp_path / "Images")
    assert ImagePaths(tmp_path).find("IMAGES/D/1.png") == "Images/D/1.png"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("Images/D/1.jpg", "Images/D has no '1.jpg'; the most similar name there is '1.png'"),
        ("Images/Chest/1.png", "Images has no 'Chest'; the most similar name there is 'Chest CT'"),
        ("Image/D/1.png", "it has no 'Image'; the most similar name there is 'Images'"),
        ("Images/D/zzzz", "Images/D has no 'zzzz'"),
        ("Images/D", "does not exist"),
        ("Images/D/1.png/x.png", "does not exist"),
        (".", "does not exist"),
        ("%20", "does not exist"),
        ("Images/.hidden/2.PNG", "'.hidden'"),
        ("images/__macosx/3.png", "'__macosx'"),
    ],
)
def test_a_missing_file_is_described(tmp_path: Path, written: str, said: str) -> None:
    root = put(tmp_path, "Images/D/1.png", "Images/Chest CT/1.png", "Images/.hidden/2.png", "Images/__MACOSX/3.png")
    bad = rejected(root, written)
    assert bad.reason is Reason.NO_IMAGE and said in bad.detail


@pytest.mark.parametrize(
    "written",
    [
        "../out.png",
        "Images/../../out.png",
        "..\\out.png",
        "%2e%2e/out.png",
        "Images%2F..%2f..%2Fout.png",
        "%2E.\\out.png",
        ".. /out.png",
        "/out.png",
        "C:\\out.png",
        "C%3A\\out.png",
    ],
)
def test_no_spelling_leaves_the_root(tmp_path: Path, written: str) -> None:
    put(tmp_path, "out.png", "root/Images/D/1.png")
    assert rejected(tmp_path / "root", written).reason is Reason.PATH_LEAVES_ROOT


@pytest.mark.parametrize("where", ["Images", "Images/D", "Images/D/1.png"])
@pytest.mark.parametrize("written", ["Images/D/1.png", "images\\d\\1.PNG"])
def test_links_of_the_owner_are_followed(tmp_path: Path, where: str, written: str) -> None:
    put(tmp_path, "elsewhere/Images/D/1.png")
    link = tmp_path / "root" / where
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "elsewhere" / where)
    assert ImagePaths(tmp_path / "root").find(written) == "Images/D/1.png"


def test_link_loops_end(tmp_path: Path) -> None:
    put(tmp_path, "Images/1.png")
    (tmp_path / "Images/up").symlink_to(tmp_path)
    (tmp_path / "Images/self.png").symlink_to(tmp_path / "Images/self.png")
    assert ImagePaths(tmp_path).find("images/UP/images/Up/Images/1.PNG") == "Images/up/Images/up/Images/1.png"
    assert rejected(tmp_path, "Images/self.png").reason is Reason.NO_IMAGE
    assert rejected(tmp_path, "Images/SELF.png").reason is Reason.NO_IMAGE


def test_a_missing_release_is_reported_quickly(tmp_path: Path) -> None:
    """Similar names are looked up a limited number of times."""
    paths = ImagePaths(put(tmp_path, *(f"Images/D/{n}.png" for n in range(50))))
    details = []
    for number in range(100):
        with pytest.raises(BadRecord) as caught:
            paths.find(f"Images/D/{number}.jpg")
        details.append(caught.value.detail)
    assert sum("most similar" in detail for detail in details) == 20


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("tree"), "root/Images/a b/1.png", "root/Images/D/2.PNG", "1.png")


_PIECES = st.sampled_from(
    ["Images", "images", "a b", "a%20b", "D", "1.png", "2.png", "..", ".", "/", "\\", "%2F", "%00"]
)


@given(st.one_of(st.text(), st.lists(_PIECES, max_size=8).map("/".join), st.lists(_PIECES, max_size=8).map("".join)))
def test_any_path_is_found_below_the_root_or_rejected(tree: Path, written: str) -> None:
    root = tree / "root"
    try:
        found = ImagePaths(root).find(written)
    except BadRecord as bad:
        assert bad.detail
        return
    assert (root / found).is_file() and (root / found).resolve().is_relative_to(root.resolve())
