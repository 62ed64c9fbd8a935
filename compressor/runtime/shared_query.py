"""Scoring a list whose query is run once: for rankers whose queries do not see documents, as two graphs.

The first makes of a query's tokens what others read of them in each layer; the second runs each candidate's first token
and document beside that. Rows are parted where the ranker's own graph parts them, at the first separator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime as ort

from compressor.errors import Fault, InputError, RunError
from compressor.runtime.batching import padded, token_budget_batches
from compressor.runtime.graph_interface import INPUTS
from compressor.runtime.session import open_session, runtime_message
from compressor.runtime.tokenizer import Encoded, PairTokenizer


@dataclass(frozen=True, kw_only=True)
class OnnxSharedQuery:
    """The two graphs, loaded.

    Attributes:
        query_path, candidates_path: where they were loaded from.
        separator_id: the id at which a row's query ends, that one included.
        columns: how wide what the first hands to the second is, ``query.0`` first.
    """

    query_path: Path
    candidates_path: Path
    query_session: ort.InferenceSession
    candidates_session: ort.InferenceSession
    separator_id: int
    columns: tuple[int, ...]

    @classmethod
    def load(
        cls,
        paths: Sequence[Path],
        tokenizer: PairTokenizer,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> Self:
        """Open the graphs.

        Args:
            paths: of the query's graph, and of its candidates'.
            tokenizer: tells where queries end.
            threads, providers: as in `open_session`.

        Raises:
            InputError: one is missing or broken, they do not belong together, or no separator tells queries apart.
        """
        query_path, candidates_path = paths
        query, candidates = (open_session(path, threads, providers) for path in paths)
        handed = {node.name: node.shape[-1] for node in query.get_outputs()}
        names = [f"query.{place}" for place in range(len(handed))]
        faults = [*_input_faults(query_path, query, {}), *_input_faults(candidates_path, candidates, handed)]
        if not handed or list(handed) != names or not all(isinstance(width, int) for width in handed.values()):
            faults.append(_fault(query_path, f"the outputs {', '.join(handed)}", "query.0, query.1, ..."))
        if "logits" not in {node.name for node in candidates.get_outputs()}:
            faults.append(_fault(candidates_path, "a graph without the output logits", "logits"))
        if tokenizer.separator_id is None:
            faults.append(_fault(query_path.parent, "a tokenizer without a separator", "the ranker's own"))
        if faults or tokenizer.separator_id is None:
            raise InputError(faults)
        return cls(
            query_path=query_path, candidates_path=candidates_path, query_session=query,
            candidates_session=candidates, separator_id=tokenizer.separator_id, columns=tuple(handed.values()),
        )  # fmt: skip

    def run(self, encoded: Encoded, *, pad_id: int, batch_tokens: int) -> np.ndarray:
        """Score rows, float32 ``[n]``; each different query is run once.

        Where a row is so long that its query was cut, too, that one is another query.

        Args:
            encoded: whole rows, of one query or of several.
            pad_id: the id of padding.
            batch_tokens: most tokens in a batch of candidates, padding included, their queries not counted.

        Raises:
            RunError: a graph failed, or a score is NaN or infinite.
        """
        lists: dict[tuple[bytes, bytes], list[int]] = {}
        ends = [self._end(row) for row in encoded.input_ids]
        for place, end in enumerate(ends):
            query = (part[place][1:end].tobytes() for part in (encoded.input_ids, encoded.type_ids))
            lists.setdefault((next(query), next(query)), []).append(place)
        scores = np.empty(len(ends), dtype=np.float32)
        for places in lists.values():
            end = ends[places[0]]
            handed = self._handed(encoded.input_ids[places[0]][1:end], encoded.type_ids[places[0]][1:end], pad_id)
            own = Encoded(
                input_ids=[np.delete(encoded.input_ids[place], slice(1, end)) for place in places],
                type_ids=[np.delete(encoded.type_ids[place], slice(1, end)) for place in places],
            )
            for batch in token_budget_batches(own.lengths, batch_tokens):
                feed = padded(own, batch, pad_id) | handed
                (logits,) = _run(self.candidates_path, self.candidates_session, ["logits"], feed)
                if logits.shape != (len(batch), 1):
                    raise RunError(f"{self.candidates_path}: {list(logits.shape)} scores for {len(batch)} rows")
                scores[np.array(places)[batch]] = logits[:, 0]
        if not np.isfinite(scores).all():
            raise RunError(f"{self.candidates_path}: NaN or infinite scores; the graphs or their weights are broken")
        return scores

    def _end(self, row: np.ndarray) -> int:
        """Return the column in which a row's query is over, as the ranker's own graph does."""
        places = np.flatnonzero(row == self.separator_id)
        return max(1, int(places[0]) + 1 if len(places) else len(row))

    def _handed(self, ids: np.ndarray, types: np.ndarray, pad_id: int) -> dict[str, np.ndarray]:
        names = [f"query.{place}" for place in range(len(self.columns))]
        if not len(ids):  # a row that is no pair's
            return {name: np.empty((0, width), np.float32) for name, width in zip(names, self.columns, strict=True)}
        feed = padded(Encoded(input_ids=[ids], type_ids=[types]), np.arange(1), pad_id)
        return dict(zip(names, _run(self.query_path, self.query_session, names, feed), strict=True))


def _run(
    path: Path, session: ort.InferenceSession, outputs: list[str], feed: dict[str, np.ndarray]
) -> list[np.ndarray]:
    try:
        found: list[Any] = session.run(outputs, {node.name: feed[node.name] for node in session.get_inputs()})
    except Exception as error:  # the runtime's errors have no common base
        raise RunError(f"{path}: the graph failed ({runtime_message(error)})") from error
    return found


def _input_faults(path: Path, session: ort.InferenceSession, handed: dict[str, Any]) -> list[Fault]:
    inputs = {node.name: node.shape[-1] for node in session.get_inputs()}
    texts = {name for name in inputs if not name.startswith("query.")}
    taken = {name: width for name, width in inputs.items() if name not in texts}
    if {"input_ids", "attention_mask"} <= texts <= set(INPUTS) and taken == handed:
        return []
    shown = ", ".join(f"{name} [{width}]" if name in taken else name for name, width in inputs.items())
    allowed = ", ".join([*INPUTS, *(f"{name} [{width}]" for name, width in handed.items())])
    return [_fault(path, f"the inputs {shown}", allowed)]


def _fault(path: Path, found: str, allowed: str) -> Fault:
    return Fault(source=path, where="shared_query", found=found, allowed=allowed, fix="export the ranker again")
