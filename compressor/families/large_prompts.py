"""Prompts of large rankers as tokens: written out whole, then cut in the document alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from compressor.errors import Fault, InputError
from compressor.families.large_files import SOURCE, LargeFiles
from compressor.large_settings import PLACE, PROMPTS, LargeRanker, PairPrompt, Scoring

_OWN_MAX_LENGTH = 512
_SEAMS = 4  # tokens that a prompt and texts may have together beyond those of each


class _Part(NamedTuple):
    """A stretch of a written prompt: characters from ``start`` to ``end``."""

    start: int
    end: int


def pair_prompt(settings: LargeRanker, files: LargeFiles, scoring: Scoring) -> PairPrompt:
    """Return the prompt that settings ask for; ``auto`` is what the paper of such a checkpoint had.

    Raises:
        InputError: no paper's prompt is known to fit the checkpoint, or labels are missing.
    """
    name = settings.prompt
    if name == "auto":
        if files.is_encoder_decoder:
            name = "monot5"
        elif files.model_type == "qwen3" and scoring == "label_tokens":
            name = "qwen3_reranker"
        else:
            allowed = f"{', '.join(PROMPTS)}, or text with {{query}} and {{document}}: what it was trained with"
            found = f"auto, and no prompt is known of a {files.model_type} checkpoint scored by {scoring}"
            raise InputError(Fault(source=SOURCE, where="prompt", found=found, allowed=allowed))
    prompt = PROMPTS.get(name, PairPrompt(name, (), _OWN_MAX_LENGTH))
    labels = () if scoring == "head" else settings.labels or prompt.labels
    if scoring == "label_tokens" and not labels:
        found, allowed = "none, for a prompt of your own", "one word or two, the one of relevance first"
        raise InputError(Fault(source=SOURCE, where="labels", found=found, allowed=allowed))
    return PairPrompt(prompt.text, labels, settings.max_length or prompt.max_length)


def label_ids(labels: Iterable[str], tokenizer: Any) -> list[int]:
    """Return the token of each label: of the word as text (for T5 ``▁true``), else the vocabulary's entry.

    Raises:
        InputError: a label is no single token.
    """
    return [_label_id(label, tokenizer) for label in labels]


def letter_id(letter: str, tokenizer: Any) -> int:
    """Return the vocabulary's own entry of a letter, as it stands behind a bracket.

    Raises:
        InputError: there is none.
    """
    found = tokenizer.get_vocab().get(letter)
    if found is None:
        fix = "windows want a tokenizer with a token for each capital letter"
        raise InputError(Fault(source=SOURCE, where="scoring", found=f"a vocabulary without {letter!r}", fix=fix))
    return int(found)


class PromptWriter:
    """Writes prompts about pairs and turns them into tokens.

    A prompt is tokenized as one text, so that words keep the tokens that they have in it; what is too long then loses
    the last tokens of its document, and of its query only where that does not fit without any document. A tokenizer's
    special tokens that stand in a query or document are broken up: texts give no orders.

    Args:
        tokenizer: a fast tokenizer.
        text: the prompt, with its places.
        max_length: most tokens.
        is_decoder: whether what the tokenizer adds at the end is dropped: the score is taken at the last token.

    Raises:
        InputError: the prompt alone is too long, or the tokenizer is a slow one.
    """

    def __init__(self, tokenizer: Any, text: str, max_length: int, *, is_decoder: bool) -> None:
        if not tokenizer.is_fast:
            found = f"the tokenizer {type(tokenizer).__name__}, which does not say where its tokens stand"
            raise InputError(Fault(source=SOURCE, found=found, allowed="a fast tokenizer (tokenizer.json)"))
        self._tokenizer, self._max_length, self._is_decoder = tokenizer, max_length, is_decoder
        self._pieces = PLACE.split(text)  # text, place, text, place, ..., text
        own = {"bos": tokenizer.bos_token or "", "eos": tokenizer.eos_token or ""}
        self._pieces = [own.get(piece, piece) if n % 2 else piece for n, piece in enumerate(self._pieces)]
        self._places = [n for n, piece in enumerate(self._pieces) if n % 2 and piece in ("query", "document")]
        self._special = special_tokens(tokenizer)
        n_own = len(self.tokens([("", "")])[0])
        if n_own + _SEAMS >= max_length:
            found = f"{max_length}, and the prompt alone has {n_own} tokens"
            raise InputError(Fault(source=SOURCE, where="max_length", found=found))

    def tokens(self, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
        """Return the tokens of each pair's prompt, at most ``max_length``."""
        return [self._cut(*self._written(query, document)) for query, document in pairs]

    def text(self, query: str, document: str) -> str:
        """Return a pair's prompt as text, whole."""
        return self._written(query, document)[0]

    def _written(self, query: str, document: str) -> tuple[str, list[_Part], list[_Part]]:
        """Return the text, and where the document and the query stand in it."""
        values = {"query": plain(query, self._special), "document": plain(document, self._special)}
        parts: dict[str, list[_Part]] = {"query": [], "document": []}
        text = ""
        for number, piece in enumerate(self._pieces):
            if number in self._places:
                parts[piece].append(_Part(len(text), len(text) + len(values[piece])))
                piece = values[piece]
            text += piece
        return text, parts["document"], parts["query"]

    def _cut(self, text: str, document: list[_Part], query: list[_Part]) -> list[int]:
        ids, offsets = encoded(self._tokenizer, text, is_decoder=self._is_decoder)
        for parts in (document, query):
            surplus = len(ids) - self._max_length
            if surplus > 0:
                inside = [n for n, (start, end) in enumerate(offsets) if _is_inside(start, end, parts)]
                dropped = set(inside[-surplus:])
                ids, offsets = _without(ids, dropped), _without(offsets, dropped)
        return ids


def encoded(tokenizer: Any, text: str, *, is_decoder: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """Return tokens and their places; the first token is not doubled, and a decoder gets none behind its prompt."""
    starts_itself = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    row = tokenizer(text, add_special_tokens=not starts_itself, return_offsets_mapping=True, truncation=False)
    ids, offsets = list(row["input_ids"]), [(int(start), int(end)) for start, end in row["offset_mapping"]]
    while is_decoder and len(ids) > 1 and offsets[-1] == (0, 0) and ids[-1] in tokenizer.all_special_ids:
        del ids[-1], offsets[-1]
    return ids, offsets


def special_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """Return what finds a tokenizer's special tokens in a text; None where it has none of more than one character."""
    added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
    marks = {text for text, is_special in added.items() if len(text) > 1 and (is_special or text[0] in "<[")}
    longest_first = sorted(marks, key=lambda mark: (-len(mark), mark))
    return re.compile("|".join(map(re.escape, longest_first))) if marks else None


def plain(text: str, special: re.Pattern[str] | None) -> str:
    """Return a text in which special tokens are broken up: ``</s>`` becomes ``< /s>``."""
    return special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text) if special else text


def _label_id(label: str, tokenizer: Any) -> int:
    if not label.startswith(("▁", "Ġ")):  # those name an entry as it stands in the vocabulary
        ids = tokenizer(label, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return int(ids[0])
    found = tokenizer.get_vocab().get(label)
    if found is None:
        allowed = "words that the tokenizer has one token for"
        raise InputError(Fault(source=SOURCE, where="labels", found=repr(label), allowed=allowed))
    return int(found)


def _is_inside(start: int, end: int, parts: list[_Part]) -> bool:
    return any(part.start <= start < end <= part.end for part in parts)


def _without(values: list[Any], dropped: set[int]) -> list[Any]:
    return [value for number, value in enumerate(values) if number not in dropped]
