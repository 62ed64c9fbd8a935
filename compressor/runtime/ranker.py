"""Ranking with an exported folder, without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import onnxruntime as ort

from compressor.errors import Fault, InputError, RunError
from compressor.progress import progress
from compressor.runtime.batching import padded, token_budget_batches
from compressor.runtime.cascade import OnnxCascade
from compressor.runtime.folder import cascade_of, choose_graph, shared_query_of
from compressor.runtime.graph_interface import SUPPORTED, GraphInterface, read_interface
from compressor.runtime.list_scores import ListScores, Ranked, ranked
from compressor.runtime.session import open_session, runtime_message
from compressor.runtime.shared_query import OnnxSharedQuery
from compressor.runtime.threads import available_threads
from compressor.runtime.tokenizer import Encoded, PairTokenizer

# A 12-layer MiniLM on 2 threads is fastest from 512 to 2,048 tokens; at 4,096 it leaves the cache and loses a quarter.
BATCH_TOKENS = 1024
_CHUNK_PAIRS = 8192  # token rows of one chunk are in memory at a time
_LONG_SCORING_PAIRS = 500


@dataclass(frozen=True, kw_only=True)
class EncodedSides:
    """Pairs for a bi-encoder: distinct texts, and which of them are each pair's query and document.

    Attributes:
        texts: token rows of the distinct texts.
        query_rows: int64 ``[n]``, row of each pair's query in ``texts``.
        document_rows: int64 ``[n]``, row of each pair's document.
    """

    texts: Encoded
    query_rows: np.ndarray
    document_rows: np.ndarray


@dataclass(frozen=True, kw_only=True)
class OnnxRanker:
    """A ranker folder, loaded. All methods may be called from several threads at once.

    Attributes:
        folder: where it was loaded from.
        onnx_path: the graph in use.
        threads: threads of one operator.
        interface: kind of ranker, and its inputs and output.
        reason: why this graph, where the folder has several: the build for this CPU, the main file, or asked for.
        cascade: what ranks lists in the graph's place, if the folder has one; pairs are scored at full depth.
        shared_query: what scores lists as the graph does with the query run once, if the folder has it.
    """

    folder: Path
    onnx_path: Path
    tokenizer: PairTokenizer
    session: ort.InferenceSession
    interface: GraphInterface
    threads: int
    reason: str = ""
    cascade: OnnxCascade | None = None
    shared_query: OnnxSharedQuery | None = None

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        file: str | None = None,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> Self:
        """Load a folder that rankpress or another tool exported.

        Args:
            folder: holds ``tokenizer.json`` and an ONNX graph.
            file: the graph, relative to the folder; None takes the manifest's build for CPUs of this class, where it
                runs on the CPU, else its main file, ``onnx/model.onnx``, or ``model.onnx``.
            threads: threads of one operator; None takes what CPU affinity and cgroup quota allow.
            providers: execution providers of ONNX Runtime; None takes the CPU.

        Raises:
            InputError: lists what is missing, broken or not supported in the folder.
        """
        folder = Path(folder)
        on_cpu = not providers or providers[0] == "CPUExecutionProvider"
        chosen = choose_graph(folder, file, on_cpu=on_cpu)
        faults: list[Fault] = []
        try:
            tokenizer = PairTokenizer.from_folder(folder)
        except InputError as error:
            faults += error.faults
        try:
            session = open_session(chosen.path, threads, providers)
            interface = read_interface(session, chosen.path)
            staged = cascade_of(folder, chosen.path)
            cascade = OnnxCascade.load(*staged, threads, providers) if staged else None
            parted = shared_query_of(folder, chosen.path)
            shared = OnnxSharedQuery.load(parted, tokenizer, threads, providers) if parted and not faults else None
        except InputError as error:
            faults += error.faults
        if faults:
            raise InputError(faults)
        return cls(
            folder=folder, onnx_path=chosen.path, tokenizer=tokenizer, session=session, interface=interface,
            threads=threads or available_threads(), reason=chosen.reason, cascade=cascade, shared_query=shared,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    def encode(self, pairs: Sequence[tuple[str, str]]) -> Encoded | EncodedSides:
        """Tokenize (query, document) pairs in the way that this kind of ranker reads them."""
        if self.interface.kind == "cross_encoder":
            return self.tokenizer.encode_pairs(pairs)
        places: dict[str, int] = {}
        for pair in pairs:
            for text in pair:
                places.setdefault(text, len(places))
        return EncodedSides(
            texts=self.tokenizer.encode_texts(list(places)),
            query_rows=np.array([places[query] for query, _ in pairs], dtype=np.int64),
            document_rows=np.array([places[document] for _, document in pairs], dtype=np.int64),
        )

    def score_encoded(
        self,
        encoded: Encoded | EncodedSides,
        *,
        batch_tokens: int = BATCH_TOKENS,
        on_rows: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Score what `encode` returned: the forward pass alone.

        Args:
            encoded: token rows of pairs.
            batch_tokens: most tokens in a batch, padding included.
            on_rows: told after each batch how many rows it had.

        Returns:
            float32 ``[n]``: raw logits (cross-encoder) or dot products (bi-encoder), in the order of the pairs.

        Raises:
            RunError: the graph failed, or a score is NaN or infinite.
        """
        if isinstance(encoded, EncodedSides):
            vectors = self._run(encoded.texts, batch_tokens, on_rows)
            scores = np.einsum("nw,nw->n", vectors[encoded.query_rows], vectors[encoded.document_rows])
        else:
            scores = self._run(encoded, batch_tokens, on_rows)[:, 0]
        broken = np.flatnonzero(~np.isfinite(scores))
        if len(broken):
            raise RunError(
                f"{self.onnx_path}: NaN or infinite scores for {len(broken)} of {len(scores)} pairs, "
                f"the first at index {broken[0]}; the graph or its weights are broken"
            )
        return scores

    def score_list(self, encoded: Encoded | EncodedSides, *, batch_tokens: int = BATCH_TOKENS) -> ListScores:
        """Score the candidates of one query, in first-stage order, in the way in which `rank` orders them.

        Through the cascade where there is one and the list is long enough to lose some to it; with the query run once
        where that can be done and saves something; else as `score_encoded`.

        Args:
            encoded: what `encode` returned for the pairs of a single query.
            batch_tokens: most tokens in a batch, padding included.

        Raises:
            RunError: as `score_encoded`.
        """
        if self.shared_query and isinstance(encoded, Encoded) and len(encoded.input_ids) > 1:
            pad_id = self.tokenizer.pad_id
            return ListScores(scores=self.shared_query.run(encoded, pad_id=pad_id, batch_tokens=batch_tokens))
        if self.cascade is None or isinstance(encoded, EncodedSides):
            return ListScores(scores=self.score_encoded(encoded, batch_tokens=batch_tokens))
        n_rows = len(encoded.input_ids)
        if self.cascade.drops_of(n_rows):
            return self.cascade.run(encoded, pad_id=self.tokenizer.pad_id, batch_tokens=batch_tokens)
        all_stages = np.full(n_rows, len(self.cascade.settings.stages), dtype=np.int64)
        return ListScores(scores=self.score_encoded(encoded, batch_tokens=batch_tokens), stages=all_stages)

    def score(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        batch_tokens: int = BATCH_TOKENS,
        on_scored: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Score (query, document) pairs.

        Args:
            pairs: any number; they are tokenized and scored in chunks.
            batch_tokens: most tokens in a batch, padding included.
            on_scored: told how many more pairs are scored; None shows a progress bar where there are many pairs.

        Returns float32 ``[n]``: raw logits (cross-encoder) or dot products (bi-encoder), in the order of ``pairs``.

        Raises:
            RunError: as `score_encoded`.
        """
        is_long = on_scored is None and len(pairs) >= _LONG_SCORING_PAIRS
        bar = progress(f"Scoring with {self.name}", len(pairs)) if is_long else nullcontext(on_scored or _ignore)
        scores = np.empty(len(pairs), dtype=np.float32)
        with bar as advance:
            for start in range(0, len(pairs), _CHUNK_PAIRS):
                chunk = pairs[start : start + _CHUNK_PAIRS]
                encoded, n_pairs = self.encode(chunk), len(chunk)
                row_is_pair = isinstance(encoded, Encoded)
                scores[start : start + n_pairs] = self.score_encoded(
                    encoded, batch_tokens=batch_tokens, on_rows=advance if row_is_pair else None
                )
                if not row_is_pair:
                    advance(n_pairs)
        return scores

    def embed(
        self,
        texts: Sequence[str],
        *,
        batch_tokens: int = BATCH_TOKENS,
        on_embedded: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Return a bi-encoder's vectors of texts, float32 ``[n, width]``: of unit length where the graph is ours.

        Args:
            texts: any number; they are tokenized and embedded in chunks.
            batch_tokens: most tokens in a batch, padding included.
            on_embedded: told how many more texts are done.

        Raises:
            InputError: the folder holds a cross-encoder.
            RunError: the graph failed, or gave NaN or infinite numbers.
        """
        if self.interface.kind != "bi_encoder":
            found = "a cross-encoder, which scores pairs and embeds nothing"
            raise InputError(Fault(source=self.onnx_path, found=found, allowed="a bi-encoder"))
        chunks = [
            self._run(self.tokenizer.encode_texts(texts[start : start + _CHUNK_PAIRS]), batch_tokens, on_embedded)
            for start in range(0, max(1, len(texts)), _CHUNK_PAIRS)
        ]
        vectors = np.concatenate(chunks)
        if n_broken := int((~np.isfinite(vectors).all(axis=1)).sum()):
            raise RunError(f"{self.onnx_path}: NaN or infinite numbers in the vectors of {n_broken} texts")
        return vectors

    def rank(self, query: str, documents: Sequence[str], *, top_k: int | None = None) -> list[Ranked]:
        """Rank documents for a query, best first; equal scores keep the order of the input.

        A cascade, where the folder has one, drops most of them on the way; they stand at the end.

        Raises:
            InputError: ``top_k`` is below 1.
            RunError: as `score_encoded`.
        """
        if top_k is not None and top_k < 1:
            raise InputError(Fault(source="top_k", found=str(top_k), allowed="a whole number from 1"))
        pairs = [(query, document) for document in documents]
        if self.cascade or self.shared_query:
            return ranked(self.score_list(self.encode(pairs)), top_k)
        return ranked(ListScores(scores=self.score(pairs, on_scored=_ignore)), top_k)

    def _run(self, encoded: Encoded, batch_tokens: int, on_rows: Callable[[int], object] | None) -> np.ndarray:
        results: np.ndarray | None = None
        n_rows = len(encoded.input_ids)
        for rows in token_budget_batches(encoded.lengths, batch_tokens):
            arrays = padded(encoded, rows, self.tokenizer.pad_id)
            feed = {name: arrays[name].astype(kind, copy=False) for name, kind in self.interface.inputs.items()}
            try:
                (output,) = self.session.run([self.interface.output], feed)
            except Exception as error:  # the runtime's errors have no common base
                raise RunError(f"{self.onnx_path}: the graph failed ({runtime_message(error)})") from error
            self._check_shape(output.shape, len(rows))
            if results is None:
                results = np.empty((n_rows, output.shape[1]), dtype=np.float32)
            results[rows] = output
            if on_rows is not None:
                on_rows(len(rows))
        return np.empty((0, 1), dtype=np.float32) if results is None else results

    def _check_shape(self, found: tuple[int, ...], n_rows: int) -> None:
        is_cross_encoder = self.interface.kind == "cross_encoder"
        if len(found) == 2 and found[0] == n_rows and (found[1] == 1 or not is_cross_encoder):
            return
        where = f"output {self.interface.output!r}"
        shown = f"the shape {list(found)} for {n_rows} rows"
        raise InputError(Fault(source=self.onnx_path, where=where, found=shown, allowed=SUPPORTED))


def _ignore(_: int) -> None:
    """Show no progress."""
