"""Rankers on disk: `spec.json`, `model.safetensors`, `config.json`, `history.json` and the tokenizer's files.

Loading builds the module from the spec and fills it strictly: no pickle, no code in the folder, no replay.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from compressor.errors import Fault, InputError, RunError
from compressor.ranker.history import StageRecord
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import RankerSpec
from compressor.storage import read_json, whole_folder, write_json

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt",
    "sentencepiece.bpe.model", "spiece.model",
)  # fmt: skip

_HISTORY = TypeAdapter(tuple[StageRecord, ...])


def save_ranker(ranker: Ranker, folder: Path) -> None:
    """Write a ranker to a folder that appears whole or not at all."""
    with whole_folder(folder) as partial:
        (partial / "spec.json").write_text(ranker.spec.model_dump_json(indent=1), encoding="utf-8")
        save_file({name: tensor.contiguous() for name, tensor in ranker.weights.items()}, partial / "model.safetensors")
        write_json(partial / "config.json", dict(ranker.source_config))
        write_json(partial / "history.json", [record.model_dump(mode="json") for record in ranker.history])
        for name, content in ranker.tokenizer_files.items():
            (partial / name).write_bytes(content)


def load_ranker(folder: Path) -> Ranker:
    """Read a ranker that `save_ranker` wrote; its scores are equal to the bit.

    Raises:
        InputError: a file is missing or broken, or the weights do not fit the spec.
    """
    spec = read_spec(folder / "spec.json")
    path = folder / "model.safetensors"
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise InputError(Fault(source=path, found="no such file")) from None
    except SafetensorError as error:
        raise InputError(Fault(source=path, found=f"a broken safetensors file ({error})")) from None
    try:
        return Ranker(
            spec=spec,
            weights=weights,
            tokenizer_files=read_tokenizer_files(folder),
            source_config=read_json(folder / "config.json"),
            history=_records(folder / "history.json"),
        )
    except RunError as error:
        raise InputError(Fault(source=path, found=str(error))) from None


def read_spec(path: Path) -> RankerSpec:
    """Read a ``spec.json``.

    Raises:
        InputError: it is missing, broken, or of a newer schema; all faults at once.
    """
    return _checked(path, RankerSpec.model_validate)


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Read a folder's tokenizer files; ``tokenizer.json`` must be among them.

    Raises:
        InputError: the folder has no ``tokenizer.json``.
    """
    files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    if "tokenizer.json" not in files:
        raise InputError(
            Fault(
                source=folder,
                found="no tokenizer.json",
                fix="write it with AutoTokenizer.from_pretrained(CHECKPOINT).save_pretrained(FOLDER)",
            )
        )
    return files


def _records(path: Path) -> tuple[StageRecord, ...]:
    return _checked(path, _HISTORY.validate_python)


def _checked(path: Path, validate: Any) -> Any:
    value = read_json(path)
    try:
        return validate(value)
    except ValidationError as error:
        raise InputError(
            Fault(source=path, where=".".join(map(str, fault["loc"])), found=fault["msg"]) for fault in error.errors()
        ) from None
