"""Embeddings of a collection on disk, made in chunks: what a killed run has finished is not made again."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from compressor.data.cache import cache_folder
from compressor.errors import RunError
from compressor.progress import progress
from compressor.storage import HeldError, sha256_json, sole_writer

Embedder = Callable[[Sequence[str], Callable[[int], object]], np.ndarray]

CHUNK_TEXTS = 512  # what a kill costs: half a minute of a 6-layer encoder on two cores, a minute or two of 12 layers
_POLL_S = 0.5


def embeddings(
    texts: Sequence[str], embed: Embedder, *, encoder: str, name: str, what: str = "texts", chunk: int = CHUNK_TEXTS
) -> list[np.ndarray]:
    """Return the embeddings of texts, chunk by chunk, each float32 ``[<= chunk, width]`` and mapped from its file.

    They are kept in the cache folder under a hash of the encoder and of all texts in their order. A chunk appears whole
    or not at all; where another process is making them, wait for it.

    Args:
        texts: as the encoder is to read them, prefixes and all.
        embed: called with some texts and a function to be told how many more are done; returns ``[n, width]``.
        encoder: fingerprint of the encoder: equal fingerprints embed equally.
        name: how progress calls the encoder.
        what: how progress calls the texts.
        chunk: texts in a chunk.

    Raises:
        RunError: ``embed`` gave NaN or infinite numbers; nothing of that chunk is stored.
        InputError: the cache cannot be written to.
    """
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    folder = cache_folder("embeddings", sha256_json([encoder, digest.hexdigest(), chunk]))
    starts = range(0, len(texts), chunk)
    sizes = {folder / f"chunk-{start // chunk:05}.npy": len(texts[start : start + chunk]) for start in starts}
    while True:
        found = {path: _read(path, size) for path, size in sizes.items()}
        if all(array is not None for array in found.values()):
            return [array for array in found.values() if array is not None]
        try:
            with sole_writer(folder):
                _fill(sizes, texts, embed, f"Embedding {what} with {name}")
        except HeldError:
            time.sleep(_POLL_S)


def _fill(sizes: dict[Path, int], texts: Sequence[str], embed: Embedder, description: str) -> None:
    ends = np.cumsum([0, *sizes.values()])
    missing = [row for row, (path, size) in enumerate(sizes.items()) if _read(path, size) is None]
    paths = list(sizes)
    with progress(description, sum(sizes[paths[row]] for row in missing)) as advance:
        for row in missing:
            vectors = np.asarray(embed(texts[ends[row] : ends[row + 1]], advance), dtype=np.float32)
            if vectors.ndim != 2 or len(vectors) != sizes[paths[row]]:
                raise RunError(f"{description}: shape {list(vectors.shape)} for {sizes[paths[row]]} texts")
            if n_broken := int((~np.isfinite(vectors).all(axis=1)).sum()):
                raise RunError(f"{description}: NaN or infinite numbers for {n_broken} texts")
            _write(paths[row], vectors)


def _read(path: Path, n_rows: int) -> np.ndarray | None:
    """Map a chunk; None where there is none, or one that a power cut left broken."""
    try:
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.ndim == 2 and len(found) == n_rows and found.dtype == np.float32 else None


def _write(path: Path, vectors: np.ndarray) -> None:
    try:
        # A name that `sole_writer` knows as half-written: the next run clears away what a kill leaves.
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            np.save(stream, vectors, allow_pickle=False)
            stream.flush()
            os.fsync(stream.fileno())
        Path(partial).replace(path)
    except OSError as error:
        raise RunError(f"{path}: the embeddings cannot be written ({error.strerror}); what is there stays") from None
