from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from compressor.runtime import OnnxRanker
from compressor.runtime.run_io import rank_file
OnnxRanker.load(sys.argv[1]).rank("red", ["sea", "sun"])
heavy = {"torch", "transformers", "onnx", "onnxscript", "scipy", "sentence_transformers", "safetensors"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""


def test_ranking_imports_nothing_heavy(repository: Path, folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", CODE, str(folder)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
