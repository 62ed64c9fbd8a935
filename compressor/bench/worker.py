"""The process of one row: ``python -m compressor.bench.worker``, one JSON object per line in and out.

Requests: ``{"do": "load", ...}`` (see `engines.open_engine`), ``{"do": "score", "pairs": [[query, document], ...]}``
(one query's pairs, timed), ``{"do": "score_in_one_batch", "pairs": ...}``, ``{"do": "memory"}``. The process ends when
its input does. A reply is ``{"ok": {...}}``, ``{"error": {"message": ...}}`` or, for bad input, ``{"error": {"faults":
[{"source", "where", "found", "allowed", "fix"}, ...]}}``. Texts travel outside the timed region.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from compressor.bench.engines import Engine, OpenEngine, open_engine
from compressor.errors import InputError, RankpressError


def serve(requests: TextIO, replies: TextIO, opener: OpenEngine = open_engine) -> None:
    """Answer requests until the input ends."""
    engine: Engine | None = None
    for line in requests:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                engine = opener(request)
                reply: dict[str, Any] = {
                    "import_s": engine.import_s, "load_s": engine.load_s, "weights_path": str(engine.weights_path),
                }  # fmt: skip
            else:
                reply = _answer(engine, request)
            message: dict[str, Any] = {"ok": reply}
        except InputError as error:
            message = {"error": {"faults": [{**asdict(fault), "source": str(fault.source)} for fault in error.faults]}}
        except RankpressError as error:
            message = {"error": {"message": str(error)}}
        except Exception as error:  # noqa: BLE001 - whatever a foreign model raises must reach the parent by name
            message = {"error": {"message": f"{type(error).__name__}: {error}"}}
        replies.write(json.dumps(message) + "\n")
        replies.flush()


def _answer(engine: Engine | None, request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] == "memory":
        return {"peak_bytes": peak_memory_bytes()}
    if engine is None:
        raise ValueError("nothing is loaded yet")
    pairs = [(query, document) for query, document in request["pairs"]]
    if request["do"] == "score_in_one_batch":
        return {"scores": engine.score_in_one_batch(pairs).tolist()}
    if request["do"] == "score":
        scored = engine.score(pairs)
        return {
            "scores": scored.scores.tolist(), "lengths": scored.lengths,
            "tokenize_s": scored.tokenize_s, "forward_s": scored.forward_s, "stages": scored.stages,
        }  # fmt: skip
    raise ValueError(f"unknown request {request['do']!r}")


def peak_memory_bytes() -> int:
    """Return the largest resident set of this process so far."""
    try:
        # ru_maxrss survives exec on Linux, so a small worker would report its parent's size; VmHWM does not.
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Serve on standard input and output; whatever libraries print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(os.fdopen(os.dup(0), encoding="utf-8"), replies)


if __name__ == "__main__":
    main()
