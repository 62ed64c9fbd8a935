"""Where the files of a large ranker lie, what kind of model they hold, and which of them are refused."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from compressor.errors import Fault, InputError
from compressor.families.catalogue import FAMILIES
from compressor.families.checkpoint import refuse_pickles, weight_files
from compressor.families.hub import fetch, is_hub_id
from compressor.large_settings import LargeRanker, Scoring
from compressor.progress import progress
from compressor.storage import read_json, sha256_file, sha256_json

SOURCE = "large ranker"
_LOADERS = "AutoModelForCausalLM (or ...ForSeq2SeqLM, ...ForSequenceClassification)"
_ALLOWED = "a folder with config.json and safetensors, or organization/model@COMMIT"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SMALL = ("json", "txt", "model", "jinja")  # the prompt may come out of a chat template


@dataclass(frozen=True, kw_only=True)
class LargeFiles:
    """A checkpoint of a large ranker.

    Attributes:
        folder: where it lies.
        config: its ``config.json``.
        is_encoder_decoder: T5 and its kin; a decoder otherwise.
        has_head: whether it ends with a scoring head instead of a vocabulary.
    """

    folder: Path
    config: dict[str, Any]
    is_encoder_decoder: bool
    has_head: bool

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type"))

    @property
    def quantized_by(self) -> str:
        """The method that its weights are stored by, such as gptq; empty for floats."""
        stored = self.config.get("quantization_config")
        return str(stored.get("quant_method", "unknown")) if isinstance(stored, dict) else ""

    def scoring(self, settings: LargeRanker) -> Scoring:
        """Return how it scores under these settings.

        Raises:
            InputError: it cannot score as they ask.
        """
        own: Scoring = "head" if self.has_head else "label_tokens"
        if settings.scoring == "auto":
            return own
        has_words = settings.scoring != "head"
        if has_words == self.has_head or (settings.scoring == "first_token" and self.is_encoder_decoder):
            found = f"{settings.scoring} of a checkpoint of the class {_class_name(self.config)}"
            raise InputError(Fault(source=SOURCE, where="scoring", found=found, allowed=f"auto, {own}"))
        return settings.scoring


def large_files(reference: str, *, with_weights: bool = True) -> LargeFiles:
    """Find a large ranker's files, downloaded where they are on the hub, and tell its kind from the config.

    Raises:
        InputError: there is no such model; a hub id without a commit; pickled weights, adapters, remote code, or an
            encoder, which is no large ranker.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        folder = path
    elif path.exists() or not is_hub_id(reference):
        raise InputError(Fault(source=SOURCE, found=f"{reference!r}, no folder and no hub id", allowed=_ALLOWED))
    else:
        folder = _fetched(reference, with_weights=with_weights)
    _refuse_adapters(folder)
    if not (folder / "config.json").is_file():
        raise InputError(Fault(source=SOURCE, found=f"{folder}, a folder without config.json", allowed=_ALLOWED))
    if with_weights or path.is_dir():
        refuse_pickles(folder, _LOADERS, more=", and its tokenizer")
    return _classified(folder)


def large_fingerprint(folder: Path) -> str:
    """Return a SHA-256 over the files of a large ranker that its scores depend on."""
    small = {path for ending in _SMALL for path in folder.glob(f"*.{ending}")}
    paths = sorted({*small, *weight_files(folder)})
    hashes = []
    with progress(f"Hashing {folder.name}", len(paths)) as advance:
        for path in paths:
            state = path.stat()
            hashes.append([path.name, _hash(path, state.st_size, state.st_mtime_ns)])
            advance()
    return sha256_json(hashes)


@lru_cache(maxsize=256)
def _hash(path: Path, size: int, changed_ns: int) -> str:
    """Hash a file once in a process: checkpoints have gigabytes."""
    return sha256_file(path)


def _fetched(reference: str, *, with_weights: bool) -> Path:
    commit = reference.partition("@")[2]
    if not _COMMIT.fullmatch(commit):
        fix = "its page on the hub shows the commit under 'Files and versions'"
        found = f"{reference!r}, a hub id that is not pinned to a commit: what a branch or tag holds can change"
        raise InputError(Fault(source=SOURCE, found=found, allowed="organization/model@COMMIT, 40 hex digits", fix=fix))
    try:
        return fetch(reference, with_weights=with_weights)
    except InputError as error:
        raise InputError([replace(one, source=SOURCE) for one in error.faults]) from None


def _refuse_adapters(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        fix = "merge it into its base with peft (merge_and_unload), save that, and name the new folder"
        found = "an adapter (LoRA or other PEFT weights), not a whole checkpoint"
        raise InputError(Fault(source=folder / "adapter_config.json", found=found, fix=fix))


def _classified(folder: Path) -> LargeFiles:
    source = folder / "config.json"
    config = read_json(source)
    if not isinstance(config, dict):
        raise InputError(Fault(source=source, found="a JSON list or value", allowed="an object"))
    name, model_type = _class_name(config), str(config.get("model_type"))
    is_encoder_decoder = bool(config.get("is_encoder_decoder")) or model_type.endswith("t5")
    has_head = name.endswith("ForSequenceClassification")
    allowed = "T5 models (...ForConditionalGeneration), decoders (...ForCausalLM), decoders with a scoring head of one "
    allowed += "logit (...ForSequenceClassification)"
    fix = ""
    if model_type in FAMILIES:
        fix = "an encoder is a ranker like any other: name it under 'ranker:'"
    elif isinstance(config.get("auto_map"), dict) and not _is_known(model_type):
        fix = "code from a checkpoint is never run"
    elif is_encoder_decoder and name.endswith("ForConditionalGeneration"):
        return LargeFiles(folder=folder, config=config, is_encoder_decoder=True, has_head=False)
    elif not is_encoder_decoder and (has_head or name.endswith(("ForCausalLM", "LMHeadModel"))):
        return LargeFiles(folder=folder, config=config, is_encoder_decoder=False, has_head=has_head)
    found = f"a checkpoint of the class {name} ({model_type})"
    raise InputError(Fault(source=source, where="architectures", found=found, allowed=allowed, fix=fix))


def _is_known(model_type: str) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def _class_name(config: dict[str, Any]) -> str:
    classes = config.get("architectures")
    return str(classes[0]) if isinstance(classes, list) and classes else "(none named)"
