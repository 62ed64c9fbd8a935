"""Which teacher layer a student layer learns from. Layers are counted from 0, as everywhere in recipes; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

LayerMap = Literal["uniform", "last"] | Mapping[int, int] | Sequence[int]


class LayerMapError(ValueError):
    """A layer map that does not fit the two models: what was found and what is allowed."""

    def __init__(self, found: str, allowed: str) -> None:
        super().__init__(f"found {found}; allowed: {allowed}")
        self.found, self.allowed = found, allowed


def layer_map(n_student: int, n_teacher: int, how: LayerMap = "uniform") -> dict[int, int]:
    """Return the teacher layer of each student layer that learns from one, in the order of student layers.

    Args:
        n_student: the student's layers.
        n_teacher: the teacher's.
        how: ``uniform``, the m-th of Ns student layers from the ``m * Nt / Ns``-th teacher layer (TinyBERT, arXiv
            1909.10351; rounded down where it is no whole number, so the last layers always match); ``last``, only the
            last from the last; a mapping, student layer to teacher layer; or a list with a teacher layer for each
            student layer, such as the layers that `drop_layers` kept.

    Raises:
        LayerMapError: a layer that one of them has not, a list of another length, or nothing mapped.
    """
    if how == "uniform":
        if n_student > n_teacher:
            raise LayerMapError(
                f"a uniform layer map from {n_student} student layers to {n_teacher} teacher layers",
                "a student with no more layers than its teacher, or a mapping of the layers",
            )
        return {layer: (layer + 1) * n_teacher // n_student - 1 for layer in range(n_student)}
    if how == "last":
        return {n_student - 1: n_teacher - 1}
    if isinstance(how, str):
        raise LayerMapError(f"'{how}'", "uniform, last, a mapping of layers, or a list of teacher layers")
    if not isinstance(how, Mapping):
        if len(how) != n_student:
            raise LayerMapError(
                f"{len(how)} teacher layers for {n_student} student layers", "one teacher layer for each student layer"
            )
        how = dict(enumerate(how))
    return _checked(n_student, n_teacher, how)


def kept_layers(n_teacher: int, cuts: Sequence[Sequence[int]]) -> list[int]:
    """Return which of the teacher's layers are left after several cuts, each in the indices of the cut before it.

    Args:
        n_teacher: the teacher's layers.
        cuts: the layers that each cut kept, the notes ``kept_layers`` of a ranker's history.

    Raises:
        LayerMapError: a cut keeps a layer that was no longer there.
    """
    left = list(range(n_teacher))
    for cut in cuts:
        _checked(len(cut), len(left), dict(enumerate(cut)))
        left = [left[layer] for layer in cut]
    return left


def _checked(n_student: int, n_teacher: int, layers: Mapping[int, int]) -> dict[int, int]:
    if not layers:
        raise LayerMapError("no layers", "at least one student layer with its teacher layer")
    sides = (("student", n_student, layers.keys()), ("teacher", n_teacher, layers.values()))
    for side, n_layers, named in sides:
        wrong = sorted(layer for layer in named if not 0 <= layer < n_layers)
        if wrong:
            raise LayerMapError(f"{side} layer {wrong[0]}", f"0 to {n_layers - 1}: the {side} has {n_layers} layers")
    return dict(sorted(layers.items()))
