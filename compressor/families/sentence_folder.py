"""Folders that sentence-transformers wrote: which module does what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compressor.errors import Fault, InputError
from compressor.ranker.spec import RankerSpec, SimilarityHead
from compressor.storage import inside, read_json, write_json

_POOLS: dict[str, Literal["first", "mean"]] = {"cls": "first", "mean": "mean"}
_LEGACY_POOLS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


@dataclass(frozen=True, kw_only=True)
class SentenceFolder:
    """What ``modules.json`` says.

    Attributes:
        encoder: the folder of the transformer's files.
        similarity: the head of a bi-encoder; None for a cross-encoder.
        activation: what a cross-encoder does to its logit, or None.
    """

    encoder: Path
    similarity: SimilarityHead | None
    activation: str | None = None


def read_modules(folder: Path) -> SentenceFolder | None:
    """Read ``modules.json``; None where there is none.

    Raises:
        InputError: the modules compute something that the canonical encoder does not.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return None
    modules = read_json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise InputError(Fault(source=path, found="not a list of modules"))
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    settings = _object(folder / "config_sentence_transformers.json")
    if not kinds or kinds[0] != "Transformer" or kinds[1:] not in ([], ["Pooling"], ["Pooling", "Normalize"]):
        allowed = "Transformer alone (a cross-encoder), or Transformer, Pooling[, Normalize] (a bi-encoder)"
        raise InputError(Fault(source=path, found=f"the modules {', '.join(kinds)}", allowed=allowed))
    encoder = _module_folder(folder, modules[0])
    if len(kinds) == 1:
        activation = settings.get("activation_fn")
        return SentenceFolder(encoder=encoder, similarity=None, activation=activation and str(activation))
    _check_similarity(folder / "config_sentence_transformers.json", settings, is_normed=kinds[-1] == "Normalize")
    pooling = _module_folder(folder, modules[1]) / "config.json"
    return SentenceFolder(encoder=encoder, similarity=SimilarityHead(pool=_pool(pooling)))


def _module_folder(folder: Path, module: Mapping[str, Any]) -> Path:
    path = str(module.get("path") or "")
    return inside(folder, path) if path else folder


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise InputError(Fault(source=path, found="a JSON list or value", allowed="an object"))
    return value


def _check_similarity(path: Path, settings: Mapping[str, Any], *, is_normed: bool) -> None:
    """A ranker's bi-encoder compares unit vectors; without a Normalize module that is so for cosine alone."""
    function = settings.get("similarity_fn_name") or "cosine"
    faults = []
    if function not in ("cosine", "dot") or (function == "dot" and not is_normed):
        found = f"the similarity {function!r}" + ("" if is_normed else " of vectors that are not of unit length")
        faults.append(Fault(source=path, where="similarity_fn_name", found=found, allowed="cosine"))
    if settings.get("default_prompt_name"):
        found, fix = f"{settings['default_prompt_name']!r}", "prompts before texts are not supported"
        faults.append(Fault(source=path, where="default_prompt_name", found=found, fix=fix))
    if faults:
        raise InputError(faults)


def _pool(path: Path) -> Literal["first", "mean"]:
    values = _object(path)
    legacy = [_LEGACY_POOLS.get(key, key) for key, value in values.items() if key in _LEGACY_KEYS and value is True]
    found = values.get("pooling_mode", legacy)
    modes = [found] if isinstance(found, str) else found
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in _POOLS:
        raise InputError(Fault(source=path, found=f"the pooling {modes}", allowed="cls or mean"))
    return _POOLS[modes[0]]


_LEGACY_KEYS = {
    *_LEGACY_POOLS, "pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken",
}  # fmt: skip


def write_modules(spec: RankerSpec, folder: Path) -> None:
    """Write what makes a stock encoder a bi-encoder that every version of sentence-transformers loads."""
    chain = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(chain)
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": spec.max_length, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", {"prompts": {}, "similarity_fn_name": "cosine"})
    pooling = {"word_embedding_dimension": spec.width}
    pooling |= {key: _POOLS[mode] == spec.head.pool for key, mode in _LEGACY_POOLS.items()}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    (folder / "2_Normalize").mkdir(exist_ok=True)
