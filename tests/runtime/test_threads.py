from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.runtime import threads
from compressor.runtime.threads import available_threads


def proc_with(tmp_path: Path, groups: str, mounts: list[str]) -> Path:
    """A ``/proc/self`` whose mounts lie under ``tmp_path``: ``ROOT MOUNT_POINT KIND OPTIONS`` each."""
    lines = []
    for mount in mounts:
        root, point, kind, options = mount.split()
        lines.append(f"31 23 0:28 {root} {tmp_path}{point} rw,relatime shared:9 - {kind} none {options}")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cgroup").write_text(groups)
    (tmp_path / "proc" / "mountinfo").write_text("\n".join(lines) + "\n")
    return tmp_path / "proc"


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))


@pytest.mark.usefixtures("sixteen_cores")
@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [
        ("max 100000\n", 16),
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("9900000 100000", 16),
    ],
)
def test_version_2_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_max: str, expected: int) -> None:
    proc = proc_with(tmp_path, "0::/app/worker\n", ["/ /cgroup cgroup2 rw"])
    put(tmp_path / "cgroup/app/worker/cpu.max", cpu_max)
    monkeypatch.setattr(threads, "_PROC", proc)
    assert available_threads() == expected


@pytest.mark.usefixtures("sixteen_cores")
def test_the_tightest_ancestor_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = proc_with(tmp_path, "0::/app/worker\n", ["/ /cgroup cgroup2 rw"])
    put(tmp_path / "cgroup/app/worker/cpu.max", "max 100000\n")
    put(tmp_path / "cgroup/app/cpu.max", "300000 100000\n")
    monkeypatch.setattr(threads, "_PROC", proc)
    assert available_threads() == 3


@pytest.mark.usefixtures("sixteen_cores")
@pytest.mark.parametrize(
    ("quota_us", "root", "expected"), [("400000", "/", 4), ("-1", "/", 16), ("400000", "/docker/abc", 4)]
)
def test_version_1_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota_us: str, root: str, expected: int
) -> None:
    """In a container the group's own folder is the mount's root."""
    groups = "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n"
    proc = proc_with(tmp_path, groups, [f"{root} /cpu cgroup rw,cpu,cpuacct", "/ /memory cgroup rw,memory"])
    folder = tmp_path / "cpu" / ("docker/abc" if root == "/" else "")
    put(folder / "cpu.cfs_quota_us", quota_us)
    put(folder / "cpu.cfs_period_us", "100000\n")
    monkeypatch.setattr(threads, "_PROC", proc)
    assert available_threads() == expected


@pytest.mark.usefixtures("sixteen_cores")
@pytest.mark.parametrize("groups", ["0::/../../outside\n", "0::/elsewhere\n"])
def test_a_group_outside_the_namespace_reads_the_mount_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str
) -> None:
    proc = proc_with(tmp_path, groups, ["/here /cgroup cgroup2 rw"])
    put(tmp_path / "cgroup/cpu.max", "500000 100000\n")
    monkeypatch.setattr(threads, "_PROC", proc)
    assert available_threads() == 5


@pytest.mark.usefixtures("sixteen_cores")
def test_without_proc_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_PROC", tmp_path / "absent")
    assert available_threads() == 16


@pytest.mark.usefixtures("sixteen_cores")
def test_broken_quota_files_limit_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = proc_with(tmp_path, "0::/\n", ["/ /cgroup cgroup2 rw"])
    put(tmp_path / "cgroup/cpu.max", "who knows\n")
    monkeypatch.setattr(threads, "_PROC", proc)
    assert available_threads() == 16


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_affinity_of_a_real_process(repository: Path) -> None:
    core = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{core}])\n"
    code += "from compressor.runtime.threads import available_threads as n; print(n())"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
