"""The small files of the universal folder: what each consumer insists on finding, whatever the teacher came with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from compressor.errors import Fault, InputError
from compressor.families import stock_config
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import Family, RankerSpec

_TOKENIZER_CLASSES: dict[Family, str] = {
    "bert": "BertTokenizer", "electra": "ElectraTokenizer", "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer", "distilbert": "DistilBertTokenizer", "modernbert": "PreTrainedTokenizerFast",
}  # fmt: skip
_ROLES = {
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "unk_token": ("[UNK]", "<unk>"),
    "mask_token": ("[MASK]", "<mask>"),
    "bos_token": ("<s>",),
    "eos_token": ("</s>",),
}


def write_config(ranker: Ranker) -> dict[str, Any]:
    """Return the ``config.json``: the stock architecture's, and the keys that servers ask for by BERT's names.

    Where the shape is not uniform the first layer speaks for all: such a folder has no torch checkpoint to load.
    """
    spec = ranker.spec
    positions = spec.embeddings.positions
    asked = {
        "hidden_size": spec.width,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": spec.first_attention.heads if spec.first_attention else 1,
        "vocab_size": spec.embeddings.tokens.rows,
        "max_position_embeddings": positions.rows if positions else spec.max_length,
        "pad_token_id": spec.pad_id,
        "dtype": "float32",
    }
    return {**asked, **stock_config(spec, ranker.source_config)}


def tokenizer_files(ranker: Ranker) -> dict[str, bytes]:
    """Return the tokenizer's files as every consumer wants them, by name.

    ``tokenizer_config.json`` gets a finite ``model_max_length``, a string ``pad_token`` and, where the model takes no
    segments, the names of its inputs; ``special_tokens_map.json`` is flat, ``tokenizer.json`` has no baked-in
    truncation or padding, and a WordPiece vocabulary is also written as ``vocab.txt``. Files that the ranker has beside
    these are kept.

    Raises:
        InputError: ``tokenizer.json`` has no token with the spec's ``pad_id``.
    """
    files = dict(ranker.tokenizer_files)
    tokenizer = json.loads(files["tokenizer.json"])
    special = _special_tokens(ranker.spec, tokenizer, files)
    settings = {
        key: value
        for key, value in _read(files, "tokenizer_config.json").items()
        if key not in ("max_length", "stride", "padding_side", "truncation_strategy", "name_or_path")
    }
    settings.update(special)
    settings["model_max_length"] = ranker.spec.max_length
    settings.setdefault("tokenizer_class", _TOKENIZER_CLASSES[ranker.spec.family])
    if ranker.spec.embeddings.segments is None:  # a class of tokenizers may give segments that the model does not take
        settings["model_input_names"] = ["input_ids", "attention_mask"]
    if tokenizer.get("truncation") or tokenizer.get("padding"):
        tokenizer["truncation"] = tokenizer["padding"] = None
        files["tokenizer.json"] = _dump(tokenizer)
    files["tokenizer_config.json"] = _dump(settings)
    files["special_tokens_map.json"] = _dump(special)
    model = tokenizer.get("model", {})
    if "vocab.txt" not in files and model.get("type") == "WordPiece":
        words = sorted(model["vocab"], key=model["vocab"].__getitem__)
        files["vocab.txt"] = ("\n".join(words) + "\n").encode()
    return files


def _special_tokens(spec: RankerSpec, tokenizer: dict[str, Any], files: Mapping[str, bytes]) -> dict[str, str]:
    """Return role to token text, as the files say, else by the usual spellings."""
    vocabulary = tokenizer.get("model", {}).get("vocab") or {}
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((w, i) for i, (w, *_) in enumerate(vocabulary))
    known = dict(pairs)
    known.update({token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])})
    pad = next((text for text, index in known.items() if index == spec.pad_id), None)
    if pad is None:
        raise InputError(
            Fault(source="tokenizer.json", found=f"no token with the id {spec.pad_id}", allowed="the spec's pad_id")
        )
    special = {"pad_token": pad}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in _read(files, name).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key in _ROLES and isinstance(text, str):
                special.setdefault(key, text)
    for role, spellings in _ROLES.items():
        found = next((text for text in spellings if text in known), None)
        if found:
            special.setdefault(role, found)
    return special


def _read(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return json.loads(files[name]) if name in files else {}


def _dump(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
