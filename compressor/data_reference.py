"""The place of ranking data in a recipe or on the command line: which collection, split, candidates and queries."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, Literal, get_args

from pydantic import Field, PositiveInt, field_validator, model_validator

from compressor.errors import Fault, InputError, suggest
from compressor.records import Record

BUILT_IN: Final = "api-docs"
BUILT_IN_SPLITS: Final = ("train", "dev", "test")
IR_DATASETS: Final = "ir_datasets:"
CORPUS: Final = "corpus.jsonl"
_FORMS: Final = f"{BUILT_IN}/SPLIT, a BEIR folder, a BEIR folder/SPLIT, or {IR_DATASETS}ID"
_BM25: Final = re.compile(r"bm25(:(?P<depth>[1-9]\d*))?")

QueryKind = Literal["titles", "headings", "questions", "sentences", "keywords"]


class MadeQueries(Record):
    """Queries made out of a collection's documents. A list of kinds, or ``true`` for all, is short for the mapping.

    ``kinds``: what of a document may serve as a query: its title; a heading; a question that it asks, or answers by a
    definition; its most salient sentence; its rarest words. ``per_document``: most queries of one document.
    """

    kinds: tuple[QueryKind, ...] = Field(default=get_args(QueryKind), min_length=1)
    per_document: PositiveInt = 1

    @model_validator(mode="before")
    @classmethod
    def _from_short(cls, value: Any) -> Any:
        if value is True:
            return {}
        return {"kinds": value} if isinstance(value, list | tuple) else value


class DataReference(Record):
    """One collection, or one split of it, as a recipe names it.

    Written as a string (``api-docs/test``, ``path/to/beir/SPLIT``, ``ir_datasets:beir/scifact/test``) or as a mapping
    of the fields below. Relative paths mean the folder of the recipe; `resolved` makes them absolute.

    Args:
        collection: ``api-docs``, a BEIR folder, or ``ir_datasets:ID``.
        split: the name of a file in the collection's ``qrels``; absent for a collection without judgments.
        pairs: instead of a collection, a TSV or JSONL file of (query, document[, label]).
        candidates: ``bm25``, ``bm25:DEPTH``, a TREC run (looked for beside the recipe, then in the collection's
            folder), or ``scoreddocs``: the first stage that an ir_datasets collection brings along.
        queries: take at most so many queries, chosen by the hash of their ids: the same ones every time, and a smaller
            sample is a part of a larger one.
        exclude_queries: ids of queries to leave out, for instance those that also stand in the test data.
        skip_empty: leave out documents without text, and the judgments on them, instead of refusing the collection.
        drop_same_id: drop the candidate whose id equals the query's id, as BEIR does for ArguAna and Quora, where the
            query itself is a document. Off by default: elsewhere equal ids mean nothing (Cranfield counts both from 1).
        make_queries: make queries out of the documents; the collection's own queries and judgments are not read. The
            document that a query was made of is always one of its candidates.
    """

    collection: str | None = Field(default=None, min_length=1)
    split: str | None = Field(default=None, min_length=1)
    pairs: str | None = Field(default=None, min_length=1)
    candidates: str = Field(default="bm25", min_length=1)
    queries: int | None = Field(default=None, ge=1)
    exclude_queries: tuple[str, ...] = ()
    skip_empty: bool = False
    drop_same_id: bool = False
    make_queries: MadeQueries | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        head, _, split = value.partition("/")
        if head == BUILT_IN and split:
            return {"collection": head, "split": split}
        return {"collection": value}

    @field_validator("candidates")
    @classmethod
    def _depth_is_a_count(cls, value: str) -> str:
        if value.startswith("bm25:") and not _BM25.fullmatch(value):
            raise ValueError("write bm25, bm25:DEPTH with a whole number from 1, or a TREC run file")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> DataReference:
        if (self.collection is None) == (self.pairs is None):
            raise ValueError(f"exactly one of 'collection' ({_FORMS}) and 'pairs' (a TSV or JSONL file) is needed")
        if self.pairs is not None and (self.split or self.candidates != "bm25"):
            raise ValueError("a pairs file has neither splits nor a first stage: take 'split' and 'candidates' away")
        if self.make_queries and (self.pairs is not None or (self.split and self.collection != BUILT_IN)):
            raise ValueError("queries are made out of a whole collection: take 'pairs' and 'split' away")
        if self.make_queries and not _BM25.fullmatch(self.candidates):
            raise ValueError(f"no run knows queries that are yet to be made: write bm25:DEPTH, not {self.candidates}")
        if self.ir_datasets_id is not None and self.split:
            raise ValueError(f"the split is a part of an ir_datasets id: write {self.collection}/{self.split}")
        if self.candidates == "scoreddocs" and self.ir_datasets_id is None:
            raise ValueError(
                "'scoreddocs' is for ir_datasets collections; allowed: bm25, bm25:DEPTH or a TREC run file"
            )
        return self

    def __str__(self) -> str:
        made = ", made queries" if self.make_queries else ""
        return str(self.pairs or self.collection) + (f"/{self.split}" if self.split else "") + made

    @property
    def ir_datasets_id(self) -> str | None:
        """The id behind ``ir_datasets:``, or None for other collections."""
        named = self.collection is not None and self.collection.startswith(IR_DATASETS)
        return self.collection.removeprefix(IR_DATASETS) if named and self.collection else None

    @property
    def bm25_depth(self) -> int | None:
        """The depth written in ``bm25:DEPTH``, or None where none is written."""
        found = _BM25.fullmatch(self.candidates)
        return int(found["depth"]) if found and found["depth"] else None

    @property
    def run_file(self) -> str | None:
        """The path of the first-stage run, or None where the candidates come from elsewhere."""
        return None if _BM25.fullmatch(self.candidates) or self.candidates == "scoreddocs" else self.candidates

    def resolved(self, base: Path) -> DataReference:
        """Return this reference with absolute paths and the split apart from the folder. Looks at names on disk only.

        Args:
            base: the folder that relative paths mean: that of the recipe, or the working directory.

        Raises:
            InputError: no such collection, split or file; names what exists and suggests the nearest.
        """
        if self.pairs is not None:
            return self.model_copy(update={"pairs": str(_existing_file(self, base, self.pairs, "a TSV or JSONL file"))})
        folder, changes = base, dict[str, str | None]()
        if self.collection == BUILT_IN:
            changes["split"] = self._built_in_split()
        elif self.ir_datasets_id is None:
            folder, changes["split"] = self._folder_and_split(base)
            changes["collection"] = str(folder)
        if self.run_file is not None:
            inside = folder / self.run_file
            run = inside if inside.is_file() and not (base / self.run_file).is_file() else None
            changes["candidates"] = str(
                run or _existing_file(self, base, self.run_file, "bm25, bm25:DEPTH or a TREC run file")
            )
        return self.model_copy(update=changes)

    def _built_in_split(self) -> str:
        if self.split in BUILT_IN_SPLITS:
            return self.split
        found = f"the split '{self.split}'" if self.split else "no split"
        fix = suggest(self.split, BUILT_IN_SPLITS) if self.split else f"write {BUILT_IN}/test"
        raise InputError(Fault(source=str(self), found=found, allowed=", ".join(BUILT_IN_SPLITS), fix=fix))

    def _folder_and_split(self, base: Path) -> tuple[Path, str | None]:
        path = (base / Path(str(self.collection)).expanduser()).resolve()
        if (path / CORPUS).is_file():
            return path, self.split
        if self.split is None and not self.make_queries and (path.parent / CORPUS).is_file():
            return path.parent, path.name
        if path.is_dir():
            fault = Fault(source=path, found=f"a folder without {CORPUS}", allowed=_FORMS)
            raise InputError(fault)
        folders = {entry.name for entry in _entries(path.parent) + _entries(path.parent.parent)}
        near = suggest(str(self.collection).split("/")[0], [BUILT_IN]) or suggest(path.name, folders)
        near = near or suggest(path.parent.name, folders)
        raise InputError(Fault(source=str(self), found=f"no collection at {path}", allowed=_FORMS, fix=near))


def _existing_file(reference: DataReference, base: Path, name: str, allowed: str) -> Path:
    path = (base / Path(name).expanduser()).resolve()
    if not path.is_file():
        near = suggest(path.name, [entry.name for entry in _entries(path.parent)]) or suggest(
            name, ["bm25", "scoreddocs"]
        )
        raise InputError(Fault(source=str(reference), found=f"no file at {path}", allowed=allowed, fix=near))
    return path


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
