"""The place of ranking data in a recipe or on the command line: which collection, split, candidates and queries."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

from pydantic import Field, field_validator, model_validator

from compressor.errors import Fault, InputError, suggest
from compressor.query_settings import MadeQueries
from compressor.records import Record

BUILT_IN: Final = "api-docs"
BUILT_IN_SPLITS: Final = ("train", "dev", "test")
IR_DATASETS: Final = "ir_datasets:"
CORPUS: Final = "corpus.jsonl"
_FORMS: Final = f"{BUILT_IN}/SPLIT, a BEIR folder, a BEIR folder/SPLIT, or {IR_DATASETS}ID"
_BM25: Final = re.compile(r"bm25(:(?P<depth>[1-9]\d*))?")

# What training lists may name beside first stages: all of them in turn, and documents of any kind.
FIRST_STAGE: Final = "first_stage"
RANDOM: Final = "random"
SCORED: Final = "scoreddocs"
_FIRST_STAGES: Final = "bm25, bm25:DEPTH or a TREC run file"


class FirstStage(NamedTuple):
    """One first stage of a reference.

    Attributes:
        name: how training lists and reports call it: ``bm25``, ``scoreddocs``, or the name of the run's file.
        depth: the depth written behind it, if one is.
        run_file: the path of a run, where it is one.
    """

    name: str
    depth: int | None = None
    run_file: str | None = None


class DataReference(Record):
    """One collection, or one split of it, as a recipe names it.

    Written as a string (``api-docs/test``, ``path/to/beir/SPLIT``, ``ir_datasets:beir/scifact/test``) or as a mapping
    of the fields below. Relative paths mean the folder of the recipe; `resolved` makes them absolute.

    Args:
        collection: ``api-docs``, a BEIR folder, or ``ir_datasets:ID``.
        split: the name of a file in the collection's ``qrels``; absent for a collection without judgments.
        pairs: instead of a collection, a TSV or JSONL file of (query, document[, label]).
        candidates: the first stage, or a list of several: ``bm25``, ``bm25:DEPTH``, a TREC run (looked for beside the
            recipe, then in the collection's folder), or ``scoreddocs``: what an ir_datasets collection brings along.
            Of several the candidates are the union: the best of each, then the second of each, and so on.
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
    candidates: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=("bm25",), min_length=1)
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

    @field_validator("candidates", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("candidates")
    @classmethod
    def _names_tell_them_apart(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [one for one in value if one.startswith("bm25:") and not _BM25.fullmatch(one)]:
            raise ValueError(f"write bm25, bm25:DEPTH with a whole number from 1, or a TREC run file, not {wrong[0]}")
        names = [_first_stage(one).name for one in value]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two first stages are called {twice[0]}, and names tell them apart: rename one")
        if kept := sorted({FIRST_STAGE, RANDOM}.intersection(names)):
            raise ValueError(f"no run can be called {kept[0]}, which means something else to training lists: rename it")
        return value

    @field_validator("make_queries", mode="before")
    @classmethod
    def _none_are_made(cls, value: Any) -> Any:
        return None if value is False else value

    @model_validator(mode="after")
    def _one_source(self) -> DataReference:
        if (self.collection is None) == (self.pairs is None):
            raise ValueError(f"exactly one of 'collection' ({_FORMS}) and 'pairs' (a TSV or JSONL file) is needed")
        if self.pairs is not None and (self.split or self.candidates != ("bm25",)):
            raise ValueError("a pairs file has neither splits nor a first stage: take 'split' and 'candidates' away")
        if self.make_queries and (self.pairs is not None or (self.split and self.collection != BUILT_IN)):
            raise ValueError("queries are made out of a whole collection: take 'pairs' and 'split' away")
        if self.make_queries and (others := [one for one in self.candidates if not _BM25.fullmatch(one)]):
            raise ValueError(f"no run knows queries that are yet to be made: write bm25:DEPTH, not {others[0]}")
        if self.ir_datasets_id is not None and self.split:
            raise ValueError(f"the split is a part of an ir_datasets id: write {self.collection}/{self.split}")
        if SCORED in self.candidates and self.ir_datasets_id is None:
            raise ValueError(f"'{SCORED}' is for ir_datasets collections; allowed: {_FIRST_STAGES}")
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
    def first_stages(self) -> tuple[FirstStage, ...]:
        """Where the candidates come from, in the order of the reference."""
        return tuple(map(_first_stage, self.candidates))

    def resolved(self, base: Path) -> DataReference:
        """Return this reference with absolute paths and the split apart from the folder. Looks at names on disk only.

        Args:
            base: the folder that relative paths mean: that of the recipe, or the working directory.

        Raises:
            InputError: no such collection, split or file; names what exists and suggests the nearest.
        """
        if self.pairs is not None:
            return self.model_copy(update={"pairs": str(_existing_file(self, base, self.pairs, "a TSV or JSONL file"))})
        folder, changes = base, dict[str, Any]()
        if self.collection == BUILT_IN:
            changes["split"] = self._built_in_split()
        elif self.ir_datasets_id is None:
            folder, changes["split"] = self._folder_and_split(base)
            changes["collection"] = str(folder)
        changes["candidates"] = tuple(
            text if stage.run_file is None else str(self._run_in(base, folder, stage.run_file))
            for text, stage in zip(self.candidates, self.first_stages, strict=True)
        )
        if self.make_queries:
            changes["make_queries"] = self.make_queries.placed(base)
        return self.model_copy(update=changes)

    def _run_in(self, base: Path, folder: Path, run_file: str) -> Path:
        inside = folder / run_file
        if inside.is_file() and not (base / run_file).is_file():
            return inside
        return _existing_file(self, base, run_file, _FIRST_STAGES)

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


def _first_stage(text: str) -> FirstStage:
    if found := _BM25.fullmatch(text):
        return FirstStage("bm25", depth=int(found["depth"]) if found["depth"] else None)
    return FirstStage(SCORED) if text == SCORED else FirstStage(Path(text).name, run_file=text)


def _existing_file(reference: DataReference, base: Path, name: str, allowed: str) -> Path:
    path = (base / Path(name).expanduser()).resolve()
    if not path.is_file():
        near = suggest(path.name, [entry.name for entry in _entries(path.parent)]) or suggest(name, ["bm25", SCORED])
        raise InputError(Fault(source=str(reference), found=f"no file at {path}", allowed=allowed, fix=near))
    return path


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
