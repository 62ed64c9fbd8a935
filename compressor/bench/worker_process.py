"""The parent's end of a row's process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import compressor
from compressor.bench.rows import RowSpec
from compressor.errors import Fault, InputError, RunError

_COMMAND = (sys.executable, "-m", "compressor.bench.worker")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


class WorkerProcess:
    """One row, loaded in a process of its own at one thread count. Use it in a ``with`` block.

    Attributes:
        row, threads: what is loaded.
        load_s, import_s, weights_path: what the worker said when it was ready.
    """

    def __init__(
        self, row: RowSpec, threads: int, *, padded_batch_pairs: int = 32, command: Sequence[str] | None = None
    ) -> None:
        self.row, self.threads = row, threads
        # The file outlives this call: it takes what the process says until the process is closed.
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            list(command or _COMMAND), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
            text=True, encoding="utf-8", env=_environment(threads),
        )  # fmt: skip
        try:
            ready = self._ask(
                do="load", engine=row.engine, folder=str(row.folder), file=row.file, threads=threads,
                padded_batch_pairs=padded_batch_pairs,
            )  # fmt: skip
        except BaseException:
            self.close()
            raise
        self.load_s: float = ready["load_s"]
        self.import_s: float = ready["import_s"]
        self.weights_path = Path(ready["weights_path"])

    def score(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Score one query's pairs; returns scores, lengths, tokenize_s, forward_s, stages.

        Raises:
            RunError: the ranker failed or its process died; names the row.
        """
        return self._ask(do="score", pairs=pairs)

    def score_in_one_batch(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Score pairs in a single padded batch."""
        scores: list[float] = self._ask(do="score_in_one_batch", pairs=pairs)["scores"]
        return scores

    def peak_memory_bytes(self) -> int:
        """Return the largest resident set of the process so far."""
        return int(self._ask(do="memory")["peak_bytes"])

    def close(self) -> None:
        """End the process."""
        if self._process.stdin and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        self.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ValueError("the worker has no pipes")
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RunError(f"row {self.row.name!r}: its process died ({self._last_words()})")
        reply: dict[str, Any] = json.loads(line)
        if "error" not in reply:
            answer: dict[str, Any] = reply["ok"]
            return answer
        error = reply["error"]
        if "faults" in error:
            row = f"row {self.row.name!r}"
            raise InputError(Fault(**{**fault, "source": f"{row}: {fault['source']}"}) for fault in error["faults"])
        raise RunError(f"row {self.row.name!r}: {error['message']}")

    def _last_words(self) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().strip().splitlines()[-3:]
        cause = f"signal {-code}, often too little memory" if code < 0 else f"exit code {code}"
        return "; ".join([cause, *said])


def _environment(threads: int) -> dict[str, str]:
    """Limit every pool of threads, the tokenizer's too, and keep the libraries off the network."""
    home = str(Path(compressor.__file__).parents[1])
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    limits = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    return {**os.environ, **limits, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
