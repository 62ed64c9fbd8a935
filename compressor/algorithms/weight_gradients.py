"""How scores answer to weights: the gradient of every candidate's score alone, less what moves its whole list."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from compressor.algorithms.calibration import CalibrationBatch, calibration_batches, run_layers
from compressor.algorithms.score_gradients import shares_in_lists
from compressor.memory import memory_bytes
from compressor.progress import progress
from compressor.ranker.encoder import Encoder
from compressor.ranker.ranker import Ranker


class Curvature(Protocol):
    """What gradients are summed up in."""

    shape: tuple[int, int]

    def add(self, gradients: Tensor, shares: Tensor) -> None:
        """Add gradients ``[n, outputs, inputs]`` with weights ``[n]``; they may be overwritten."""


C = TypeVar("C", bound=Curvature)
_CANDIDATES_AT_ONCE = 32  # sums are large, and are read and written once for so many


def measured_curvatures(
    ranker: Ranker,
    pairs: Sequence[tuple[str, str]],
    names: Sequence[str],
    make: Callable[[tuple[int, int]], C],
    temperature: float | None = None,
    *,
    bytes_per_weight: int = 4,
) -> Iterator[dict[str, C]]:
    """Yield the Fisher information of linears by name, for as many layers at once as memory has room for, label-free.

    A weight's gradient for one candidate is the product of what its linear reads and the gradient of what it writes,
    summed over the candidate's tokens. Gradients of a list are centered and weighed as `rank_centered` has it, and
    lists count alike. Nothing but sums and what some lists' gradients are made of is kept, in half of the memory;
    layers that do not fit in follow in a pass of their own through them and those behind them. What is found does not
    depend on it but for rounding.

    Args:
        ranker: a cross-encoder.
        pairs: the calibration set, several candidates of each query.
        names: linears that are one matrix.
        make: makes an empty sum for a shape ``(outputs, inputs)``.
        temperature: of the softmax over a list.
        bytes_per_weight: of a sum.
    """
    by_query: dict[str, list[tuple[str, str]]] = {}
    for query, document in pairs:
        by_query.setdefault(query, []).append((query, document))
    chunks = [_Chunk(ranker, lists) for lists in _in_chunks(list(by_query.values()))]
    module = ranker.module
    groups = list(_layer_groups(ranker, names, bytes_per_weight, max(chunk.n_tokens for chunk in chunks)))
    largest = max(ranker.weights[f"{name}.weight"].numel() for name in names)
    room = torch.empty(max(chunk.n_pairs for chunk in chunks) * largest)
    with progress("Measuring curvature", len(groups) * len(pairs)) as advance:
        for layers, own in groups:
            sums = {name: make(tuple(ranker.weights[f"{name}.weight"].shape)) for name in own}  # type: ignore[arg-type]
            for chunk in chunks:
                if own:
                    _add_chunk(module, chunk, layers[0], sums, temperature, len(by_query), room)
                chunk.run(module, layers)
                advance(chunk.n_pairs)
            if own:
                yield sums


class _Chunk:
    """Some queries' candidates, whose gradients are summed up together, before the layer that they have come to."""

    def __init__(self, ranker: Ranker, lists: Sequence[Sequence[tuple[str, str]]]) -> None:
        self.lists = [calibration_batches(ranker, found) for found in lists]
        self._states = [[batch.embedded for batch in batches] for batches in self.lists]
        self.n_pairs = sum(map(len, lists))
        self.n_tokens = sum(len(one) for states in self._states for one in states)

    def batches(self) -> Iterator[tuple[int, CalibrationBatch, Tensor]]:
        """Yield the number of the list, a batch of it, and its packed states ``[T, width]``."""
        for number, (batches, states) in enumerate(zip(self.lists, self._states, strict=True)):
            for batch, values in zip(batches, states, strict=True):
                yield number, batch, values

    def run(self, module: Encoder, layers: Sequence[int]) -> None:
        """Go on behind some layers."""
        with torch.no_grad():
            self._states = [
                [run_layers(module, batch, one, layers) for batch, one in zip(batches, states, strict=True)]
                for batches, states in zip(self.lists, self._states, strict=True)
            ]


