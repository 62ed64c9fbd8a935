"""Does the ONNX file score as the torch module does? Asked of every file at every export."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from compressor.errors import RunError
from compressor.ranker.cost import linears_of
from compressor.ranker.encoder import Encoder
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import RankerSpec, float_kind
from compressor.runtime.batching import padded, token_budget_batches
from compressor.runtime.session import open_session

Batches = Sequence[dict[str, np.ndarray]]
Results = Callable[[Encoder, Batches], np.ndarray]

BATCH_SHAPES = ((1, 16), (7, 33), (3, 512))  # rows, tokens of the longest row
TOP = 10
_N_PAIRS = 16
_BATCH_TOKENS = 4096
_FLOAT_TOLERANCE = 1e-4
_NOISE_FACTOR = 4.0
_FLOAT_MARGIN, _ROUNDED_MARGIN = 1e-4, 0.02  # of tokens' scores, relative; see `Reduction.margins`
_FLOAT_CAUSE = "fp32 sums in another order"
_MAGNIFIED_CAUSE = (
    "fp32 sums in another order: this ranker magnifies what they round; allowed is 4 times the distance of the torch "
    "module's own results from those it gives in fp64"
)
_ROUNDING_CAUSE = (
    "{what} rounding: a change in the last bits pushes activations over a rounding step, and so on from layer to "
    "layer; allowed is 4 times the movement of the torch simulation when its biases and gains change by one part in "
    "{parts}"
)
_MATES_CAUSE = (
    "8-bit rounding by the range of a whole batch: rows met others here; allowed is 4 times what scores move when each "
    "row is alone"
)
_HALF_CAUSE = "; which states are rounded between two operators differs between runtimes"
# How much biases and gains are changed: where sums are fp32, by what their order moves; else by half a step.
_NOISE = {"fp32": 1_000_000, "fp16": 2**11, "bf16": 2**8}


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """How an ONNX file agrees with the torch module of the same spec.

    Attributes:
        file: the file's name.
        max_difference: largest absolute difference of a score (of a component, for embeddings).
        rms_difference: root of the mean squared difference.
        allowed_max: the largest difference that is tolerated.
        allowed_rms: the root mean square that is tolerated.
        cause: why there is a difference.
        n_rows: rows that were compared: all but those in which a token rule had to choose between near ties, or all
            where it did so in each and rounding is simulated.
    """

    file: str
    max_difference: float
    rms_difference: float
    allowed_max: float
    allowed_rms: float
    cause: str
    n_rows: int

    @property
    def summary(self) -> str:
        """One line for a log."""
        return (
            f"{self.file}: {self.n_rows} rows agree with torch within {self.max_difference:.1e} "
            f"(allowed {self.allowed_max:.1e}: {self.cause.split(':')[0]})"
        )


def parity_batches(ranker: Ranker, pairs: Sequence[tuple[str, str]]) -> list[dict[str, np.ndarray]]:
    """Return padded batches to compare on: made-up rows in `BATCH_SHAPES`, then real pairs, if there are any."""
    batches = list(_made_up(ranker.spec))
    if pairs:
        bi_encoder = ranker.spec.output_name == "embedding"
        some = list(pairs[:_N_PAIRS])
        texts = [text for pair in some for text in pair]
        encoded = ranker.tokenizer.encode_texts(texts) if bi_encoder else ranker.tokenizer.encode_pairs(some)
        for rows in token_budget_batches(encoded.lengths, _BATCH_TOKENS):
            batches.append(padded(encoded, rows, ranker.spec.pad_id))
    return batches


def check_parity(ranker: Ranker, path: Path, batches: Batches) -> tuple[Parity, np.ndarray]:
    """Compare an ONNX file with the torch module.

    Args:
        ranker: the reference; its module simulates the spec's precisions.
        path: the ONNX file.
        batches: padded inputs, from `parity_batches`.

    Returns:
        The agreement, and the file's results for all rows, float32 ``[n, 1 or width]``.

    Raises:
        RunError: scores differ by more than the tolerance, or the first `TOP` places do beyond near ties.
    """
    session = open_session(path)
    names = [node.name for node in session.get_inputs()]
    found = np.concatenate([session.run(None, {name: batch[name] for name in names})[0] for batch in batches])
    return compare(path.name, ranker, batches, found), found


def compare(
    name: str,
    ranker: Ranker,
    batches: Batches,
    found: np.ndarray,
    results: Results | None = None,
    *,
    other_mates: bool = False,
) -> Parity:
    """Compare a file's results with those of torch.

    Args:
        name: the file's name.
        ranker: the reference.
        batches: padded inputs.
        found: what the file gave for all rows, float32 ``[n, 1 or width]``.
        results: what a module gives for all rows; by default what it returns.
        other_mates: the file met rows beside others than their batch's, which scales of a whole batch answer to.

    Raises:
        RunError: as `check_parity`.
    """
    results = results or module_results
    expected = results(ranker.module, batches)
    if found.shape != expected.shape:
        raise RunError(f"{name} gives the shape {list(found.shape)}, the ranker {list(expected.shape)}")
    cause, parts = _rounding(ranker.spec)
    clear = clear_rows(ranker, batches, least=_ROUNDED_MARGIN if parts else _FLOAT_MARGIN)
    if not clear.any():
        if not parts:
            raise RunError(f"{name}: every row's choice of tokens is so close that rounding may turn it; none compared")
        clear[:] = True  # where many tokens merge, some choice is always close: the noise below turns such ones, too
    largest, rms = _distance(found[clear], expected[clear])
    allowed_max = allowed_rms = _FLOAT_TOLERANCE
    noise = None
    if parts:
        noise = _rounding_noise(ranker, batches, expected, 1 / parts, results)
        if other_mates and not all(linear.precision.is_batch_invariant for _, linear in linears_of(ranker.spec)):
            cause = _MATES_CAUSE
            noise = _larger(noise, _distance(results(ranker.module, _one_by_one(batches)), expected))
    elif largest > _FLOAT_TOLERANCE:
        cause, noise = _MAGNIFIED_CAUSE, _distance(expected, results(copy.deepcopy(ranker.module).double(), batches))
    if noise:
        allowed_max, allowed_rms = (max(_FLOAT_TOLERANCE, _NOISE_FACTOR * part) for part in noise)
    parity = Parity(
        file=name, max_difference=largest, rms_difference=rms, allowed_max=allowed_max, allowed_rms=allowed_rms,
        cause=cause, n_rows=int(clear.sum()),
    )  # fmt: skip
    if not (largest <= allowed_max and rms <= allowed_rms):  # NaN too
        raise RunError(
            f"{name} does not score as the ranker does: over {int(clear.sum())} rows scores differ by up to "
            f"{largest:.3g} (allowed {allowed_max:.3g}), by {rms:.3g} in the mean (allowed {allowed_rms:.3g})"
        )
    if found.shape[1] == 1:
        check_order(name, expected[clear, 0], found[clear, 0], near=2 * allowed_max)
    return parity


def _rounding(spec: RankerSpec) -> tuple[str, int]:
    """Return why scores may differ, and by one part in how many the noise is that stands for it; 0 in plain fp32."""
    precisions = [linear.precision for _, linear in linears_of(spec)]
    floats = next((kind for one in precisions if (kind := float_kind(one)) != "fp32"), "fp32")
    if floats == "fp32" and all(precision.kind == "fp32" for precision in precisions):
        return _FLOAT_CAUSE, 0
    parts = _NOISE[floats]
    what = "8-bit" if floats == "fp32" else floats
    return _ROUNDING_CAUSE.format(what=what, parts=f"{parts:,}") + ("" if floats == "fp32" else _HALF_CAUSE), parts


def clear_rows(ranker: Ranker, batches: Sequence[Mapping[str, np.ndarray]], least: float) -> np.ndarray:
    """Return the rows in which no token rule chooses between near ties, which rounding would decide, bool ``[n]``.

    Args:
        ranker: with or without token rules.
        batches: padded inputs.
        least: the margin from which on a choice is clear, see `Reduction.margins`.
    """
    clear = [np.ones(len(batch["input_ids"]), dtype=bool) for batch in batches]
    if ranker.spec.rule_layers:
        with torch.inference_mode():
            for found, batch in zip(clear, batches, strict=True):
                trace = ranker.module.trace(**{name: torch.from_numpy(array) for name, array in batch.items()})
                for reduction in trace.reductions.values():
                    if reduction.margins is not None:
                        found &= (reduction.margins > least).numpy()
    return np.concatenate(clear)


def _distance(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    gaps = np.abs(found.astype(np.float64) - expected)
    return float(gaps.max()), float(np.sqrt((gaps**2).mean()))


def _larger(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return max(one[0], other[0]), max(one[1], other[1])


def _one_by_one(batches: Batches) -> Batches:
    return [
        {name: array[row : row + 1] for name, array in batch.items()}
        for batch in batches
        for row in range(len(batch["input_ids"]))
    ]


def _rounding_noise(
    ranker: Ranker,
    batches: Batches,
    expected: np.ndarray,
    noise: float,
    results: Results,
) -> tuple[float, float]:
    """Return how far the simulation's results move when nothing but last bits changes, on the rows that are compared.

    On all of them: a few rows stand so near to rounding steps that they move ten times as far as the others.
    """
    return _distance(results(_nudged(ranker, noise).module, batches), expected)


def _nudged(ranker: Ranker, noise: float) -> Ranker:
    """Return the ranker with biases and gains changed by a share of themselves: what its rounding makes of noise."""
    generator = torch.Generator().manual_seed(0)

    def nudge(tensor: torch.Tensor) -> torch.Tensor:
        return tensor * (1 + noise * torch.randn(tensor.shape, generator=generator)) if tensor.dim() == 1 else tensor

    return ranker.changed(weights={name: nudge(tensor) for name, tensor in ranker.weights.items()})


def torch_results(ranker: Ranker, batches: Batches) -> np.ndarray:
    """Return the torch module's results for all rows, float32 ``[n, 1 or width]``."""
    return module_results(ranker.module, batches)


