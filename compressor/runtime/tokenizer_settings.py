"""What the files beside ``tokenizer.json`` say about length, padding and truncation, in any folder's spelling."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import Fault, InputError

SETTINGS_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
)
_NO_LIMIT_FROM = 10**6  # transformers writes 1e30 where a tokenizer knows no limit
# Their position of the first token is pad_id + 1, so the table has that many rows fewer than it seems.
_OFFSET_POSITIONS = frozenset(
    ("camembert", "data2vec-text", "ibert", "lilt", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
     "xlm-roberta", "xlm-roberta-xl", "xmod")
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerSettings:
    """Settings of a tokenizer; None where the folder does not say.

    Attributes:
        max_length: longest row in tokens, special tokens included.
        pad_token: text of the padding token.
        pad_id: id of the padding token, used where no text is known.
        truncation_side: which end of a document is cut, ``right`` or ``left``.
    """

    max_length: int | None
    pad_token: str | None
    pad_id: int | None
    truncation_side: str


def read_settings(files: Mapping[str, bytes], source: str | Path) -> TokenizerSettings:
    """Read the settings from file contents; a file that is absent is simply not asked.

    ``max_length`` is the least of ``model_max_length``, the position table of ``config.json`` (RoBERTa's kind: less
    ``pad_id + 1`` rows) and, in folders with a ``modules.json``, the ``max_seq_length`` of sentence-transformers.

    Raises:
        InputError: lists every file that is not a JSON object and every value that makes no sense.
    """
    faults: list[Fault] = []
    read = {name: _read_object(files, name, source, faults) for name in SETTINGS_FILES if name != "modules.json"}
    tokenizer_config, config = read["tokenizer_config.json"], read["config.json"]

    limits = [_max_length(tokenizer_config, source, faults), _position_limit(config)]
    if "modules.json" in files:
        limits.append(_positive(read["sentence_bert_config.json"].get("max_seq_length")))
    known = [limit for limit in limits if limit is not None]

    side = tokenizer_config.get("truncation_side", "right")
    if side not in ("right", "left"):
        faults.append(
            Fault(
                source=f"{source}/tokenizer_config.json",
                where="truncation_side",
                found=repr(side),
                allowed="'right' or 'left'",
            )
        )
    pad_token = _pad_token(tokenizer_config, "tokenizer_config.json", source, faults)
    pad_token = pad_token or _pad_token(read["special_tokens_map.json"], "special_tokens_map.json", source, faults)
    if faults:
        raise InputError(faults)
    pad_id = config.get("pad_token_id")
    return TokenizerSettings(
        max_length=min(known, default=None),
        pad_token=pad_token,
        pad_id=pad_id if isinstance(pad_id, int) and pad_id >= 0 else None,
        truncation_side=side,
    )


def _read_object(files: Mapping[str, bytes], name: str, source: str | Path, faults: list[Fault]) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        value = json.loads(files[name])
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        faults.append(Fault(source=f"{source}/{name}", where=where, found=f"broken JSON ({error})"))
        return {}
    if not isinstance(value, dict):
        faults.append(Fault(source=f"{source}/{name}", found=f"a JSON {type(value).__name__}", allowed="a JSON object"))
        return {}
    return value


def _max_length(tokenizer_config: dict[str, Any], source: str | Path, faults: list[Fault]) -> int | None:
    for key in ("model_max_length", "max_length"):
        value = tokenizer_config.get(key)
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
        if not is_number or value < 1:
            faults.append(
                Fault(
                    source=f"{source}/tokenizer_config.json",
                    where=key,
                    found=repr(value),
                    allowed="a number of tokens, at least 1",
                    fix="write the longest row that the model was trained with, such as 512",
                )
            )
            return None
        return int(value) if value < _NO_LIMIT_FROM else None
    return None


def _position_limit(config: dict[str, Any]) -> int | None:
    rows = _positive(config.get("max_position_embeddings")) or _positive(config.get("n_positions"))
    if rows is None or config.get("model_type") not in _OFFSET_POSITIONS:
        return rows
    pad_id = config.get("pad_token_id", 1)
    return max(1, rows - (pad_id if isinstance(pad_id, int) else 1) - 1)


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _pad_token(values: dict[str, Any], name: str, source: str | Path, faults: list[Fault]) -> str | None:
    value = values.get("pad_token")
    content = value.get("content") if isinstance(value, dict) else value
    if content is None or isinstance(content, str):
        return content
    faults.append(
        Fault(
            source=f"{source}/{name}",
            where="pad_token",
            found=repr(value),
            allowed="a string, or an object with a string 'content'",
        )
    )
    return None
