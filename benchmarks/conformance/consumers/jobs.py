"""What every consumer's script reads and writes: standard library alone, as no environment has rankpress."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main(load: Callable[[str, str], Any], score: Callable[[Any, str, list[str]], Any], *packages: str) -> None:
    """Load folders, score lists with each and write what came out.

    The command line names the jobs ([folder, ONNX file in it], ...), the lists ([query, [documents]], ...) and the
    output, all of them JSON. A job that fails is told, and the next one done.

    Args:
        load: takes the folder and the file, returns the consumer's ranker.
        score: takes that, a query and its documents, returns their scores in the same order, and the name of the
            activation that the consumer applied.
        packages: whose versions are written down.
    """
    jobs, lists, output = sys.argv[1:]
    told = []
    for folder, file in _read(jobs):
        try:
            told.append(_scored(load(folder, file), score, _read(lists)))
        except Exception as error:  # noqa: BLE001  # a consumer may fail in any way
            traceback.print_exc()
            told.append({"error": f"{type(error).__name__}: {error}"})
    versions = {name: version(name) for name in packages}
    Path(output).write_text(json.dumps({"versions": versions, "jobs": told}), encoding="utf-8")


def _scored(ranker: Any, score: Callable[[Any, str, list[str]], Any], lists: Any) -> dict[str, Any]:
    scores: list[float] = []
    activation = "Identity"
    for query, documents in lists:
        found, activation = score(ranker, query, documents)
        scores += [float(one) for one in found]
    return {"scores": scores, "activation": activation}


def _read(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))
