"""What scores do when one part of a ranker alone is rounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compressor.algorithms.calibration import CalibrationBatch, calibration_batches, run_layers, scores_from
from compressor.algorithms.score_shifts import ScoreShift, list_places, score_shift
from compressor.algorithms.stored_shifts import StoredShifts
from compressor.progress import progress
from compressor.ranker.encoder import Encoder
from compressor.ranker.linears import Linear
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import LinearPrecision

Rounding = Mapping[str, LinearPrecision]  # by name of the linear

_ONE_INPUT = ("query", "key", "value", "gate", "up")
_BELOW = -1  # the place of what stands before all layers


def by_shared_input(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return linears in groups that read one input, which the graph rounds and multiplies once.

    Queries, keys and values of a layer form ``layers.3.attention.query_key_value``, gates and ups
    ``layers.3.ffn.gate_up``, as far as they are among ``names``; all others stand alone under their own name.

    Args:
        names: of linears, in the order of the forward pass.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        block, _, part = name.rpartition(".")
        found.setdefault(block if part in _ONE_INPUT else name, []).append(name)
    groups = {}
    for names_of in found.values():
        parts = [name.rpartition(".")[2] for name in names_of]
        groups[f"{names_of[0].rpartition('.')[0]}.{'_'.join(parts)}"] = tuple(names_of)
    return groups


def measure_sensitivity(
    ranker: Ranker,
    pairs: Sequence[tuple[str, str]],
    trials: Mapping[str, Rounding],
    ranges: Mapping[str, Tensor] | None = None,
    *,
    store: Path | None = None,
    text: str = "Rounding one by one",
) -> dict[str, ScoreShift]:
    """Return how far the scores of some lists move with each rounding alone, all else exact.

    What stands before the layer of a trial has not changed, so its input is kept and the trial runs from there on.

    Args:
        ranker: the exact ranker.
        pairs: (query, document) texts; pairs of a query form its list, and one has two or more.
        trials: by any name, linears of one layer, or of none, and their precisions.
        ranges: what `compressor.algorithms.quantization.observed_ranges` gives, for ``int8_static``.
        store: a file that takes each measurement at once, so that a killed run goes on from it; another run's is not
            used.
        text: what a progress bar says.
    """
    batches = calibration_batches(ranker, pairs)
    lists = list_places([query for query, _ in pairs])
    module = ranker.changed().module  # of its own: its linears are exchanged
    roundings = {name: {each: one.model_dump() for each, one in trial.items()} for name, trial in trials.items()}
    observed = {name: tensor.tolist() for name, tensor in (ranges or {}).items()}
    found = StoredShifts.of(store, [ranker.fingerprint, list(map(list, pairs)), roundings, observed])
    by_layer: dict[int, list[str]] = {}
    for name, rounding in trials.items():
        by_layer.setdefault(_layer_of(rounding), []).append(name)
    states = [batch.embedded for batch in batches]

    def scores(begin: int) -> np.ndarray:
        inputs = [_embedded(module, batch) for batch in batches] if begin == _BELOW else states
        return scores_from(module, batches, inputs, max(begin, 0), len(pairs))

    with torch.inference_mode(), progress(text, len(trials)) as advance:
        exact = scores(0)
        for layer in range(_BELOW, len(module.layers)):
            for name in by_layer.get(layer, ()):
                if name not in found.shifts:
                    with _rounded(module, trials[name], ranges or {}):
                        found.add(name, score_shift(scores(layer), exact, lists))
                advance()
            if 0 <= layer < len(module.layers) - 1:
                states = [run_layers(module, *pair, [layer]) for pair in zip(batches, states, strict=True)]
    return {name: found.shifts[name] for name in trials}


def _layer_of(rounding: Rounding) -> int:
    """Return the layer of a trial's linears.

    Raises:
        ValueError: they stand in several.
    """
    places = {int(name.split(".")[1]) if name.startswith("layers.") else _BELOW for name in rounding}
    if len(places) != 1:
        raise ValueError(f"a trial is of one layer, not of {', '.join(rounding) or 'nothing'}")
    return places.pop()


def _embedded(module: Encoder, batch: CalibrationBatch) -> Tensor:
    return module.embed(batch.layout, batch.inputs["input_ids"], batch.inputs.get("token_type_ids"))


@contextmanager
def _rounded(module: Encoder, rounding: Rounding, ranges: Mapping[str, Tensor]) -> Iterator[None]:
    """Run with some linears in other precisions, which read the same weights."""
    exact = {name: module.get_submodule(name) for name in rounding}
    try:
        for name, precision in rounding.items():
            part = exact[name]
            assert isinstance(part, Linear)  # noqa: S101  # names are those of linears
            with torch.device("meta"):
                other = Linear(part.spec.changed(precision=precision))
            tensors = dict(part.state_dict())
            if precision.kind == "int8_static":
                tensors["input_ranges"] = ranges[name]
            other.load_state_dict(tensors, strict=True, assign=True)
            module.set_submodule(name, other.requires_grad_(False).eval())
        yield
    finally:
        for name, part in exact.items():
            module.set_submodule(name, part)
