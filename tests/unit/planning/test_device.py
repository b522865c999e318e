"""The main memory that a run may take: that of the machine within the limits of control groups."""

from __future__ import annotations

from pathlib import Path

from medr1.planning.device import GIB, _control_group_limits


def write_group(folder: Path, limit: str, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - cached}\ninactive_file {cached}\nactive_file 0\n")


def test_the_limits_of_a_group_and_of_those_above_it(tmp_path: Path) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "self"
    write_group(root / "slurm" / "job" / "task", "max", GIB, 0)
    write_group(root / "slurm" / "job", str(8 * GIB), 3 * GIB, GIB)
    write_group(root / "slurm", str(64 * GIB), 4 * GIB, 0)
    write_group(root / "slurm" / "other", str(GIB), 0, 0)
    membership.write_text("1:memory:/elsewhere\n0::/slurm/job/task\n")
    assert list(_control_group_limits(root, membership)) == [(8 * GIB, 2 * GIB), (64 * GIB, 4 * GIB)]


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("4:memory:/here\n")
    assert list(_control_group_limits(tmp_path, tmp_path / "self")) == []
    assert list(_control_group_limits(tmp_path, tmp_path / "nowhere")) == []
