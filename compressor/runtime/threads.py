"""How many threads this process may really use: CPU affinity and the cgroup's quota, never the host's count."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc/self")


def available_threads() -> int:
    """Return the threads this process may use: the lesser of its CPU affinity and its cgroup's CPU quota, at least 1.

    A quota of 2.5 CPUs gives 2: a third thread would be throttled, and the others wait for it at every barrier.
    """
    quota = _quota_cpus(_PROC)
    return _affinity() if quota is None else max(1, min(_affinity(), int(quota)))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _quota_cpus(proc: Path) -> float | None:
    """Return the least CPU quota on the way from this process's cgroup to the root, or None where nothing limits it.

    Args:
        proc: ``/proc/self``: ``cgroup`` names the groups, ``mountinfo`` says where their trees are mounted.
    """
    quotas = [quota for folder in _cgroup_folders(proc) if (quota := _folder_quota(folder)) is not None]
    return min(quotas, default=None)


def _cgroup_folders(proc: Path) -> list[Path]:
    try:
        groups = (proc / "cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (proc / "mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []  # not Linux
    paths = {}  # "" is version 2's single tree
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            paths[controllers and "cpu"] = path
    folders: list[Path] = []
    for line in mounts:
        left, _, right = line.partition(" - ")
        root, mount_point = left.split()[3:5]
        kind, _, options = right.split(maxsplit=2)
        tree = "" if kind == "cgroup2" else "cpu" if kind == "cgroup" and "cpu" in options.split(",") else None
        if tree is None or tree not in paths:
            continue
        folders += _up_to(Path(mount_point), root, paths[tree])
    return folders


def _up_to(mount_point: Path, root: str, path: str) -> list[Path]:
    """Return the group's folder and its ancestors; in a container the mount's root is the group itself."""
    try:
        below = Path(path).relative_to(root)
    except ValueError:
        below = Path()
    if ".." in below.parts:  # a group outside this namespace
        below = Path()
    folder = mount_point / below
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(mount_point))]


def _folder_quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8").strip()
        return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None  # no quota file: the root group, or a kernel without quotas
