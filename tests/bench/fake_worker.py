"""A worker process whose engine is made of arithmetic: it speaks the real protocol and loads no library.

A row's folder holds ``config.json``: ``noise`` moves scores away from the teacher's, ``delay_s`` makes it slow,
``batch_shift`` makes scores depend on batch mates, ``break_on`` is a word that breaks it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compressor.bench import worker
from compressor.bench.engines import Scored
from compressor.errors import Fault, InputError, RunError


class FakeEngine:
    import_s = 0.25
    load_s = 0.5

    def __init__(self, request: dict[str, Any]) -> None:
        folder = Path(request["folder"])
        self.weights_path = folder / "model.onnx"
        self.settings = json.loads((folder / "config.json").read_text())
        if self.settings.get("refuse"):
            raise InputError(Fault(source=folder, found="a model that nobody can load"))
        (folder / "loads.log").open("a").write(f"{request['threads']}\n")

    def score(self, pairs: Sequence[tuple[str, str]]) -> Scored:
        word = self.settings.get("break_on")
        if word and any(word in query for query, _ in pairs):
            if self.settings.get("how") == "die":
                print("last words of a dying model", file=sys.stderr, flush=True)
                os._exit(7)
            raise RunError("the graph failed")
        if self.settings.get("delay_s"):
            time.sleep(self.settings["delay_s"])
        print("a library that prints to standard output")
        return Scored(scores=self._scores(pairs), lengths=[len(d.split()) + 3 for _, d in pairs],
                      tokenize_s=0.001, forward_s=0.01 * self.settings.get("slowness", 1.0))  # fmt: skip

    def score_in_one_batch(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        return self._scores(pairs) + np.float32(self.settings.get("batch_shift", 0.0) * (len(pairs) > 1))

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        noise = self.settings.get("noise", 0.0)
        return np.array([_value("|".join(p)) + noise * _value("noise|".join(p)) for p in pairs], dtype=np.float32)


def _value(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**31 - 1


if __name__ == "__main__":
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker.serve(sys.stdin, replies, FakeEngine)
