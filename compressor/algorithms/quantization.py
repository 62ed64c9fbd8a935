"""Precisions by name: from a ranker and what each linear shall compute in, to the ranker that does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.algorithms.calibration import Inputs
from compressor.algorithms.observers import Histogram, Observer, histogram_counts
from compressor.progress import progress
from compressor.ranker.encoder import Encoder, expected_shapes
from compressor.ranker.linears import Linear
from compressor.ranker.ranker import Ranker
from compressor.ranker.rounding import with_precisions
from compressor.ranker.spec import LinearPrecision, LowRankForm, TablePrecision

Product = tuple[str, int]  # a linear's name, and which of its matrix products


def quantized(
    ranker: Ranker,
    precisions: Mapping[str, LinearPrecision],
    table: TablePrecision | None = None,
    input_ranges: Mapping[str, Tensor] | None = None,
) -> Ranker:
    """Return a ranker whose linears compute in these precisions, each its own; weights stay as they are.

    Args:
        ranker: is not changed.
        precisions: by name of the linear, ``layers.3.ffn.down``; the others stay as they are.
        table: the precision of all lookup tables; None leaves them.
        input_ranges: float ``[products, 2]`` by name, from `observed_ranges`, for linears that become ``int8_static``.

    Raises:
        ValueError: there is no such linear outside the head and the exits, or fp16 and bf16 meet in one layer.
        RunError: a linear that becomes ``int8_static`` has no range.
    """
    spec = with_precisions(ranker.spec, precisions, table)
    found = {**ranker.weights, **{f"{name}.input_ranges": ranges for name, ranges in (input_ranges or {}).items()}}
    return ranker.changed(spec=spec, weights={name: found[name] for name in expected_shapes(spec) if name in found})


def observed_ranges(
    module: Encoder, batches: Sequence[Inputs], names: Iterable[str], observer: Observer
) -> dict[str, Tensor]:
    """Return the range of what linears read on calibration texts, float32 ``[products, 2]`` by name.

    Only real tokens are seen, as nothing else is ever computed; in the last layer, only those that the head asks for.

    Args:
        module: runs as it is: in fp32 for the ranges of exact activations.
        batches: from `calibration_inputs`.
        names: of linears, ``layers.3.ffn.down``.
        observer: chooses the range.
    """
    wanted = list(names)
    ends: dict[Product, tuple[float, float]] = {}

    def measure(product: Product, values: Tensor) -> None:
        low, high = ends.get(product, (0.0, 0.0))
        ends[product] = (min(low, float(values.min())), max(high, float(values.max())))

    show_inputs(module, batches, wanted, measure, "Observing ranges")
    counts: dict[Product, Tensor] = {}

    def count(product: Product, values: Tensor) -> None:
        found = histogram_counts(values, *ends[product])
        counts[product] = counts[product] + found if product in counts else found

    if observer.needs_histogram:
        show_inputs(module, batches, wanted, count, "Counting activations")
    chosen = {
        product: observer.range_of(Histogram(low=low, high=high, counts=counts.get(product, torch.zeros(0))))
        for product, (low, high) in ends.items()
    }
    return {
        name: torch.tensor([chosen[product] for product in sorted(chosen) if product[0] == name]) for name in wanted
    }


def show_inputs(
    module: Encoder,
    batches: Sequence[Inputs],
    names: Sequence[str],
    see: Callable[[Product, Tensor], None],
    text: str,
) -> None:
    """Run the whole encoder on the batches, and show what each product of some linears reads."""
    with torch.inference_mode(), _watched(module, names, see), progress(text, len(batches)) as advance:
        for batch in batches:
            module(**batch)
            advance()


@contextmanager
def _watched(module: Encoder, names: Sequence[str], see: Callable[[Product, Tensor], None]) -> Iterator[None]:
    def watch(name: str, part: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        assert isinstance(part, Linear)  # noqa: S101  # names are those of linears

        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            see((name, 0), inputs[0])
            if isinstance(part.spec.form, LowRankForm):
                see((name, 1), F.linear(inputs[0], part.down))

        return hook

    hooks = [
        part.register_forward_pre_hook(watch(name, part)) for name in names for part in [module.get_submodule(name)]
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
