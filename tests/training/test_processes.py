"""Two processes, each with half of every step's lists, follow one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.mark.slow
def test_two_processes_follow_one(tmp_path):
    # accelerate's own launcher starts several CPU processes through MPI alone; torchrun is what it runs for GPUs.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for processes in ("1", "2"):
        folder = tmp_path / processes
        folder.mkdir()
        command = [*launch, processes, str(SCRIPT), str(folder)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180, env=environment)
        assert ended.returncode == 0, ended.stderr[-3000:]
    one = load_file(tmp_path / "1" / "of_1_0.safetensors")
    first, second = (load_file(tmp_path / "2" / f"of_2_{index}.safetensors") for index in (0, 1))
    for name, weight in one.items():
        assert torch.equal(first[name], second[name]), name
        if not name.endswith("key.bias"):  # softmax cancels it: Adam scales its rounding noise up
            torch.testing.assert_close(first[name], weight, rtol=0, atol=1e-4)
