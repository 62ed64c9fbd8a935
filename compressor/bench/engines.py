"""The runtimes that a worker process can hold. Imported in workers only: each pulls in its libraries when opened."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from compressor.errors import Fault, InputError, RunError

if TYPE_CHECKING:
    from compressor.bench.gpu_providers import GpuTarget
    from compressor.runtime.ranker import EncodedSides, OnnxRanker
    from compressor.runtime.tokenizer import Encoded


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Scores of one query's pairs, in order, and what they took.

    Attributes:
        scores: float32 [k], raw logits; of a cascade, what its ranking sorts by.
        lengths: tokens of each pair [k], padding not counted.
        stages: of a cascade, how many stages each pair passed [k].
    """

    scores: np.ndarray
    lengths: list[int]
    tokenize_s: float
    forward_s: float
    stages: list[int] | None = None


class Engine(Protocol):
    """A ranker that is loaded and timed."""

    import_s: float
    load_s: float
    weights_path: Path

    def score(self, pairs: Sequence[tuple[str, str]]) -> Scored:
        """Score one query's pairs the way this engine is used."""

    def score_in_one_batch(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Score pairs in a single padded batch, float32 [n]."""


OpenEngine = Callable[[dict[str, Any]], Engine]


def open_engine(request: dict[str, Any]) -> Engine:
    """Open the engine that a load request names (keys: engine, folder, file, threads, padded_batch_pairs)."""
    folder, threads = Path(request["folder"]), int(request["threads"])
    match request["engine"]:
        case "onnx":
            return OnnxEngine(folder, request["file"], threads)
        case "openvino":
            return OpenVinoEngine(folder, request["file"], threads)
        case "openvino_bf16":
            return OpenVinoEngine(folder, request["file"], threads, precision="bf16")
        case "onnx_cuda":
            return GpuEngine(folder, request["file"], threads, target="cuda")
        case "sentence_transformers" | "sentence_transformers_bf16" as engine:
            from compressor.bench.cross_encoder_predict import SentenceTransformers

            return SentenceTransformers(folder, threads, "bfloat16" if engine.endswith("bf16") else "float32")
        case "onnx_tensorrt":
            return GpuEngine(folder, request["file"], threads, target="tensorrt")
        case _:
            return TorchPadded(folder, threads, int(request["padded_batch_pairs"]))


@dataclass
class OnnxEngine:
    """An ONNX folder in our runtime: pairs sorted by length under a token budget, batches trimmed to their longest.

    Where the folder has a cascade, a query's pairs are one list that goes through it.
    """

    folder: Path
    file: str | None
    threads: int
    import_s: float = field(init=False)
    load_s: float = field(init=False)

    def __post_init__(self) -> None:
        start = time.perf_counter()
        self._import()
        imported = time.perf_counter()
        self._ranker = self._load()
        self.import_s, self.load_s = imported - start, time.perf_counter() - imported
        self.weights_path = self._ranker.onnx_path

    def _import(self) -> None:
        importlib.import_module("compressor.runtime.ranker")

    def _load(self) -> OnnxRanker:
        from compressor.runtime.ranker import OnnxRanker

        return OnnxRanker.load(self.folder, file=self.file, threads=self.threads)

    def score(self, pairs: Sequence[tuple[str, str]]) -> Scored:
        start = time.perf_counter()
        encoded = self._ranker.encode(pairs)
        tokenized = time.perf_counter()
        found = self._ranker.score_list(encoded)
        end = time.perf_counter()
        return Scored(
            scores=found.scores, lengths=_lengths(encoded), tokenize_s=tokenized - start, forward_s=end - tokenized,
            stages=None if found.stages is None else found.stages.tolist(),
        )  # fmt: skip

    def score_in_one_batch(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        return self._ranker.score_encoded(self._ranker.encode(pairs), batch_tokens=2**31)


@dataclass
class OpenVinoEngine(OnnxEngine):
    """A folder's portable graph in OpenVINO, with the batches of `OnnxEngine`; pairs go through it at full depth."""

    precision: Literal["f32", "bf16"] = "f32"

    def _import(self) -> None:
        super()._import()
        with contextlib.suppress(ModuleNotFoundError):  # loading says what to install
            importlib.import_module("openvino")

    def _load(self) -> OnnxRanker:
        from compressor.bench.openvino_session import load_ranker

        return load_ranker(self.folder, self.file, self.threads, self.precision)


@dataclass
class GpuEngine(OnnxEngine):
    """A folder in one of ONNX Runtime's providers for GPUs, with the batches of `OnnxEngine`."""

    target: GpuTarget = "cuda"

    def _load(self) -> OnnxRanker:
        from compressor.bench.gpu_providers import load_ranker

        return load_ranker(self.folder, self.file, self.threads, self.target)


def _lengths(encoded: Encoded | EncodedSides) -> list[int]:
    if hasattr(encoded, "lengths"):
        return [int(n) for n in encoded.lengths]
    both = encoded.texts.lengths[encoded.query_rows] + encoded.texts.lengths[encoded.document_rows]
    return [int(n) for n in both]


@dataclass
class TorchPadded:
    """A stock checkpoint in transformers, fp32: fixed batches in the order of arrival, padded to their longest."""

    folder: Path
    threads: int
    batch_pairs: int
    import_s: float = field(init=False)
    load_s: float = field(init=False)

    def __post_init__(self) -> None:
        start = time.perf_counter()
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.set_num_threads(self.threads)
        imported = time.perf_counter()
        if not (self.folder / "config.json").is_file():
            fix = "this baseline needs a stock Hugging Face checkpoint"
            raise InputError(Fault(source=self.folder, found="no config.json", fix=fix))
        self._torch = torch
        self._tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        self._model = AutoModelForSequenceClassification.from_pretrained(
            self.folder, local_files_only=True, dtype=torch.float32
        ).eval()
        if self._model.config.num_labels != 1:
            found = f"a classifier with {self._model.config.num_labels} outputs"
            raise InputError(Fault(source=self.folder, found=found, allowed="a ranker with one output"))
        positions = getattr(self._model.config, "max_position_embeddings", None) or self._tokenizer.model_max_length
        self._max_length = int(min(self._tokenizer.model_max_length, positions))
        self.import_s, self.load_s = imported - start, time.perf_counter() - imported
        self.weights_path = self.folder / "model.safetensors"

    def score(self, pairs: Sequence[tuple[str, str]]) -> Scored:
        scores, lengths, tokenize_s, forward_s = [], [], 0.0, 0.0
        for first in range(0, len(pairs), self.batch_pairs):
            start = time.perf_counter()
            batch = self._encode(pairs[first : first + self.batch_pairs])
            tokenized = time.perf_counter()
            scores.append(self._forward(batch))
            tokenize_s, forward_s = tokenize_s + tokenized - start, forward_s + time.perf_counter() - tokenized
            lengths += [int(n) for n in batch["attention_mask"].sum(dim=1)]
        joined = np.concatenate(scores) if scores else np.zeros(0, np.float32)
        return Scored(scores=joined, lengths=lengths, tokenize_s=tokenize_s, forward_s=forward_s)

    def score_in_one_batch(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        return self._forward(self._encode(pairs))

    def _encode(self, pairs: Sequence[tuple[str, str]]) -> Any:
        queries, documents = [query for query, _ in pairs], [document for _, document in pairs]
        return self._tokenizer(
            queries, documents, padding=True, truncation=True, max_length=self._max_length, return_tensors="pt"
        )

    def _forward(self, batch: Any) -> np.ndarray:
        with self._torch.inference_mode():
            scores: np.ndarray = self._model(**batch).logits[:, 0].float().numpy()
        if not np.isfinite(scores).all():
            raise RunError(f"{self.folder}: the model gives NaN or infinite scores")
        return scores
