"""What of a teacher's inside a student is to match: states and relations, and between which layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from compressor.ranker.trace import QueryKeyValue, Trace


@dataclass(frozen=True, kw_only=True)
class StateMatch:
    """Hidden states to match, the loss's mean over them.

    Attributes:
        name: what it is called in curves.
        weight: its factor.
        states: student state to teacher state; 0 is the embeddings, i + 1 what comes out of layer i.
        measure: squared error, or the direction alone.
    """

    name: str
    weight: float
    states: Mapping[int, int]
    measure: Literal["mse", "cosine"] = "mse"


@dataclass(frozen=True, kw_only=True)
class RelationMatch:
    """Relations between tokens to match, the loss's mean over layers.

    Attributes:
        weight: its factor.
        layers: student layer to teacher layer.
        kind: queries, keys and values each with themselves, or queries with keys.
        heads: relation heads of both.
    """

    weight: float
    layers: Mapping[int, int]
    kind: Literal["qkv", "attention"]
    heads: int


def same_tokens(student: Trace, own: int, teacher: Trace, theirs: int) -> tuple[Tensor, Tensor]:
    """Return a state of each, of the tokens that are in both.

    The student's token rules are followed: of the teacher, which lets no token go, the tokens that stayed in the
    student count, and means of the windows that became one there. Where one of the two computed a state for first
    tokens alone, these are compared.
    """
    left, right = student.states[own], teacher.states[theirs]
    first = student.layouts[own].first
    if len(right) == len(teacher.states[0]):
        right = student.left_of(right, own)
    if len(left) == len(right):
        return left, right
    return (left, right[first]) if len(left) == len(first) else (left[first], right)


def same_relations(student: Trace, own: int, teacher: Trace, theirs: int) -> tuple[QueryKeyValue, QueryKeyValue]:
    """Return queries, keys and values of a layer of each, of the tokens that are in both, as in `same_tokens`."""
    query, key, value = (student.left_of(part, own + 1) for part in teacher.relations[theirs])
    return student.relations[own], (query, key, value)
