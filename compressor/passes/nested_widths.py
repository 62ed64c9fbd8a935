"""Feed-forward widths that are prefixes of each other: what `nest_widths` and `cut_nested` share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from compressor.algorithms.layer_maps import LayerMapError, kept_layers
from compressor.passes.width_budget import Share
from compressor.ranker.spec import RankerSpec

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker


class UntrainedError(ValueError):
    """The first so many neurons of a ranker are no ranker: what was found, and what to do about it."""

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(f"{found}: {fix}")
        self.found, self.fix = found, fix


def _descending(shares: tuple[float, ...]) -> tuple[float, ...]:
    if list(shares) != sorted(set(shares), reverse=True):
        raise ValueError("name each share once, the largest first")
    return shares


Shares = Annotated[tuple[Share, ...], Field(min_length=1), AfterValidator(_descending)]
DEFAULT_SHARES = (1.0, 0.5, 0.25, 0.125)

TRAINED = "nested_widths"  # a note of the history: the neurons of every layer at each share that was trained


def share_of(width: int, share: float) -> int:
    """Return how many of a layer's neurons a share is: at least one, where there are any."""
    return max(1, round(width * share)) if width else 0


def full_widths(spec: RankerSpec) -> list[int]:
    """Return the neurons of every layer."""
    return [layer.ffn_width for layer in spec.layers]


def mixes(n_layers: int, shares: Sequence[float]) -> Iterator[list[float]]:
    """Yield a share for each layer, from the narrowest ranker to the widest, one layer wider at a time.

    Deeper layers grow first, and no two layers differ by more than neighboring shares: the mixes that MatFormer
    recommends, which grow with depth and in steps as small as can be (Mix'n'Match, arXiv 2310.07707).

    Args:
        n_layers: the ranker's.
        shares: what may be chosen.
    """
    ascending = sorted(shares)
    yield [ascending[0]] * n_layers
    for narrow, wide in pairwise(ascending):
        for n_wide in range(1, n_layers + 1):
            yield [narrow] * (n_layers - n_wide) + [wide] * n_wide


def check_trained(ranker: Ranker, widths: Sequence[int]) -> None:
    """Check by a ranker's history that so many neurons of every layer were trained to do without the others.

    Raises:
        UntrainedError: they were not, or what was trained has changed since.
    """
    places = [place for place, record in enumerate(ranker.history) if TRAINED in record.notes]
    if not places:
        raise UntrainedError("a ranker without nested widths", "put nest_widths before it")
    nested: list[list[int]] = ranker.history[places[-1]].notes[TRAINED]
    later = ranker.history[places[-1] + 1 :]
    for record in later:
        if record.notes.get("steps"):
            found = f"{record.verb} behind nest_widths, which trained all neurons together and none of the parts alone"
            raise UntrainedError(found, f"put {record.verb} behind it")
    cuts = [record.notes["kept_layers"] for record in later if "kept_layers" in record.notes]
    trained, full = _of_layers_left(nested, cuts), full_widths(ranker.spec)
    if trained[0] != full:
        raise UntrainedError(f"neurons that were cut since nest_widths, to {full}", "put what cuts them behind it")
    for layer, width in enumerate(widths):
        options = sorted({of_layers[layer] for of_layers in trained}, reverse=True)
        if width not in options:
            raise UntrainedError(
                f"{width} of {full[layer]} neurons in layer {layer}, which nest_widths did not train",
                f"choose among its shares: {', '.join(f'{option / full[layer]:g}' for option in options)}",
            )


def _of_layers_left(nested: list[list[int]], cuts: list[list[int]]) -> list[list[int]]:
    try:
        kept = kept_layers(len(nested[0]), cuts)
    except LayerMapError:  # another ranker has taken its place
        kept = []
    return [[of_layers[layer] for layer in kept] for of_layers in nested]
