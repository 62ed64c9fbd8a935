"""A virtual environment for each consumer: their pins exclude each other, and none is rankpress's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compressor.console import say
from compressor.errors import RunError
from compressor.storage import sha256_json, write_whole

_TORCH = "torch==2.13.0"  # without a version, pip takes a build of gigabytes, for GPUs
_MADE = "made-of.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """What to install for a consumer.

    Attributes:
        requirements: as pip wants them.
    """

    requirements: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A consumer that is run.

    Attributes:
        consumer: as `rankpress doctor` calls it.
        script: what loads a folder and scores pairs, in ``consumers/``.
        environment: which one it runs in.
        names_files: whether its users can name another ONNX file than the usual one.
    """

    consumer: str
    script: str
    environment: str
    names_files: bool = False


ENVIRONMENTS = {
    "sentence_transformers": Environment(requirements=(_TORCH, "sentence-transformers==6.2.0")),
    "optimum": Environment(requirements=(_TORCH, "optimum-onnx[onnxruntime]==0.1.0", "sentence-transformers")),
    "fastembed": Environment(requirements=("fastembed==0.9.1",)),
    "flashrank": Environment(requirements=("flashrank==0.2.10",)),
    "infinity": Environment(requirements=(_TORCH, "infinity-emb[torch]==0.0.78")),
    "rerankers": Environment(requirements=(_TORCH, "rerankers[transformers]==0.10.0")),
}
SUBJECTS = (
    Subject(
        consumer="sentence-transformers (torch)", script="with_sentence_transformers.py",
        environment="sentence_transformers",
    ),
    Subject(
        consumer='sentence-transformers (backend="onnx")', script="with_sentence_transformers_onnx.py",
        environment="optimum", names_files=True,
    ),
    Subject(consumer="optimum-onnx", script="with_optimum.py", environment="optimum", names_files=True),
    Subject(consumer="fastembed", script="with_fastembed.py", environment="fastembed", names_files=True),
    Subject(consumer="FlashRank", script="with_flashrank.py", environment="flashrank", names_files=True),
    Subject(consumer="infinity", script="with_infinity.py", environment="infinity"),
    Subject(consumer="rerankers", script="with_rerankers.py", environment="rerankers"),
)  # fmt: skip


def interpreter_of(name: str, folder: Path) -> Path:
    """Return the Python of an environment, making it where it is not there in this form yet.

    Raises:
        RunError: pip found no set of packages, or could not install it.
    """
    environment = ENVIRONMENTS[name]
    place = folder / name
    python = place / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    made_of = sha256_json([environment.requirements, sys.version_info[:2]])
    if python.exists() and (place / _MADE).is_file() and (place / _MADE).read_text() == made_of:
        return python
    say(f"{name}: installing {' '.join(environment.requirements)}")
    _run([sys.executable, "-m", "venv", "--clear", str(place)], name)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--progress-bar", "off", "--no-compile"]
    _run([*pip, *environment.requirements], name)
    write_whole(place / _MADE, made_of)
    return python


def _run(command: Sequence[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise RunError(f"{name}: {' '.join(command[:5])} ... failed: {' / '.join(last)}")