def module_results(module: Encoder, batches: Batches) -> np.ndarray:
    """Return a module's results for all rows, float32 ``[n, 1 or width]``, whatever it computes in."""
    with torch.inference_mode():
        inputs = ({name: torch.from_numpy(array) for name, array in batch.items()} for batch in batches)
        return np.concatenate([module(**batch).float().numpy() for batch in inputs])


def check_order(name: str, expected: np.ndarray, found: np.ndarray, near: float) -> None:
    """Refuse a first `TOP` in which a row stands before one that the reference scores higher by more than ``near``."""
    best = np.argsort(-found, kind="stable")[:TOP]
    for place, row in enumerate(best):
        rest = np.setdiff1d(np.arange(len(found)), best[:place])
        lead = float(expected[rest].max() - expected[row])
        if lead > near:
            raise RunError(f"{name} ranks otherwise than the ranker: place {place + 1} is off by {lead:.3g}")


def _made_up(spec: RankerSpec) -> Iterator[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    for n_rows, n_tokens in BATCH_SHAPES:
        longest = min(n_tokens, spec.max_length)
        lengths = generator.integers(1, longest + 1, n_rows)
        lengths[0] = longest
        shape = (n_rows, longest)
        mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
        segments = spec.embeddings.segments.rows if spec.embeddings.segments else 1
        ids = generator.integers(0, spec.embeddings.tokens.rows, shape)
        if spec.isolates_query and spec.separator_id is not None:  # else most rows would be all query
            ids[np.arange(n_rows), generator.integers(0, lengths)] = spec.separator_id
        yield {
            "input_ids": np.where(mask == 1, ids, spec.pad_id).astype(np.int64),
            "attention_mask": mask,
            "token_type_ids": generator.integers(0, segments, shape) * mask,
        }
