"""What a ranker's shape says of its cascade, and what the shape must have for it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from compressor.cascade_stages import Cascade
from compressor.records import Record


class MayCascade(Record):
    """A shape that may have a cascade. Without one nothing is written of it, as before there were cascades."""

    cascade: Cascade | None = None

    @model_serializer(mode="wrap")
    def _without_absent_cascade(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        return fields if self.cascade else {name: value for name, value in fields.items() if name != "cascade"}


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
