"""Printing never fails, whatever the terminal is, and the log holds what was printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TEXT = "MRI† ━━ 数据 é \udcff ✓"
SCRIPT = f"""
import sys
from medr1.runs.terminal import log_to, protect_terminal
protect_terminal()
protect_terminal()  # a second call changes nothing
print({TEXT!a})
print({TEXT!a}, file=sys.stderr)
if len(sys.argv) > 1:
    from pathlib import Path
    log_to(Path(sys.argv[1]))
"""


def run(script: str, *words: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    line = [sys.executable, "-c", script, *words]
    if shell:
        line = ["bash", "-c", f'"$@" {shell}', "bash", *line]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIO"))}
    return subprocess.run(line, capture_output=True, timeout=60, env={**clean, **environment}, check=False)


@pytest.mark.parametrize(
    "environment",
    [
        *({"PYTHONIOENCODING": name} for name in ("ascii", "latin-1", "cp1252", "cp437", "utf-8", "utf-16", "gbk")),
        *({"PYTHONIOENCODING": f"ascii:{errors}"} for errors in ("strict", "surrogateescape", "ignore")),
        *({"LC_ALL": name} for name in ("C", "POSIX", "en_US.ISO-8859-1", "C.UTF-8", "nowhere")),
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "ascii"},
    ],
    ids=str,
)
def test_a_character_that_the_terminal_lacks_is_replaced(environment: dict[str, str], tmp_path: Path) -> None:
    done = run(SCRIPT, str(tmp_path / "job.log"), **environment)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert b"MRI" in done.stdout.replace(b"\0", b"") and b"MRI" in done.stderr.replace(b"\0", b"")
    logged = (tmp_path / "job.log").read_text(encoding="utf-8")
    assert logged.count("MRI† ━━ 数据 é ? ✓\n") == 2, "the log has every character"


def test_the_encoding_stays(tmp_path: Path) -> None:
    assert "é".encode("latin-1") in run(SCRIPT, PYTHONIOENCODING="latin-1").stdout
    assert "数据 é".encode() in run(SCRIPT, PYTHONIOENCODING="utf-8").stdout


LONG = """
import sys
from pathlib import Path
from medr1.runs.terminal import log_to, protect_terminal
protect_terminal()
log_to(Path(sys.argv[1]))
for number in range(20000):
    print("line", number, flush=number % 2 == 0)
print("end", file=sys.stderr)
"""


@pytest.mark.parametrize(
    "shell",
    [
        "| head -n 1",
        "2>&1 | head -n 1",
        "| true",
        "> /dev/full",
        "> /dev/full 2>&1",
        ">&-",
        ">&- 2>&-",
        "2>&-",
        "> /dev/null",
    ],
)
def test_a_reader_that_ends_or_a_full_disk_does_not_end_the_command(shell: str, tmp_path: Path) -> None:
    done = run(LONG, str(tmp_path / "job.log"), shell=f"{shell}; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
    lines = (tmp_path / "job.log").read_text().splitlines()
    assert lines == [*(f"line {number}" for number in range(20000)), "end"]


@pytest.mark.parametrize(
    ("printed", "logged"),
    [
        ("a\nb\n", "a\nb\n"),
        ("no end", "no end\n"),
        ("\r 1/3\r 2/3\r 3/3\n", " 3/3\n"),
        ("\r 1/3\r 2/3", " 2/3\n"),
        ("windows\r\n", "windows\n"),
        ("\x1b[31mred\x1b[0m \x1b[1;4mx\x1b[A\x1b[2K\n", "red x\n"),
        ("\n\n", "\n\n"),
        ("", ""),
    ],
)
def test_the_log_has_the_lines_as_a_terminal_shows_them(printed: str, logged: str, tmp_path: Path) -> None:
    """Whether they are printed before the log is opened or after."""
    for position in ("before", "after"):
        write = f"[sys.stdout.write(c) for c in {printed!r}]\n"
        opened = f"log_to(Path({str(tmp_path / position)!r}))\n"
        head = "import sys\nfrom pathlib import Path\nfrom medr1.runs.terminal import log_to, protect_terminal\n"
        body = write + opened if position == "before" else opened + write
        assert run(head + "protect_terminal()\n" + body).returncode == 0
        assert (tmp_path / position).read_text() == logged


def test_a_redirected_output_is_not_logged_twice(tmp_path: Path) -> None:
    done = run(LONG, str(tmp_path / "job.log"), shell=f">> {tmp_path}/job.log 2>&1")
    assert done.returncode == 0
    assert (tmp_path / "job.log").read_text().splitlines() == [*(f"line {n}" for n in range(20000)), "end"]


def test_a_traceback_is_logged_and_an_earlier_log_is_kept(tmp_path: Path) -> None:
    (tmp_path / "job.log").write_text("earlier\n")
    done = run(LONG + "raise ValueError('broken')", str(tmp_path / "job.log"))
    logged = (tmp_path / "job.log").read_text()
    assert done.returncode == 1 and b"ValueError: broken" in done.stderr
    assert logged.startswith("earlier\nline 0\n") and logged.endswith("ValueError: broken\n")


def test_a_log_that_cannot_be_continued_is_told_once(tmp_path: Path) -> None:
    script = "import resource, signal\nresource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n" + LONG
    done = run(script, str(tmp_path / "job.log"))
    assert done.returncode == 0 and done.stderr.count(b"warning: ") == 1
    assert f"nothing more is written to {tmp_path}/job.log: File too large".encode() in done.stderr
    assert done.stdout.count(b"\n") == 20000
