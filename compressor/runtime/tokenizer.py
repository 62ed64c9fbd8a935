"""Query-document pairs to token rows, with the tokenizers library alone.

Truncation cuts the document and leaves the query whole. Only where a query is so long that fewer than
``MIN_DOCUMENT_TOKENS`` tokens of its document would fit is the query cut too, from its end, so that this many tokens of
the document (or all of a shorter one) stay in sight; ``Encoded.n_cut_queries`` counts these pairs. Where a row is cut
depends on the pair alone, never on its neighbors.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer
from tokenizers.processors import TemplateProcessing

from compressor.errors import Fault, InputError
from compressor.runtime.tokenizer_settings import SETTINGS_FILES, TokenizerSettings, read_settings
from compressor.storage import sha256_json

DEFAULT_MAX_LENGTH = 512
MIN_DOCUMENT_TOKENS = 32
_TEXTS_AT_ONCE = 4096  # the library's records are some ten times larger than the ids that stay
_USUAL_PAD_TOKENS = ("[PAD]", "<pad>", "<|endoftext|>")


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token rows of different lengths, without padding.

    Attributes:
        input_ids: per row int64 ``[n_i]``.
        type_ids: per row int64 ``[n_i]``, 0 for the query's segment and 1 for the document's where the family has two.
        n_cut_documents: rows that lost the end of their document (or of their only text).
        n_cut_queries: rows that lost the end of their query too.
    """

    input_ids: list[np.ndarray]
    type_ids: list[np.ndarray]
    n_cut_documents: int = 0
    n_cut_queries: int = 0

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, int64 ``[n]``."""
        return np.fromiter(map(len, self.input_ids), dtype=np.int64, count=len(self.input_ids))


class PairTokenizer:
    """The tokenizer of a ranker folder. Safe to use from several threads.

    Attributes:
        max_length: longest row in tokens, special tokens included.
        pad_id: id that fills rows up to their batch; the attention mask hides it.
        n_specials: special tokens in a row that holds a pair.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_length: int, pad_id: int, truncation_side: str = "right") -> None:
        tokenizer.no_truncation()  # settings baked into tokenizer.json would cut queries and pad every row
        tokenizer.no_padding()
        if tokenizer.post_processor is None:
            tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
        self._tokenizer = tokenizer
        self._truncation_side = truncation_side
        self.max_length = max_length
        self.pad_id = pad_id
        self.n_specials: int = tokenizer.num_special_tokens_to_add(True)

    @classmethod
    def from_folder(cls, folder: Path, *, max_length: int | None = None) -> PairTokenizer:
        """Read the tokenizer of a folder, rankpress's own or a foreign one.

        Raises:
            InputError: as `from_files`; the folder has no ``tokenizer.json``.
        """
        names = ("tokenizer.json", *SETTINGS_FILES)
        files = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
        return cls.from_files(files, max_length=max_length, source=folder)

    @classmethod
    def from_files(
        cls, files: Mapping[str, bytes], *, max_length: int | None = None, source: str | Path = "tokenizer files"
    ) -> PairTokenizer:
        """Build the tokenizer from file contents by name; only ``tokenizer.json`` is needed.

        Args:
            files: ``tokenizer.json``, and as many of ``tokenizer_config.json``, ``special_tokens_map.json``,
                ``config.json`` and sentence-transformers' files as there are.
            max_length: longest row in tokens; None takes what the files say (see `read_settings`), else the length
                that ``tokenizer.json`` truncates at, else 512.
            source: the folder, for messages.

        Raises:
            InputError: no or a broken ``tokenizer.json``, senseless settings, or no room for a pair.
        """
        tokenizer = _read_tokenizer(files, source)
        settings = read_settings(files, source)
        if max_length is None:
            baked = tokenizer.truncation["max_length"] if tokenizer.truncation else DEFAULT_MAX_LENGTH
            max_length = settings.max_length or baked
        least = tokenizer.num_special_tokens_to_add(True) + 2
        if max_length < least:
            raise InputError(
                Fault(
                    source=source,
                    where="model_max_length",
                    found=f"rows of at most {max_length} tokens",
                    allowed=f"at least {least}: the special tokens, one token of the query and one of the document",
                )
            )
        pad_id = _pad_id(tokenizer, settings, source)
        return cls(tokenizer, max_length=max_length, pad_id=pad_id, truncation_side=settings.truncation_side)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all that decides which ids and segments a text becomes; equal ones read alike.

        Where rows are cut or padded, how ids are turned back into text, and how a file writes the same thing down does
        not count.
        """
        settings = json.loads(self._tokenizer.to_str())
        reading = {name: settings[name] for name in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
        # Templates are compared by what they do: several kinds of them do the same.
        rows = [self._tokenizer.encode("a"), self._tokenizer.encode("a", "b")]
        return sha256_json([reading, [[row.ids, row.type_ids] for row in rows]])

    @cached_property
    def separator_id(self) -> int | None:
        """The id of the special token between a pair's texts; None where there is none, or rows begin with it."""
        row = self._tokenizer.encode("a", "b")
        is_special = row.special_tokens_mask
        end = next((place for place in range(1, len(is_special)) if is_special[place] > is_special[place - 1]), None)
        if end is None or all(is_special[end:]) or row.ids[end] == row.ids[0]:
            return None
        return row.ids[end]

    @property
    def begins_with_special(self) -> bool:
        """Whether a special token stands before a pair's first text."""
        return bool(self._tokenizer.encode("a", "b").special_tokens_mask[0])

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> Encoded:
        """Encode (query, document) pairs as one row each; equal queries are tokenized once."""
        distinct = dict.fromkeys(query for query, _ in pairs)
        queries = dict(zip(distinct, self._pieces(distinct), strict=True))
        documents = self._pieces(document for _, document in pairs)
        room = self.max_length - self.n_specials
        input_ids, type_ids = [], []
        n_cut_documents = n_cut_queries = 0
        for (query_text, _), document in zip(pairs, documents, strict=True):
            query = queries[query_text]
            if len(query) + len(document) > room:
                kept_document = min(len(document), MIN_DOCUMENT_TOKENS, max(1, room // 2))
                kept_query = min(len(query), room - kept_document)
                n_cut_documents += len(document) > room - kept_query
                n_cut_queries += len(query) > kept_query
                document.truncate(room - kept_query, direction=self._truncation_side)
                if len(query) > kept_query:
                    query = copy.copy(query)  # other pairs of this query may have shorter documents
                    query.truncate(kept_query)
            row = self._tokenizer.post_process(query, document)
            input_ids.append(np.array(row.ids, dtype=np.int64))
            type_ids.append(np.array(row.type_ids, dtype=np.int64))
        return Encoded(
            input_ids=input_ids, type_ids=type_ids, n_cut_documents=n_cut_documents, n_cut_queries=n_cut_queries
        )

    def encode_texts(self, texts: Sequence[str]) -> Encoded:
        """Encode texts as rows of a single segment, as bi-encoders read them."""
        room = self.max_length - self._tokenizer.num_special_tokens_to_add(False)
        input_ids, type_ids = [], []
        n_cut = 0
        for piece in self._pieces(texts):
            if len(piece) > room:
                n_cut += 1
                piece.truncate(room, direction=self._truncation_side)
            row = self._tokenizer.post_process(piece)
            input_ids.append(np.array(row.ids, dtype=np.int64))
            type_ids.append(np.array(row.type_ids, dtype=np.int64))
        return Encoded(input_ids=input_ids, type_ids=type_ids, n_cut_documents=n_cut)

    def pieces(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Yield the ids of each text, whole and without special tokens."""
        return (piece.ids for piece in self._pieces(texts))

    def _pieces(self, texts: Iterable[str]) -> Iterator[Encoding]:
        """Yield the tokens of each text, without special tokens."""
        remaining = iter(texts)
        while some := list(islice(remaining, _TEXTS_AT_ONCE)):
            yield from self._tokenizer.encode_batch_fast(some, add_special_tokens=False)


def _read_tokenizer(files: Mapping[str, bytes], source: str | Path) -> Tokenizer:
    if "tokenizer.json" not in files:
        raise InputError(
            Fault(
                source=source,
                found="no tokenizer.json",
                allowed="the fast tokenizer's single file",
                fix="a slow tokenizer is converted by AutoTokenizer.from_pretrained(...).save_pretrained(folder)",
            )
        )
    try:
        return Tokenizer.from_buffer(files["tokenizer.json"])
    except Exception as error:  # the library raises plain ones
        fault = Fault(
            source=f"{source}/tokenizer.json",
            found=f"a file that the tokenizers library cannot read ({error})",
            allowed="a tokenizer saved by the tokenizers library",
        )
        raise InputError(fault) from error


def _pad_id(tokenizer: Tokenizer, settings: TokenizerSettings, source: str | Path) -> int:
    if settings.pad_token is not None:
        pad_id = tokenizer.token_to_id(settings.pad_token)
        if pad_id is None:
            raise InputError(
                Fault(
                    source=source,
                    where="pad_token",
                    found=repr(settings.pad_token),
                    allowed="a token of tokenizer.json",
                )
            )
        return pad_id
    if tokenizer.padding is not None:
        return int(tokenizer.padding["pad_id"])
    if settings.pad_id is not None:
        return settings.pad_id
    found = (tokenizer.token_to_id(token) for token in _USUAL_PAD_TOKENS)
    return next((pad_id for pad_id in found if pad_id is not None), 0)
