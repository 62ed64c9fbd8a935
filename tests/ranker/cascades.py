"""Tiny rankers with a cascade, and lists that are long enough to lose candidates to it."""

from __future__ import annotations

from typing import Any

import torch

from compressor.cascade_stages import Cascade
from compressor.ranker import cascade as of_rankers
from tests.tiny import DOCUMENTS, QUERIES, build_ranker, tiny_layer, tiny_spec

STAGES: tuple[dict[str, Any], ...] = (
    {"behind": "embeddings", "keep": 0.8},
    {"behind": 0, "keep": 0.5},
    {"behind": 1, "keep": 0.25},
)


def cascade(*stages: dict[str, Any], keep_at_least: int = 2) -> Cascade:
    return Cascade.model_validate({"stages": stages or STAGES, "keep_at_least": keep_at_least})


def cascading(settings: Cascade | None = None, seed: int = 3, **changes: Any) -> Any:
    """Return a cross-encoder of four layers with exits behind all but the last, whose heads are all of their own."""
    layers = changes.pop("layers", (tiny_layer(),) * 4)
    spec = tiny_spec(**{"layers": layers, **changes})
    with_exits = tuple(layer.changed(exit=spec.head) for layer in spec.layers[:-1])
    spec = spec.changed(layers=(*with_exits, spec.layers[-1]))
    return build_ranker(spec.changed(cascade=settings or cascade()), seed=seed)


def rank_list(ranker: Any, query: str, documents: list[str]) -> Any:
    """Return torch's ranking of a list; of a ranker with a cascade it has stages."""
    return of_rankers.rank_list(ranker, query, documents)


def long_list(n_documents: int = 23, seed: int = 0) -> tuple[str, list[str]]:
    """Return a query and documents of many lengths, no two alike."""
    words = " ".join([*DOCUMENTS.values(), *QUERIES.values()]).split()
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 26, (n_documents,), generator=generator).tolist()
    drawn = [torch.randint(0, len(words), (length,), generator=generator).tolist() for length in lengths]
    documents = [" ".join([f"{place}", *(words[index] for index in one)]) for place, one in enumerate(drawn)]
    return "how to train a small dog", documents
