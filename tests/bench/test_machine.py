from __future__ import annotations

import os
from pathlib import Path

import pytest

from compressor.bench import machine


def test_this_machine_is_described():
    found = machine.describe_machine()
    assert found.cpu
    assert 1 <= found.available_threads <= found.logical_cpus == os.cpu_count()
    assert {"python", "numpy", "onnxruntime", "rankpress"} <= found.versions.keys()
    assert found.memory_bytes is None or found.memory_bytes > 1e8


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"/sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"/sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 2),
        ({}, None),
    ],
)
def test_quotas_of_both_cgroup_versions(monkeypatch, files, quota):
    def read(self, **kwargs):
        if str(self) not in files:
            raise FileNotFoundError(self)
        return files[str(self)]

    monkeypatch.setattr(Path, "read_text", read)
    assert machine._cpu_quota() == quota
