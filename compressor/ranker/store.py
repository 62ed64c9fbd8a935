"""Rankers on disk: `spec.json`, `model.safetensors`, `config.json`, `history.json` and the tokenizer's files.

Loading builds the module from the spec and fills it strictly: no pickle, no code in the folder, no replay.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import save_file
from safetensors.torch import load_file

from compressor.errors import Fault, InputError, RunError
from compressor.ranker.history import StageRecord
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import RankerSpec
from compressor.ranker.tokenizer_files import TOKENIZER_FILES, read_tokenizer_files
from compressor.recipe_faults import path_in
from compressor.storage import read_json, unreadable, whole_folder, write_json

_CONFIG = TypeAdapter(dict[str, Any])
_HISTORY = TypeAdapter(tuple[StageRecord, ...])


def save_ranker(ranker: Ranker, folder: Path) -> None:
    """Write a ranker to a folder that appears whole or not at all.

    Raises:
        RunError: a tokenizer file has a name that `load_ranker` would not read back.
    """
    unknown = sorted(ranker.tokenizer_files.keys() - set(TOKENIZER_FILES))
    if unknown:
        raise RunError(f"{folder}: found tokenizer files {unknown}; allowed: {', '.join(TOKENIZER_FILES)}")
    # By way of numpy, because the torch writer refuses tensors that share memory: layers may start as copies.
    weights = {name: tensor.detach().contiguous().numpy() for name, tensor in ranker.weights.items()}
    with whole_folder(folder) as partial:
        (partial / "spec.json").write_text(ranker.spec.model_dump_json(indent=1), encoding="utf-8")
        save_file(weights, partial / "model.safetensors")
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
        # Cloned, since a mapped file's tensors start anywhere, and some CPUs' kernels sum unaligned ones otherwise.
        weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    except OSError as error:
        raise unreadable(path, error) from None
    except SafetensorError as error:
        raise InputError(Fault(source=path, found=f"a broken safetensors file ({error})")) from None
    try:
        return Ranker(
            spec=spec,
            weights=weights,
            tokenizer_files=read_tokenizer_files(folder),
            source_config=_checked(folder / "config.json", _CONFIG.validate_python),
            history=_checked(folder / "history.json", _HISTORY.validate_python),
        )
    except RunError as error:
        raise InputError(Fault(source=path, found=str(error))) from None


def read_spec(path: Path) -> RankerSpec:
    """Read a ``spec.json``.

    Raises:
        InputError: it is missing, broken, or of a newer schema; all faults at once.
    """
    return _checked(path, RankerSpec.model_validate)


def _checked(path: Path, validate: Any) -> Any:
    value = read_json(path)
    try:
        return validate(value)
    except ValidationError as error:
        raise InputError(
            Fault(source=path, where=".".join(map(str, path_in(value, fault))), found=fault["msg"])
            for fault in error.errors()
        ) from None