def _in_chunks(lists: Sequence[Sequence[tuple[str, str]]]) -> Iterator[list[Sequence[tuple[str, str]]]]:
    """Yield whole lists, as many as have so many candidates: sums are large, and each time are read and written."""
    chunk: list[Sequence[tuple[str, str]]] = []
    for one in lists:
        if chunk and sum(map(len, chunk)) + len(one) > _CANDIDATES_AT_ONCE:
            yield chunk
            chunk = []
        chunk.append(one)
    yield chunk


def _layer_groups(
    ranker: Ranker, names: Sequence[str], bytes_per_weight: int, most_tokens: int
) -> Iterator[tuple[list[int], list[str]]]:
    """Yield layers in turn, with their linears: as many as fit in half of the memory, and one at least."""
    room = (memory_bytes() or 0) / 2
    layers: list[int] = []
    linears: list[str] = []
    taken = 0
    for index in range(len(ranker.module.layers)):
        own = [name for name in names if name.startswith(f"layers.{index}.")]
        shapes = [ranker.weights[f"{name}.weight"].shape for name in own]
        size = sum(math.prod(shape) * bytes_per_weight + most_tokens * sum(shape) * 4 for shape in shapes)
        if layers and taken + size > room:
            yield layers, linears
            layers, linears, taken = [], [], 0
        layers, linears, taken = [*layers, index], [*linears, *own], taken + size
    yield layers, linears


def _add_chunk(
    module: Encoder,
    chunk: _Chunk,
    first: int,
    sums: dict[str, C],
    temperature: float | None,
    n_lists: int,
    room: Tensor,
) -> None:
    """Add the gradients of some queries' candidates, which are formed in ``room``, in place: they are large."""
    names = list(sums)
    found = [(number, *_outer_parts(module, batch, values, first, names)) for number, batch, values in chunk.batches()]
    scores = torch.cat([one for _, one, _ in found])
    group = torch.tensor([number for number, one, _ in found for _ in one])
    shares = shares_in_lists(scores, group, len(chunk.lists), temperature)
    for name, total in sums.items():
        each = room[: len(scores) * math.prod(total.shape)].view(len(scores), *total.shape)
        parts = (one for _, _, parts in found for one in _of_candidates(*parts[name]))
        for place, (read, gradient) in zip(each, parts, strict=True):
            torch.mm(gradient.T, read, out=place)
        for number in range(len(chunk.lists)):
            (own,) = (group == number).nonzero(as_tuple=True)
            begin, end = int(own[0]), int(own[-1]) + 1  # a list's candidates stand together
            flat = each[begin:end].flatten(1)
            flat -= shares[begin:end] @ flat
        total.add(each, shares / n_lists)


_Parts = tuple[Tensor, Tensor, list[int]]


def _outer_parts(
    module: Encoder, batch: CalibrationBatch, values: Tensor, first: int, names: Sequence[str]
) -> tuple[Tensor, dict[str, _Parts]]:
    """Return scores ``[n]`` and, by linear, what it reads, the gradient of what it writes, and each row's tokens."""
    read: dict[str, Tensor] = {}
    written: dict[str, Tensor] = {}
    with torch.enable_grad(), ExitStack() as hooks:
        for name in names:
            hooks.enter_context(_kept(module.get_submodule(name), name, read, written))
        # The batch's own layout was made where nothing is recorded.
        layout = module.lay_out(batch.inputs["input_ids"], batch.inputs["attention_mask"])
        values = values.clone().requires_grad_()
        for layer in list(module.layers)[first:]:
            values = layer(values, layout)
        logits = module.head(module.pool(values, layout, first_only=False))
        gradients = torch.autograd.grad(logits.sum(), list(written.values()))  # rows do not meet: that of each score
    counts = batch.inputs["attention_mask"].sum(dim=1).tolist()
    parts = {name: (read[name].detach(), one, counts) for name, one in zip(written, gradients, strict=True)}
    return logits.detach()[:, 0], parts


def _of_candidates(read: Tensor, gradient: Tensor, counts: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Return what the linear reads of each candidate, ``[t, inputs]``, and the gradient of what it writes."""
    return zip(read.split(counts), gradient.split(counts), strict=True)


@contextmanager
def _kept(part: Any, name: str, read: dict[str, Tensor], written: dict[str, Tensor]) -> Iterator[None]:
    def keep(_: object, inputs: tuple[Tensor], result: Tensor) -> None:
        read[name], written[name] = inputs[0], result

    hook = part.register_forward_hook(keep)
    try:
        yield
    finally:
        hook.remove()
