"""A stock checkpoint in sentence-transformers, as its documentation shows: what most people run today."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from compressor.bench.engines import Scored
from compressor.errors import Fault, InputError, RunError


@dataclass
class SentenceTransformers:
    """`CrossEncoder.predict`: it sorts pairs by length itself, and pads batches of 32, its default.

    Its time has tokenization in it and is not told apart.
    """

    folder: Path
    threads: int
    precision: Literal["float32", "bfloat16"] = "float32"
    import_s: float = field(init=False)
    load_s: float = field(init=False)

    def __post_init__(self) -> None:
        start = time.perf_counter()
        try:
            import torch
            from sentence_transformers import CrossEncoder
        except ModuleNotFoundError as error:
            fix = "pip install sentence-transformers"
            raise InputError(Fault(source=self.folder, found=f"no package {error.name}", fix=fix)) from None
        torch.set_num_threads(self.threads)
        imported = time.perf_counter()
        self._model = CrossEncoder(
            str(self.folder), local_files_only=True, device="cpu", activation_fn=torch.nn.Identity(),
            model_kwargs={"dtype": getattr(torch, self.precision)},
        )  # fmt: skip
        self.import_s, self.load_s = imported - start, time.perf_counter() - imported
        self.weights_path = self.folder / "model.safetensors"

    def score(self, pairs: Sequence[tuple[str, str]]) -> Scored:
        start = time.perf_counter()
        scores = self._predict(pairs, batch_size=32)
        took = time.perf_counter() - start
        return Scored(scores=scores, lengths=self._lengths(pairs), tokenize_s=0.0, forward_s=took)

    def score_in_one_batch(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        return self._predict(pairs, batch_size=max(1, len(pairs)))

    def _predict(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> np.ndarray:
        if not pairs:
            return np.zeros(0, np.float32)
        found = self._model.predict(list(pairs), batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True)
        scores: np.ndarray = found.float().numpy().reshape(-1)
        if not np.isfinite(scores).all():
            raise RunError(f"{self.folder}: the model gives NaN or infinite scores")
        return scores

    def _lengths(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        if not pairs:
            return []
        queries, documents = zip(*pairs, strict=True)
        encoded = self._model.tokenizer(
            list(queries), list(documents), truncation=True, max_length=self._model.max_seq_length
        )  # fmt: skip
        return [len(ids) for ids in encoded["input_ids"]]
