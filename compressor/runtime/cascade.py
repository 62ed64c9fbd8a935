"""Running a cascade: sorted batches through the first layers, the best of the whole list through the next, and so on.

The graphs hand packed states over; what is left of the list is put into new batches between them. So padding and
batches stay as small as for whole rankers, and of the states only those are kept that may go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import onnxruntime as ort

from compressor.cascade_stages import ExportedCascade
from compressor.errors import Fault, InputError, RunError
from compressor.runtime.batching import padded, token_budget_batches
from compressor.runtime.graph_interface import INPUTS
from compressor.runtime.list_scores import ListScores, best, in_one_order
from compressor.runtime.session import open_session, runtime_message
from compressor.runtime.tokenizer import Encoded

_TAKEN = frozenset({"states", "positions", "attention_mask"})
_HANDED_OVER = ("states_out", "positions_out", "lengths")


class _Row(NamedTuple):
    """One candidate's packed states ``[t, width]`` and the positions of its tokens ``[t]``."""

    states: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True, kw_only=True)
class OnnxCascade:
    """The graphs of a folder's cascade, loaded.

    Attributes:
        settings: its stages.
        paths: the graphs, in order.
        sessions: the same, opened.
    """

    settings: ExportedCascade
    paths: tuple[Path, ...]
    sessions: tuple[ort.InferenceSession, ...]

    @classmethod
    def load(
        cls,
        settings: ExportedCascade,
        paths: Sequence[Path],
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> Self:
        """Open the graphs.

        Raises:
            InputError: one is missing or broken, or is none of a cascade.
        """
        sessions = tuple(open_session(path, threads, providers) for path in paths)
        faults = [
            fault
            for place, (path, session) in enumerate(zip(paths, sessions, strict=True))
            for fault in _interface_faults(path, session, is_first=place == 0, is_last=place == len(paths) - 1)
        ]
        if faults:
            raise InputError(faults)
        return cls(settings=settings, paths=tuple(paths), sessions=sessions)

    def drops_of(self, n_candidates: int) -> bool:
        """Whether anything is dropped of so many candidates."""
        return self.settings.counts(n_candidates)[-1] < n_candidates

    def run(
        self,
        encoded: Encoded,
        *,
        pad_id: int,
        batch_tokens: int,
        on_rows: Callable[[int], object] | None = None,
    ) -> ListScores:
        """Score one query's candidates, in first-stage order.

        Args:
            encoded: their token rows.
            pad_id: the id of padding.
            batch_tokens: most tokens in a batch, padding included.
            on_rows: told how many more rows have got as far as they will.

        Raises:
            RunError: a graph failed, or a score is NaN or infinite.
        """
        n_rows = len(encoded.input_ids)
        rows, lengths = np.arange(n_rows), np.array(encoded.lengths)
        logits, stages = np.zeros(n_rows, dtype=np.float32), np.zeros(n_rows, dtype=np.int64)
        states: dict[int, _Row] = {}
        counts: list[int | None] = [*self.settings.counts(n_rows), None]
        for place, count in enumerate(counts):
            seen: list[int] = []
            handed: dict[int, _Row] = {}
            for batch in token_budget_batches(lengths[rows], batch_tokens):
                members = rows[batch]
                feed = _joined([states[row] for row in members]) if place else padded(encoded, members, pad_id)
                found, batch_states = self._step(place, feed)
                if len(found) != len(members):
                    raise RunError(f"{self.paths[place]}: {len(found)} scores for {len(members)} rows")
                logits[members] = found
                seen = sorted([*seen, *members.tolist()])
                if count is not None:
                    seen = [seen[kept] for kept in best(logits[seen], count)]
                    going_on = set(seen)
                    handed = {row: one for row, one in handed.items() if row in going_on}
                    # Copied, since a row's view would keep its whole batch in memory.
                    handed |= {
                        row: _Row(one.states.copy(), one.positions.copy())
                        for row, one in zip(members.tolist(), batch_states, strict=True)
                        if row in going_on
                    }
            if on_rows is not None:
                on_rows(len(rows) - (0 if count is None else count))
            if count is not None:
                rows, states = np.array(seen, dtype=np.int64), handed
                stages[rows] = place + 1
                lengths[rows] = [len(states[row].positions) for row in seen]
        return in_one_order(logits, stages)

    def undropped(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """Return what every stage and the head score of a padded batch, float32 ``[stages + 1, B]``."""
        found, feed = [], batch
        for place in range(len(self.sessions)):
            logits, states = self._step(place, feed)
            found.append(logits)
            feed = _joined(states) if states else {}
        return np.stack(found)

    def _step(self, place: int, feed: dict[str, np.ndarray]) -> tuple[np.ndarray, list[_Row]]:
        """Run one graph; return the logits ``[B]`` and, of all but the last, what each row hands over."""
        session, path = self.sessions[place], self.paths[place]
        names = ["logits"] if place == len(self.sessions) - 1 else ["logits", *_HANDED_OVER]
        try:
            logits, *handed = session.run(names, {node.name: feed[node.name] for node in session.get_inputs()})
        except Exception as error:  # the runtime's errors have no common base
            raise RunError(f"{path}: the graph failed ({runtime_message(error)})") from error
        if not np.isfinite(logits).all():
            raise RunError(f"{path}: NaN or infinite scores; the graph or its weights are broken")
        if not handed:
            return logits[:, 0], []
        states, positions, lengths = handed
        ends = np.cumsum(lengths)[:-1]
        return logits[:, 0], list(map(_Row, np.split(states, ends), np.split(positions, ends)))


def _joined(rows: Sequence[_Row]) -> dict[str, np.ndarray]:
    """Return the inputs of a graph that goes on with these rows."""
    lengths = np.array([len(row.positions) for row in rows])
    return {
        "states": np.concatenate([row.states for row in rows]),
        "positions": np.concatenate([row.positions for row in rows]),
        "attention_mask": (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64),
    }


def _interface_faults(path: Path, session: ort.InferenceSession, *, is_first: bool, is_last: bool) -> list[Fault]:
    inputs = {node.name for node in session.get_inputs()}
    outputs = {node.name for node in session.get_outputs()}
    wanted = {"logits"} | (set() if is_last else set(_HANDED_OVER))
    takes = {"input_ids", "attention_mask"} <= inputs <= set(INPUTS) if is_first else inputs == _TAKEN
    if takes and wanted <= outputs:
        return []
    shown = f"the inputs {', '.join(sorted(inputs))} and the outputs {', '.join(sorted(outputs))}"
    allowed = f"inputs {', '.join(INPUTS if is_first else sorted(_TAKEN))}; outputs {', '.join(sorted(wanted))}"
    return [Fault(source=path, where="cascade", found=shown, allowed=allowed, fix="export the ranker again")]
