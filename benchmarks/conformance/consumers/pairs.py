"""What every consumer's script reads and writes: standard library alone, as no environment has rankpress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

Lists = list[tuple[str, list[str]]]


def main(load: Callable[[str, str], Any], score: Callable[[Any, str, list[str]], Any], *packages: str) -> None:
    """Load a folder, score its lists and write what came out.

    The command line names the folder, the ONNX file in it, the lists (JSON: [query, [documents]], ...) and the output.

    Args:
        load: takes the folder and the file, returns the consumer's ranker.
        score: takes that, a query and its documents, returns their scores in the same order and, where the consumer
            applies one, the name of its activation.
        packages: whose versions are written down.
    """
    folder, file, lists, output = sys.argv[1:]
    ranker = load(folder, file)
    scores: list[float] = []
    activation = "Identity"
    for query, documents in json.loads(Path(lists).read_text(encoding="utf-8")):
        found, activation = score(ranker, query, documents)
        scores += [float(one) for one in found]
    versions = {name: version(name) for name in packages}
    Path(output).write_text(json.dumps({"versions": versions, "activation": activation, "scores": scores}))
