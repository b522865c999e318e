"""A disk that is full or may not be written is one message with what is safe, and the run continues from there."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medr1.errors import Medr1Error, StorageError
from medr1.runs.run_directory import RunDirectory
from medr1.runs.storage import storage_problem
from medr1.workflows.train import train
from tests.integration.conftest import composed, only_run, run_command, train_here

SETTINGS = (
    "debug=quick",
    "modality=ct",
    "reasoning=no_think",
    "data.train_images_per_modality=12",
    "data.test_images_per_modality=1",
    "trainer.accelerator=cpu",
    "trainer.max_steps=2",
    "evaluation.limit=1",
    "evaluation.blank_image=false",
    "evaluation.shuffled_image=false",
)


def chained(inner: BaseException, outer: BaseException) -> BaseException:
    outer.__cause__ = inner
    return outer


def full_database(path: Path) -> sqlite3.Error:
    """The error of a real database that may not grow."""
    base = sqlite3.connect(path)
    base.execute("create table t (x)")
    base.commit()
    base.execute("pragma max_page_count=2")
    with pytest.raises(sqlite3.Error) as error:
        base.execute("insert into t values (zeroblob(100000))")
    base.close()
    return error.value


@pytest.mark.parametrize(
    ("error", "words"),
    [
        *(
            (OSError(number, os.strerror(number), "/d/file"), ["/d/file: ", os.strerror(number)])
            for number in (
                errno.ENOSPC,
                errno.EDQUOT,
                errno.EACCES,
                errno.EPERM,
                errno.EROFS,
                errno.EFBIG,
                errno.EIO,
                errno.ESTALE,
            )
        ),
        (OSError(errno.ENOSPC, "x"), ["No space left on device; free space"]),
        (PermissionError(errno.EACCES, "x", b"/d/\xff"), ["/d/"]),
        (chained(OSError(errno.EDQUOT, "x", "/d"), RuntimeError("writer failed")), ["/d", "quota"]),
        (chained(chained(OSError(errno.EROFS, "x"), ValueError()), KeyError()), ["Read-only file system"]),
        (Exception('Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "x" })'), ["No space"]),
        (Exception("Disk quota exceeded (os error 122)"), ["quota"]),
    ],
    ids=lambda value: repr(value) if isinstance(value, BaseException) else "",
)
def test_an_error_of_storage_is_recognized(error: BaseException, words: list[str]) -> None:
    problem = storage_problem(error)
    assert problem is not None and [word for word in words if word not in problem] == [], problem


def test_a_full_database_is_recognized(tmp_path: Path) -> None:
    problem = storage_problem(chained(full_database(tmp_path / "d"), RuntimeError("mlflow")))
    assert problem is not None and "No space left on device (database or disk is full)" in problem


@pytest.mark.parametrize(
    "error",
    [
        OSError("no number"),
        FileNotFoundError(errno.ENOENT, "x"),
        ConnectionRefusedError(errno.ECONNREFUSED, "x"),
        BrokenPipeError(errno.EPIPE, "x"),
        ValueError("code: 28"),
        sqlite3.OperationalError("database is locked"),
        Exception("Connection refused (os error 111)"),
        KeyError("Os"),
    ],
    ids=repr,
)
def test_any_other_error_is_not(error: BaseException) -> None:
    assert storage_problem(error) is None


def test_an_error_that_is_its_own_context_ends() -> None:
    one, other = ValueError("a"), ValueError("b")
    one.__context__, other.__context__ = other, one
    assert storage_problem(one) is None


@contextmanager
def mounted(place: Path, options: str) -> Iterator[None]:
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here: this needs root and its capabilities")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB. A checkpoint takes 19 MB, the model 6 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, "size=64m"):
        yield disk


@pytest.fixture(scope="module")
def peace(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return train_here(tmp_path_factory.mktemp("peace") / "run", *SETTINGS, "tracking=none")


def fill(disk: Path, leave: int) -> Path:
    filler = disk / "filler"
    with filler.open("wb") as file:
        file.truncate(0)
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - leave)
    return filler


@pytest.mark.parametrize(
    ("leave", "save_steps", "safe"),
    [
        pytest.param(0, 1, None, marks=pytest.mark.long, id="at the start"),
        pytest.param(100_000, 1, "the predictions base", id="first checkpoint"),
        pytest.param(25_000_000, 1, "the checkpoint step=1", marks=pytest.mark.long, id="second checkpoint"),
        pytest.param(22_000_000, 2, "the checkpoint step=2", marks=pytest.mark.long, id="model"),
    ],
)
def test_a_full_disk_is_one_message_and_the_run_resumes(
    leave: int, save_steps: int, safe: str | None, small_disk: Path, peace: RunDirectory
) -> None:
    run, filler = RunDirectory(small_disk / "run"), fill(small_disk, leave)
    with pytest.raises(Medr1Error) as error:
        train_here(run.path, *SETTINGS, "tracking=none", f"trainer.save_steps={save_steps}")
    message = str(error.value)
    assert "No space left on device" in message
    filler.unlink()
    if safe is None:
        assert "choose another output_dir" in message
        return
    assert isinstance(error.value, StorageError)
    assert f"resume={run.path}" in message and safe in message.partition("Safe in")[2]
    assert not list(run.path.glob("**/.*.partial")) and not list(run.path.glob("**/.*.tmp")), "nothing half written"
    train(composed("train", f"resume={run.path}"), run.path, [])
    ours, theirs = (load_file(r.model / "model.safetensors") for r in (run, peace))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert run.metrics.read_text().count("\n") == 2


@pytest.mark.long
def test_the_command_says_it_and_resumes_with_mlflow_on_the_same_disk(small_disk: Path) -> None:
    filler = fill(small_disk, 12_000_000)
    printed = run_command("train.py", *SETTINGS, f"output_dir={small_disk}", status=2)
    assert "Traceback" not in printed and printed.count("error: ") == 1
    filler.unlink()
    shutil.rmtree(small_disk / "mlartifacts", ignore_errors=True)
    run = only_run(small_disk)
    assert f"python train.py resume={run.path}" in printed
    assert (
        printed[printed.index("error: ") :].splitlines()[0] in run.log.read_text()
        or "nothing more is written" in printed
    )
    run_command("train.py", f"resume={run.path}")
    assert run.finished.is_file()


def test_a_directory_that_may_not_be_written_is_one_message(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    (run.path / "predictions").mkdir(parents=True)
    with mounted(run.path / "predictions", "ro"), pytest.raises(StorageError, match="Read-only file system") as error:
        train_here(run.path, *SETTINGS, "tracking=none")
    assert f"resume={run.path}" in str(error.value)
    train(composed("train", f"resume={run.path}"), run.path, [])
    assert run.finished.is_file()
