"""How a teacher labels pairs fast: through its written ONNX graph in fp32, or in torch where only torch has the GPU.

The exported graph, not int8: a dynamic scale is taken over a whole batch, so an int8 score depends on its batch mates,
and what is stored for a pair would depend on when it was scored. In fp32 the graph agrees with the torch module, and so
with the stock model, within the rounding of sums: 4.8e-6 at most on 320 BM25 candidates of MS MARCO (packaged teacher,
logits with a standard deviation of 4.8), at 1.30 times the pairs per second (30.0 to 23.1, one thread, 77 tokens a
pair). A tolerance of 1e-4 is enforced when the graph is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compressor import __version__
from compressor.data.cache import cache_folder
from compressor.data.embeddings import Embedder
from compressor.data.ranking_data import Pair
from compressor.data.teacher_scores import Scorer
from compressor.errors import Fault, InputError
from compressor.storage import HeldError, sole_writer, whole_folder, write_json

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker

_GPU_BATCH_TOKENS = 65_536
_GRAPH = Path("onnx/model.onnx")
_POLL_S = 0.5


def open_scorer(ranker: Ranker, name: str) -> tuple[Scorer, str]:
    """Return a function that scores pairs of texts with a teacher, and in words how it does.

    Raises:
        InputError: the teacher is quantized.
        RunError: its graph does not score as it does.
    """
    refuse_quantized_teacher(ranker, name)
    if _only_torch_has_the_gpu():
        return torch_scorer(ranker, "cuda"), "torch, fp32, CUDA"
    if providers := _gpu_providers():
        return graph_scorer(ranker, providers), "exported graph, fp32, CUDA"
    return graph_scorer(ranker), "exported graph, fp32"


def open_embedder(ranker: Ranker, name: str) -> tuple[Embedder, str]:
    """Return a function that embeds texts with a bi-encoder, and in words how it does; the same choice as for scores.

    Raises:
        InputError: the encoder is quantized.
        RunError: its graph does not embed as it does.
    """
    from compressor.runtime.ranker import OnnxRanker

    refuse_quantized_teacher(ranker, name)
    if _only_torch_has_the_gpu():
        return _torch_runner(ranker, "cuda"), "torch, fp32, CUDA"
    providers = _gpu_providers()
    runtime = OnnxRanker.load(graph_folder(ranker), providers=providers or None)

    def embed(texts: Sequence[str], advance: Callable[[int], object]) -> np.ndarray:
        return runtime.embed(texts, on_embedded=advance)

    return embed, "exported graph, fp32" + (", CUDA" if providers else "")


def _gpu_providers() -> list[str]:
    """Return the providers of ONNX Runtime to use where it has a GPU; none where it has not."""
    import onnxruntime

    found = [each for each in onnxruntime.get_available_providers() if each.startswith("CUDA")]
    return [*found, "CPUExecutionProvider"] if found else []


def _only_torch_has_the_gpu() -> bool:
    import torch

    return torch.cuda.is_available() and not _gpu_providers()


def graph_scorer(ranker: Ranker, providers: Sequence[str] | None = None) -> Scorer:
    """Score through the written graph in ONNX Runtime, with all threads, in batches sorted by length."""
    from compressor.runtime.ranker import OnnxRanker

    runtime = OnnxRanker.load(graph_folder(ranker), providers=providers)

    def score(pairs: Sequence[Pair], advance: Callable[[int], object]) -> np.ndarray:
        return runtime.score(pairs, on_scored=advance)

    return score


def graph_folder(ranker: Ranker) -> Path:
    """Return the folder with the ranker's fp32 graph and tokenizer in the cache, made where it is not there yet.

    It is named by the ranker's fingerprint and this version of rankpress, and appears whole, even where several
    processes want it at once; the graph is compared with the torch module before it is kept.

    Raises:
        RunError: the graph does not score as the ranker does; nothing is kept.
    """
    place = cache_folder("teacher-graphs", f"{ranker.fingerprint}-{__version__}")
    folder = place / "graph"
    while not folder.is_dir():
        try:
            with sole_writer(place):  # clears away what a killed process left
                _write_graph(ranker, folder)
        except HeldError:
            time.sleep(_POLL_S)
    return folder


def _write_graph(ranker: Ranker, folder: Path) -> None:
    from compressor.export.configs import tokenizer_files, write_config
    from compressor.export.encoder import write_graph
    from compressor.export.parity import check_parity, parity_batches

    if folder.is_dir():
        return
    with whole_folder(folder) as partial:
        (partial / _GRAPH).parent.mkdir()
        (partial / _GRAPH).write_bytes(write_graph(ranker.spec, ranker.weights, "ort").SerializeToString())
        check_parity(ranker, partial / _GRAPH, parity_batches(ranker, ()))
        write_json(partial / "config.json", write_config(ranker))
        for name, content in tokenizer_files(ranker).items():
            (partial / name).write_bytes(content)


def torch_scorer(ranker: Ranker, device: str) -> Scorer:
    """Score in torch in fp32 on a device; TF32 stays off, as torch has it by default."""
    run = _torch_runner(ranker, device)

    def score(pairs: Sequence[Pair], advance: Callable[[int], object]) -> np.ndarray:
        if ranker.spec.output_name != "embedding":
            return run(pairs, advance)[:, 0]
        queries = run([query for query, _ in pairs], _ignore)
        documents = run([document for _, document in pairs], advance)
        return np.asarray((queries * documents).sum(axis=1))

    return score


def _torch_runner(
    ranker: Ranker, device: str
) -> Callable[[Sequence[Pair] | Sequence[str], Callable[[int], object]], np.ndarray]:
    """Return a function from pairs to logits ``[n, 1]``, or from texts to a bi-encoder's vectors ``[n, width]``."""
    import torch

    from compressor.runtime.batching import padded, token_budget_batches

    module = ranker.trainable().requires_grad_(False).eval().to(device)
    is_bi_encoder = ranker.spec.output_name == "embedding"

    def run(texts: Sequence[Pair] | Sequence[str], advance: Callable[[int], object]) -> np.ndarray:
        encode = ranker.tokenizer.encode_texts if is_bi_encoder else ranker.tokenizer.encode_pairs
        encoded = encode(texts)  # type: ignore[arg-type]  # texts for the one, pairs for the other
        results = np.empty((len(texts), ranker.spec.width if is_bi_encoder else 1), dtype=np.float32)
        with torch.inference_mode():
            for rows in token_budget_batches(encoded.lengths, _GPU_BATCH_TOKENS):
                inputs = padded(encoded, rows, ranker.spec.pad_id)
                tensors = {key: torch.from_numpy(array).to(device) for key, array in inputs.items()}
                results[rows] = module(**tensors).float().cpu().numpy()
                advance(len(rows))
        return results

    return run


def refuse_quantized_teacher(ranker: Ranker, name: str) -> None:
    """Refuse a teacher whose linears are rounded: its scores would depend on batch mates, or on the CPU's kernels.

    Raises:
        InputError: says what to name instead.
    """
    from compressor.ranker.cost import linears_of

    if any(linear.precision.kind != "fp32" for _, linear in linears_of(ranker.spec)):
        raise InputError(
            Fault(
                source="teacher",
                found=f"{name}, a quantized ranker, whose scores depend on their batch mates or on the CPU",
                allowed="a ranker in fp32",
                fix="name the folder under stages/ from before its quantize",
            )
        )


def _ignore(n: int) -> None:
    """Take a progress report and show nothing."""
