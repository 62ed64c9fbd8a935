"""A smaller vocabulary: which tokens must stay, and the tokenizer's files without the others. Imports without torch.

Texts whose tokens all stay are cut as before. WordPiece takes the longest match, and fewer candidates cannot make a
longer one. Unigram takes the best path, and none of those that are left became better. BPE applies the first merge that
fits; those that made a token of such a text are all still there, in their old order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from compressor.errors import Fault, InputError

KINDS = ("WordPiece", "BPE", "Unigram")
_FOREIGN_FILES = ("sentencepiece.bpe.model", "spiece.model")  # another library's; it would still cut the old way


def vocabulary_of(tokenizer: Mapping[str, Any]) -> list[str]:
    """Return all tokens by id, added ones too; ids without a token are empty.

    Args:
        tokenizer: ``tokenizer.json``, parsed.
    """
    model = tokenizer["model"]
    if model["type"] == "Unigram":
        tokens = {index: piece for index, (piece, _) in enumerate(model["vocab"])}
    else:
        tokens = {index: token for token, index in model["vocab"].items()}
    tokens |= {added["id"]: added["content"] for added in tokenizer["added_tokens"]}
    return [tokens.get(index, "") for index in range(max(tokens) + 1)]


def refuse_unknown_model(tokenizer: Mapping[str, Any], verb: str) -> None:
    """Refuse a tokenizer whose tokens cannot be taken away one by one.

    Raises:
        InputError: names its model.
    """
    kind = tokenizer["model"].get("type")
    if kind not in KINDS:
        raise InputError(Fault(source=verb, found=f"a tokenizer of the kind {kind}", allowed=", ".join(KINDS)))


def tokens_to_keep(tokenizer: Mapping[str, Any], seen: Iterable[int]) -> list[int]:
    """Return the ids that must stay, ascending: those seen, and what no text should have to do without.

    That is added tokens, single characters and bytes, so that new words still come apart into known pieces; the parts
    of every BPE token that stays; and Unigram's least likely piece, from which the price of an unknown character is
    derived.
    """
    model, tokens = tokenizer["model"], vocabulary_of(tokenizer)
    prefix = model.get("continuing_subword_prefix") or ""
    kept = {added["id"] for added in tokenizer["added_tokens"]} | set(seen)
    kept |= {index for index, token in enumerate(tokens) if token and _is_atom(token, prefix)}
    ids = {token: index for index, token in enumerate(tokens)}
    if isinstance(model.get("unk_token"), str):
        kept |= {ids[model["unk_token"]]} & set(ids.values())
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        kept |= {scores.index(min(scores))} | ({model["unk_id"]} if model.get("unk_id") is not None else set())
    if model["type"] == "BPE":
        parts = _parts(model)
        waiting = [tokens[index] for index in kept]
        while waiting:
            for part in parts.get(waiting.pop(), ()):
                if part in ids and ids[part] not in kept:
                    kept.add(ids[part])
                    waiting.append(part)
    return sorted(kept)


def _is_atom(token: str, prefix: str) -> bool:
    bare = token[len(prefix) :] if prefix and token.startswith(prefix) else token.removeprefix("▁")
    return len(bare) <= 1 or (token.startswith("<0x") and token.endswith(">"))


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in pairs]


def _merged(left: str, right: str, model: Mapping[str, Any]) -> str:
    return left + right.removeprefix(model.get("continuing_subword_prefix") or "")


def _parts(model: Mapping[str, Any]) -> dict[str, set[str]]:
    parts: dict[str, set[str]] = {}
    for left, right in _merges(model):
        parts.setdefault(_merged(left, right, model), set()).update((left, right))
    return parts


def new_places(tokenizer: Mapping[str, Any], kept: Sequence[int]) -> list[int]:
    """Return the old id of each new id: added tokens stay where they were if they can, others fill up in their order.

    Runtimes read ids of special tokens out of the files, or know them by heart; so they stay.
    """
    fixed = {added["id"] for added in tokenizer["added_tokens"] if added["id"] < len(kept)}
    moving = iter([index for index in kept if index not in fixed])
    return [index if index in fixed else next(moving) for index in range(len(kept))]


def trimmed_files(files: Mapping[str, bytes], order: Sequence[int]) -> dict[str, bytes]:
    """Return a tokenizer's files with the tokens ``order`` alone, each at its place there.

    Args:
        files: by name; ``tokenizer.json`` among them.
        order: the old id of each new id, of `new_places`.
    """
    tokenizer = json.loads(files["tokenizer.json"])
    old = vocabulary_of(tokenizer)
    places = {index: place for place, index in enumerate(order)}
    model = tokenizer["model"]
    if model["type"] == "Unigram":
        scores = dict(enumerate(model["vocab"]))
        model["vocab"] = [scores.get(index, [old[index], 0.0]) for index in order]
        if model.get("unk_id") is not None:
            model["unk_id"] = places[model["unk_id"]]
    else:
        model["vocab"] = {old[index]: place for place, index in enumerate(order) if old[index] in model["vocab"]}
    if model["type"] == "BPE":
        known = model["vocab"]
        model["merges"] = [
            written
            for written, (left, right) in zip(model["merges"], _merges(model), strict=True)
            if left in known and right in known and _merged(left, right, model) in known
        ]
    tokenizer["added_tokens"] = [{**added, "id": places[added["id"]]} for added in tokenizer["added_tokens"]]
    ids = {old[index]: place for place, index in enumerate(order)}
    tokenizer["post_processor"] = _renumbered(tokenizer.get("post_processor"), ids)
    if tokenizer.get("padding"):
        tokenizer["padding"]["pad_id"] = ids[tokenizer["padding"]["pad_token"]]
    trimmed = {name: content for name, content in files.items() if name not in _FOREIGN_FILES}
    trimmed["tokenizer.json"] = json.dumps(tokenizer, ensure_ascii=False).encode()
    for name, write in _OTHERS.items():
        if name in files:
            trimmed[name] = write(files[name], tokenizer, places)
    return trimmed


def _renumbered(value: Any, ids: Mapping[str, int]) -> Any:
    """Return a post-processor with new ids: templates hold ``ids`` beside ``tokens``, others ``[token, id]``."""
    if isinstance(value, list):
        if len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int) and value[0] in ids:
            return [value[0], ids[value[0]]]
        return [_renumbered(each, ids) for each in value]
    if isinstance(value, dict):
        if "tokens" in value and "ids" in value:
            return {**value, "ids": [ids[token] for token in value["tokens"]]}
        return {key: _renumbered(each, ids) for key, each in value.items()}
    return value


def _vocab_txt(_: bytes, tokenizer: Mapping[str, Any], __: Mapping[int, int]) -> bytes:
    return "".join(f"{token}\n" for token in vocabulary_of(tokenizer)).encode()


def _vocab_json(_: bytes, tokenizer: Mapping[str, Any], __: Mapping[int, int]) -> bytes:
    return json.dumps(tokenizer["model"]["vocab"], ensure_ascii=False).encode()


def _merges_txt(_: bytes, tokenizer: Mapping[str, Any], __: Mapping[int, int]) -> bytes:
    lines = [" ".join(merge) for merge in _merges(tokenizer["model"])]
    return "\n".join(["#version: 0.2", *lines, ""]).encode()


def _tokenizer_config(content: bytes, _: Mapping[str, Any], places: Mapping[int, int]) -> bytes:
    config = json.loads(content)
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        found = {places[int(index)]: entry for index, entry in decoder.items() if int(index) in places}
        config["added_tokens_decoder"] = {str(place): found[place] for place in sorted(found)}
    return json.dumps(config, ensure_ascii=False, indent=2).encode()


_OTHERS: dict[str, Callable[[bytes, Mapping[str, Any], Mapping[int, int]], bytes]] = {
    "vocab.txt": _vocab_txt,
    "vocab.json": _vocab_json,
    "merges.txt": _merges_txt,
    "tokenizer_config.json": _tokenizer_config,
}


def renumbered_config(config: Mapping[str, Any], places: Mapping[int, int]) -> dict[str, Any]:
    """Return a ``config.json`` whose ids of special tokens are the new ones."""
    return {
        key: places.get(value, value)
        if key.endswith("_token_id") and isinstance(value, int) and not isinstance(value, bool)
        else value
        for key, value in config.items()
    }


def token_places(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[int] | None:
    """Return another tokenizer's id of each token of this one, or None where they do not read alike.

    They do where all but the vocabulary is the same, and every token of this one is the other's too, as after a trim.

    Args:
        own, other: ``tokenizer.json`` of each, parsed.
    """
    tokens = vocabulary_of(own)
    ids = {token: index for index, token in enumerate(vocabulary_of(other)) if token}
    if not all(token in ids for token in tokens if token):
        return None
    numbers = {token: index for index, token in enumerate(tokens) if token}
    if _rules(own, numbers) != _rules(other, numbers):
        return None
    return [ids[token] if token else 0 for token in tokens]


def _rules(tokenizer: Mapping[str, Any], ids: Mapping[str, int]) -> list[Any]:
    of_vocabulary = ("vocab", "merges", "unk_id")
    model = {key: value for key, value in tokenizer["model"].items() if key not in of_vocabulary}
    parts = [tokenizer.get(name) for name in ("normalizer", "pre_tokenizer")]
    return [model, *parts, _renumbered(tokenizer.get("post_processor"), ids)]
