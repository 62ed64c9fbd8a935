"""What a ranker's shape must have for a cascade."""

from __future__ import annotations

from collections.abc import Collection

from compressor.cascade_stages import Cascade


def check_stages(cascade: Cascade, exit_layers: Collection[int], tells_query_from_document: bool) -> None:
    """Check that every stage has something to score with.

    Raises:
        ValueError: a layer without an exit, or token embeddings that do not tell the query from the document.
    """
    lacking = [str(layer) for layer in cascade.exit_layers if layer not in exit_layers]
    if lacking:
        raise ValueError(f"a cascade with stages behind layers that have no exit: {', '.join(lacking)}")
    if cascade.stages[0].behind == "embeddings" and not tells_query_from_document:
        raise ValueError("a cascade with a stage behind the embeddings, and tokens that are all of one segment")
