from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from compressor import cpu
from compressor.bench import machine


def test_this_machine_is_described():
    found = machine.describe_machine()
    assert found.cpu
    assert 1 <= found.available_threads <= found.logical_cpus == os.cpu_count()
    assert {"python", "numpy", "onnxruntime", "rankpress"} <= found.versions.keys()
    assert found.memory_bytes is None or found.memory_bytes > 1e8


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        ({"exported_on": {"cpu_flags": ["avx2"]}}, None),
        ({"exported_on": {"cpu_flags": ["avx2", "avx_vnni"]}}, "compared with torch on a CPU of the class avx_vnni"),
        (
            {"exported_on": {"cpu_flags": ["avx2"]}, "report": {"machine": {"isa": ["asimd", "asimddp"]}}},
            "measured on a CPU of the class arm_dotprod",
        ),
        ({"report": {"machine": {"isa": ["avx2"]}}, "exported_on": {"cpu_flags": ["asimd", "i8mm"]}}, None),
        ({"exported_on": {"cpu_flags": []}}, None),
        ({"exported_on": [], "report": None}, None),
        ([], None),
        (None, None),
    ],
)
def test_a_folder_whose_figures_are_of_another_cpu_is_noted(manifest, expected, monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "isa_flags", lambda: ("avx2", "fma"))
    if manifest is not None:
        (tmp_path / "rankpress.json").write_text(json.dumps(manifest))
    note = machine.note_of_other_cpu(tmp_path)
    assert (note is None) == (expected is None)
    if expected:
        assert note is not None
        assert note.startswith(f"{tmp_path.name}: the ranker in it was {expected}, this one is avx2: ")


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
