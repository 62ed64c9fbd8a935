"""A training whose process is killed, wherever it is, ends with the losses and weights of one that was not."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_process.py")


def run(folder: Path, where: str = "nowhere", count: int = 0) -> int:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(SCRIPT), str(folder), where, str(count)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert ended.returncode in (0, -signal.SIGKILL), ended.stderr[-3000:]
    return ended.returncode


@pytest.mark.slow
def test_sigkill_within_a_step_and_within_a_checkpoint(tmp_path):
    assert run(tmp_path / "whole") == 0
    cut = tmp_path / "cut"
    assert run(cut, "step", 4) == -signal.SIGKILL
    assert run(cut, "checkpoint", 3) == -signal.SIGKILL
    assert not (cut / "weights.safetensors").exists()
    assert run(cut) == 0
    for name in ("weights.safetensors", "curves.json"):
        assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
