"""A ranker folder as its consumers see it: read once, judged by none of them."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from compressor.doctor.graph_facts import GraphFacts, TensorFacts, read_graph
from compressor.errors import Fault, InputError
from compressor.runtime.folder import BUILDS_KEY, CASCADE_KEY, MANIFEST, SHARED_QUERY_KEY

_MOST_HEADER_BYTES = 10**8  # the format's own limit


@dataclass(frozen=True, kw_only=True, slots=True)
class PairTemplate:
    """How a tokenizer lays out a pair.

    Attributes:
        has_segments: whether it gives the second text another type id than the first.
        first_id: the row's first token; None where no special token stands there.
        separator_id: the special token behind the first text; None where there is none.
    """

    has_segments: bool
    first_id: int | None
    separator_id: int | None


@dataclass(frozen=True, kw_only=True)
class RankerFolder:
    """A folder, its JSON files and its graphs.

    Attributes:
        path: as it was given: some consumers guess from its words.
        graphs: the ONNX files that can be read, by their names in the folder.
        broken: why others cannot.
    """

    path: Path
    graphs: dict[str, GraphFacts]
    broken: dict[str, str]
    _objects: dict[str, dict[str, Any] | str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> RankerFolder:
        """Read a folder.

        Raises:
            InputError: no such folder.
        """
        if not path.is_dir():
            found = "a file" if path.is_file() else "no such folder"
            raise InputError(Fault(source=path, found=found, allowed="the folder of an exported ranker"))
        graphs, broken = {}, {}
        for file in sorted(one.relative_to(path).as_posix() for one in path.rglob("*.onnx") if one.is_file()):
            try:
                graphs[file] = read_graph(path, file)
            except InputError as error:
                broken[file] = error.faults[0].found
        return cls(path=path, graphs=graphs, broken=broken)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.path / name).is_file()

    def object(self, name: str) -> dict[str, Any]:
        """Return a JSON file's object; an empty one where the file is missing or broken."""
        value = self._read(name)
        return value if isinstance(value, dict) else {}

    def fault_of(self, name: str) -> str | None:
        """Return why a JSON file that is there cannot be read as an object; None where it can, or is missing."""
        value = self._read(name)
        return value if isinstance(value, str) else None

    def _read(self, name: str) -> dict[str, Any] | str | None:
        if name not in self._objects:
            if not self.has(name):
                return None
            self._objects[name] = _json_object(self.path / name)
        return self._objects[name]

    @property
    def onnx_files(self) -> list[str]:
        """All ONNX files, broken ones too."""
        return sorted([*self.graphs, *self.broken])

    @property
    def config(self) -> dict[str, Any]:
        """``config.json``, as far as it can be read."""
        return self.object("config.json")

    @property
    def family(self) -> str:
        """The ``model_type`` of ``config.json``; empty where it has none."""
        value = self.config.get("model_type")
        return value if isinstance(value, str) else ""

    @property
    def n_labels(self) -> int:
        """How many logits transformers makes of ``config.json``: two where it says nothing."""
        labels, number = self.config.get("id2label"), self.config.get("num_labels")
        if isinstance(labels, dict) and labels:
            return len(labels)
        return number if isinstance(number, int) else 2

    @cached_property
    def list_features(self) -> dict[str, str]:
        """What rankpress alone does with this folder: the manifest's key, and what it is in words."""
        words = {
            CASCADE_KEY: "a cascade that drops candidates on the way",
            SHARED_QUERY_KEY: "graphs that run a list's query once",
            BUILDS_KEY: "builds for several CPUs",
        }
        return {key: text for key, text in words.items() if self.object(MANIFEST).get(key)}

    @cached_property
    def weights(self) -> dict[str, TensorFacts] | str | None:
        """The tensors of ``model.safetensors`` by name; why it cannot be read; None where it is not there."""
        return _tensors(self.path / "model.safetensors") if self.has("model.safetensors") else None

    @cached_property
    def pair_template(self) -> PairTemplate | str | None:
        """How ``tokenizer.json`` lays out a pair; why it cannot be read; None where there is no such file."""
        if not self.has("tokenizer.json"):
            return None
        from tokenizers import Tokenizer

        try:
            row = Tokenizer.from_file(str(self.path / "tokenizer.json")).encode("a", "a", add_special_tokens=True)
        except Exception as error:  # noqa: BLE001  # the library raises plain ones
            return f"a file that the tokenizers library cannot read ({error})"
        marks, ids = row.special_tokens_mask, row.ids
        inner = next((place for place in range(1, len(ids)) if marks[place]), None)
        return PairTemplate(
            has_segments=any(row.type_ids),
            first_id=ids[0] if ids and marks[0] else None,
            separator_id=ids[inner] if inner is not None else None,
        )


def _json_object(path: Path) -> dict[str, Any] | str:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"broken JSON ({error})"
    return value if isinstance(value, dict) else f"a JSON {type(value).__name__} in the place of an object"


def _tensors(path: Path) -> dict[str, TensorFacts] | str:
    """Read the header alone: 8 bytes of its length, then JSON."""
    broken = "a file that is not safetensors, or is cut short"
    n_bytes = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(8)
        size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 0 < size <= min(_MOST_HEADER_BYTES, n_bytes - 8):
            return broken
        try:
            entries = json.loads(stream.read(size))
            tensors = {name: one for name, one in entries.items() if name != "__metadata__"}
            ends = [int(one["data_offsets"][1]) for one in tensors.values()]
            facts = {
                name: TensorFacts(name=name, kind=str(one["dtype"]), shape=tuple(map(int, one["shape"])))
                for name, one in tensors.items()
            }
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return broken
    return facts if 8 + size + max(ends, default=0) <= n_bytes else broken
