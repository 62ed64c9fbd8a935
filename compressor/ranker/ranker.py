"""A ranker: spec, weights, tokenizer, the config it came with, and its history."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from compressor.errors import RunError
from compressor.progress import progress
from compressor.ranker.dense_sparse import broken_indices
from compressor.ranker.encoder import Encoder, expected_shapes, expected_tensors
from compressor.ranker.history import StageRecord
from compressor.ranker.spec import RankerSpec
from compressor.runtime.batching import padded, token_budget_batches
from compressor.runtime.tokenizer import Encoded, PairTokenizer
from compressor.storage import sha256_json

BATCH_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class Ranker:
    """Everything that scores a pair. Never changed in place: passes return a new one.

    Attributes:
        spec: the shape.
        weights: one tensor per name of the spec, fp32; indices of sparse codes are small integers.
        tokenizer_files: file name to content (``tokenizer.json``, ``tokenizer_config.json``, ...).
        source_config: the ``config.json`` of the checkpoint it came from, for what the spec does not say.
        history: one record per applied pass, oldest first.
    """

    spec: RankerSpec
    weights: Mapping[str, Tensor]
    tokenizer_files: Mapping[str, bytes]
    source_config: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[StageRecord, ...] = ()

    def __post_init__(self) -> None:
        check_weights(self.spec, self.weights)

    def changed(self, **changes: Any) -> Self:
        """Return a ranker with some parts replaced; the rest is shared with this one."""
        return replace(self, **changes)

    def without_exits(self) -> Self:
        """Return the ranker that gives the same scores and has no exits, nor a cascade."""
        return self._with_less(self.spec.without_exits())

    def as_served(self) -> Self:
        """Return the ranker that gives the same scores and has, of exits, those alone that its cascade reads."""
        return self._with_less(self.spec.as_served())

    def _with_less(self, spec: RankerSpec) -> Self:
        if spec == self.spec:
            return self
        return self.changed(spec=spec, weights={name: self.weights[name] for name in expected_shapes(spec)})

    @cached_property
    def module(self) -> Encoder:
        """The torch module over these weights, in evaluation mode; shares memory with them, so do not train it."""
        with torch.device("meta"):
            module = Encoder(self.spec)
        module.load_state_dict(dict(self.weights), strict=True, assign=True)
        return module.requires_grad_(False).eval()

    def trainable(self) -> Encoder:
        """Return a new module over copies of the weights, in training mode."""
        with torch.device("meta"):
            module = Encoder(self.spec)
        copies = {name: tensor.detach().clone() for name, tensor in self.weights.items()}
        module.load_state_dict(copies, strict=True, assign=True)
        return module.requires_grad_(True).train()

    @cached_property
    def tokenizer(self) -> PairTokenizer:
        """The tokenizer, cut at the spec's ``max_length``."""
        return PairTokenizer.from_files(self.tokenizer_files, max_length=self.spec.max_length)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over spec, weights and tokenizer: equal fingerprints score equally."""
        weights = {
            name: hashlib.sha256(tensor.detach().contiguous().numpy().data).hexdigest()
            for name, tensor in self.weights.items()
        }
        files = {name: hashlib.sha256(content).hexdigest() for name, content in self.tokenizer_files.items()}
        return sha256_json({"spec": self.spec.model_dump(mode="json"), "weights": weights, "tokenizer": files})

    def score(self, pairs: Sequence[tuple[str, str]], *, batch_tokens: int = BATCH_TOKENS) -> np.ndarray:
        """Score (query, document) pairs in fp32.

        Returns:
            float32 ``[n]``: raw logits, or cosines for a bi-encoder, in the order of ``pairs``.

        Raises:
            RunError: a score is NaN or infinite.
        """
        if self.spec.output_name == "embedding":
            left = self._run(self.tokenizer.encode_texts([query for query, _ in pairs]), batch_tokens)
            right = self._run(self.tokenizer.encode_texts([document for _, document in pairs]), batch_tokens)
            scores = (left * right).sum(axis=1)
        else:
            scores = self._run(self.tokenizer.encode_pairs(pairs), batch_tokens)[:, 0]
        if not np.isfinite(scores).all():
            blame = f"after pass {self.history[-1].verb}" if self.history else "as loaded"
            raise RunError(f"the ranker {blame} gives NaN or infinite scores for {(~np.isfinite(scores)).sum()} pairs")
        return scores

    def _run(self, encoded: Encoded, batch_tokens: int) -> np.ndarray:
        width = 1 if self.spec.output_name == "logits" else self.spec.width
        results = np.empty((len(encoded.lengths), width), dtype=np.float32)
        batches = token_budget_batches(encoded.lengths, batch_tokens)
        with torch.inference_mode(), progress("Scoring in torch", len(encoded.lengths)) as advance:
            for rows in batches:
                inputs = padded(encoded, rows, self.spec.pad_id)
                results[rows] = self.module(**{k: torch.from_numpy(v) for k, v in inputs.items()}).float().numpy()
                advance(len(rows))
        return results


def check_weights(spec: RankerSpec, weights: Mapping[str, Tensor]) -> None:
    """Check that weights are what the spec asks for, name by name.

    Raises:
        RunError: lists every tensor that is missing, unknown, or of another shape or kind.
    """
    tensors = expected_tensors(spec)
    expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    faults = [f"{name}: missing, expected {list(expected[name])}" for name in expected if name not in weights]
    faults += [f"{name}: not in the spec" for name in weights if name not in expected]
    for name in expected.keys() & weights.keys():
        found = weights[name]
        if tuple(found.shape) != expected[name]:
            faults.append(f"{name}: expected {list(expected[name])}, found {list(found.shape)}")
        elif found.dtype != tensors[name].dtype:
            faults.append(f"{name}: expected {str(tensors[name].dtype).removeprefix('torch.')}, found {found.dtype}")
    faults = faults or broken_indices(weights)
    if faults:
        raise RunError("weights do not fit the spec:\n  " + "\n  ".join(sorted(faults)))
