"""Which layers stay: what `drop_layers` and `subclone` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeInt

from compressor.passes.contract import PlanError, Supply
from compressor.passes.refusals import refuse_cascade
from compressor.ranker.names import renumbered
from compressor.ranker.spec import RankerSpec

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.ranker.ranker import Ranker

CANDIDATES_OF_A_LIST = 8  # importance is the change of order within lists

LayerChoice = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | Literal["every_other"]


def chosen(choice: LayerChoice, spec: RankerSpec, setting: str) -> list[int]:
    """Return the layers that a list or ``every_other`` keeps of a ranker.

    Raises:
        PlanError: the list does not fit the ranker; names ``setting``.
    """
    n_layers = len(spec.layers)
    if choice == "every_other":
        # The head was trained on the last layer's output, so the last one is among those that stay.
        return sorted(range(n_layers - 1, -1, -2))
    kept = list(choice)
    if kept != sorted(set(kept)) or kept[-1] >= n_layers:
        raise PlanError(
            f"{kept} for a ranker of {n_layers} layers",
            allowed=f"ascending layer indices from 0 to {n_layers - 1}, each once",
            setting=setting,
        )
    return kept


def refuse_more(n_keep: int, spec: RankerSpec, setting: str) -> None:
    """Refuse to keep more layers than there are.

    Raises:
        PlanError: names ``setting``.
    """
    n_layers = len(spec.layers)
    if n_keep > n_layers:
        found = f"{n_keep} layers to keep of a ranker that has {n_layers}"
        raise PlanError(found, allowed=f"1 to {n_layers}", setting=setting)


def refuse_exits(spec: RankerSpec, verb: str, setting: str) -> None:
    """Refuse to choose layers by measurement where some have exits: which ones go with them could not be planned.

    Raises:
        PlanError: names ``setting``.
    """
    if spec.exit_layers:
        raise PlanError(
            "layers to be chosen by measurement, of a ranker with exits, which go with their layers",
            allowed="a list of layers, or every_other",
            fix=f"put {verb} before add_exits, or list the layers",
            setting=setting,
        )


def most_important(ranker: Ranker, supply: Supply, n_keep: int, n_pairs: int) -> list[int]:
    """Return the layers whose absence changes scores most, measured greedily; the measurements are noted."""
    from compressor.algorithms.importance import drop_least_important_layers

    pairs = supply.pairs("calibration", n_pairs, per_query=CANDIDATES_OF_A_LIST)
    kept, removals = drop_least_important_layers(ranker, pairs, n_keep)
    supply.note("removals", removals)
    return kept


def cut_spec(spec: RankerSpec, kept: Sequence[int]) -> RankerSpec:
    """Return the shape of the kept layers alone; of the one that becomes the last, an exit and a token rule go.

    Raises:
        PlanError: the ranker has a cascade, whose stages stand behind layers.
    """
    if len(kept) < len(spec.layers):
        refuse_cascade(spec, "what takes layers away")
    *layers, last = (spec.layers[index] for index in kept)
    return spec.changed(layers=(*layers, last.changed(exit=None, token_rule=None)))


def cut_weights(weights: Mapping[str, Tensor], kept: Sequence[int]) -> dict[str, Tensor]:
    """Return the weights of the kept layers under their new numbers, and all that belongs to no layer.

    As in `cut_spec`, an exit and a token rule of the last one are left out.
    """
    places = {old: new for new, old in enumerate(kept)}
    return {
        new: tensor
        for name, tensor in weights.items()
        if (new := renumbered(name, places))
        and not name.startswith((f"layers.{kept[-1]}.exit.", f"layers.{kept[-1]}.token_rule."))
    }
