"""Whatever happens while a file or a directory is written, its old content or its new content is there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from medr1.atomic_write import atomic_directory, atomic_write, read_json, restore_directory, write_json, write_text


def killed(*_: Any) -> None:
    raise KeyboardInterrupt


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_kill_while_writing_leaves_the_old_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_text(file, "old")
    monkeypatch.setattr(os, call, killed)
    with pytest.raises(KeyboardInterrupt):
        write_text(file, "new and longer")
    assert file.read_text() == "old" and names(tmp_path) == ["file"]
    monkeypatch.undo()
    write_text(file, "new and longer")
    assert file.read_text() == "new and longer"


def test_an_exception_in_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file"
    with pytest.raises(ValueError, match="stop"), atomic_write(file) as opened:
        opened.write(b"half")
        raise ValueError("stop")
    assert names(file.parent) == []
    write_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "half\ud800")
    assert file.read_text() == "old" and names(file.parent) == ["file"]


def test_line_ends_are_written_as_they_are(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "a\nb\r\n")
    assert (tmp_path / "file").read_bytes() == b"a\nb\r\n"


def test_json_takes_paths_and_is_sorted(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "x.json"
    write_json(file, {"b": tmp_path, "a": 1})
    assert list(json.loads(file.read_text()).items()) == [("a", 1), ("b", str(tmp_path))]
    assert read_json(file) == {"a": 1, "b": str(tmp_path)}


def fill(path: Path, content: str) -> None:
    with atomic_directory(path) as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "file").write_text(content)


def test_a_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        fill(tmp_path / "model", content)
        assert (tmp_path / "model" / "inside" / "file").read_text() == content and names(tmp_path) == ["model"]
    with pytest.raises(ValueError, match="stop"), atomic_directory(tmp_path / "model") as folder:
        (folder / "file").touch()
        raise ValueError("stop")
    assert (tmp_path / "model" / "inside" / "file").read_text() == "new" and names(tmp_path) == ["model"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "half").touch()
    fill(tmp_path / "model", "new")
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["inside"]


@pytest.mark.parametrize("fatal", [0, 1])
def test_a_kill_between_the_renames_is_undone(fatal: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "model", "old")
    rename, calls = os.rename, list[Any]()

    def deadly(*paths: Path) -> None:
        calls.append(paths)
        if len(calls) > fatal:
            raise KeyboardInterrupt
        rename(*paths)

    monkeypatch.setattr(os, "rename", deadly)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "model", "new")
    monkeypatch.undo()
    assert (tmp_path / "model").exists() is (fatal == 0)
    restore_directory(tmp_path / "model")
    assert (tmp_path / "model" / "inside" / "file").read_text() == "old"
    restore_directory(tmp_path / "nothing")
    assert names(tmp_path) == ["model"]
