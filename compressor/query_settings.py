"""Queries made out of documents, as a recipe asks for them: cut out by rules, or written by a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from compressor.records import Record

QueryKind = Literal["titles", "headings", "questions", "sentences", "keywords"]
DOCUMENT: Final = "{document}"  # where a prompt takes the document in


class QueryGenerator(Record):
    """A language model that writes queries. A string is short for ``{model: ...}``.

    ``model``: a folder or hub id with safetensors: a sequence-to-sequence model that reads a document and writes a
    query (doc2query, "From doc2query to docTTTTTquery", 2019), or a decoder that goes on with a prompt (InPars, arXiv
    2202.05144).
    ``prompt``: text with ``{document}`` in it; by default the document alone, or for decoders a prompt with examples.
    ``max_document_tokens``: longer documents are cut. ``max_new_tokens``: what is not a whole query by then is dropped.
    ``temperature``, ``top_k``, ``seed``: of sampling. ``batch_tokens``: tokens read and written at once; changes speed
    and memory alone.
    """

    model: str = Field(min_length=1)
    prompt: str | None = None
    max_document_tokens: PositiveInt = 256
    max_new_tokens: PositiveInt = 48
    temperature: PositiveFloat = 1.0
    top_k: PositiveInt = 10
    seed: NonNegativeInt = 0
    batch_tokens: PositiveInt = 8192

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @field_validator("prompt")
    @classmethod
    def _takes_one_document(cls, value: str | None) -> str | None:
        if value is not None and value.count(DOCUMENT) != 1:
            raise ValueError(f"write {DOCUMENT} once, where the document is to stand")
        return value

    def placed(self, base: Path) -> Self:
        """Return the settings with a path made absolute; hub ids stay."""
        path = (base / Path(self.model).expanduser()).resolve()
        return self.changed(model=str(path)) if path.exists() else self


class MadeQueries(Record):
    """Queries made out of a collection's documents. A list of kinds, or ``true`` for all, is short for the mapping.

    ``kinds``: what of a document may serve as a query: its title; a heading; a question that it asks, or answers by a
    definition; its most salient sentence; its rarest words.
    ``generator``: instead, a language model that writes them.
    ``per_document``: most queries of one document.
    """

    kinds: tuple[QueryKind, ...] | None = Field(default=None, min_length=1)
    generator: QueryGenerator | None = None
    per_document: PositiveInt = 1

    @model_validator(mode="before")
    @classmethod
    def _from_short(cls, value: Any) -> Any:
        if value is True:
            value = {}
        elif isinstance(value, str):
            value = {"kinds": [value]}
        elif isinstance(value, list | tuple):
            value = {"kinds": value}
        if isinstance(value, dict) and value.get("kinds") is None and value.get("generator") is None:
            return {**value, "kinds": list(get_args(QueryKind))}
        return value

    @model_validator(mode="after")
    def _one_maker(self) -> Self:
        if self.kinds and self.generator:
            raise ValueError("kinds are what rules look for, and a generator writes as it likes: take one of them away")
        if self.kinds and len(set(self.kinds)) < len(self.kinds):
            raise ValueError("a kind stands twice")
        return self

    def placed(self, base: Path) -> Self:
        """Return the settings with the generator's path made absolute."""
        return self.changed(generator=self.generator.placed(base)) if self.generator else self
