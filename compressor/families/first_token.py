"""FIRST (arXiv 2406.15657): lists ranked window by window, by the logits of the letters that stand for documents."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from compressor.errors import Fault, InputError
from compressor.families.large_files import SOURCE
from compressor.families.large_prompts import encoded, letter_id, plain, special_tokens
from compressor.families.large_ranker import LargeModel
from compressor.large_settings import LargeRanker

RankedList = tuple[str, Sequence[str]]  # a query's text, and its documents' in first-stage order

_MAX_LENGTH = 4096
_MAX_WORDS = 300  # of a document; fewer where a window would not fit
_SYSTEM = "You are RankLLM, an intelligent assistant that can rank passages based on their relevancy to the query"
_BEFORE = (
    "I will provide you with {n} passages, each indicated by a alphabetical identifier []. Rank the passages based on "
    "their relevance to the search query: {query}.\n\n"
)
_BEHIND = (
    "Search Query: {query}.\nRank the {n} passages above based on their relevance to the search query. All the "
    "passages should be included and listed using identifiers, in descending order of relevance. The output format "
    "should be [] > [], e.g., [B] > [A], Only respond with the ranking results, do not say any word or explain."
)
_IDENTIFIER = re.compile(r"\[([A-Za-z]+)\]")


class FirstTokenScorer:
    """Ranks lists in windows that slide from the end of a list to its top, and gives scores of the final ranks.

    The prompt is that of the authors' code, in the tokenizer's chat template where it has one. Documents keep their
    first 300 words, fewer where the window does not fit; identifiers in brackets inside texts become parentheses.

    Args:
        model: a decoder.
        settings: window, stride and lengths.

    Raises:
        InputError: the checkpoint is no decoder with a vocabulary, or that has no letters.
    """

    def __init__(self, model: LargeModel, settings: LargeRanker) -> None:
        model.files.scoring(settings)
        self._model, self._settings = model, settings
        self._max_length = model.most_tokens(_MAX_LENGTH)
        letters = string.ascii_uppercase[: settings.window]
        self._columns = [letter_id(letter, model.tokenizer) for letter in letters]
        self._special = special_tokens(model.tokenizer)

    def score_lists(self, lists: Sequence[RankedList]) -> list[np.ndarray]:
        """Return float32 ``[k]`` for each list of ``k`` documents; scores of different lists cannot be compared.

        Windows of several lists share batches.

        Raises:
            InputError: ``list_scores: logits`` and a list longer than a window; a query that leaves documents no room.
        """
        by_logits = self._settings.list_scores == "logits"
        longest = max((len(documents) for _, documents in lists), default=0)
        if by_logits and longest > self._settings.window:
            found = f"logits of a list of {longest} documents, which takes several windows"
            allowed = f"ranks, or lists of at most {self._settings.window}"
            raise InputError(Fault(source=SOURCE, where="list_scores", found=found, allowed=allowed))
        orders = [np.arange(len(documents)) for _, documents in lists]
        scores = [np.zeros(len(documents), dtype=np.float32) for _, documents in lists]
        steps = [list(windows(len(documents), self._settings.window, self._settings.stride)) for _, documents in lists]
        for step in range(max(map(len, steps), default=0)):
            turn = [number for number, spans in enumerate(steps) if step < len(spans)]
            shown = [orders[number][slice(*steps[number][step])] for number in turn]
            rows = [
                self.tokens(lists[number][0], [lists[number][1][place] for place in places])
                for number, places in zip(turn, shown, strict=True)
            ]
            logits = self._model.logits(rows, self._columns, _ignore)
            for number, places, values in zip(turn, shown, logits, strict=True):
                found = values[: len(places)]
                scores[number][places] = found
                # Equal logits, as bf16 often has them, keep the order that they came in.
                orders[number][slice(*steps[number][step])] = places[np.argsort(-found, kind="stable")]
        return scores if by_logits else [rank_scores(order) for order in orders]

    def tokens(self, query: str, documents: Sequence[str]) -> list[int]:
        """Return the tokens of a window's prompt, the bracket of the first identifier last.

        Raises:
            InputError: it does not fit with a single word of each document.
        """
        most = _MAX_WORDS
        words = [self._plain(document).split()[:most] for document in documents]
        while True:
            text = self._prompt(self._plain(query), [" ".join(own[:most]) for own in words])
            ids, _ = encoded(self._model.tokenizer, text, is_decoder=True)
            surplus = len(ids) - self._max_length
            if surplus <= 0:
                return ids
            if most == 1:
                found = (
                    f"{self._max_length}, and {len(ids)} tokens of a window of {len(documents)} documents of one word"
                )
                raise InputError(Fault(source=SOURCE, where="max_length", found=found, fix="take a smaller window"))
            # As the authors' code shortens: at about four tokens a word it gets there from above.
            most = max(1, min(most, max(map(len, words))) - max(1, surplus // (len(documents) * 4)))

    def _plain(self, text: str) -> str:
        return _IDENTIFIER.sub(r"(\1)", plain(text, self._special))

    def _prompt(self, query: str, documents: Sequence[str]) -> str:
        lines = [f"[{letter}] {text}\n" for letter, text in zip(string.ascii_uppercase, documents, strict=False)]
        n = str(len(documents))
        before, behind = (part.replace("{n}", n, 1).replace("{query}", query, 1) for part in (_BEFORE, _BEHIND))
        return f"{self._chat(before + ''.join(lines) + behind)}["

    def _chat(self, text: str) -> str:
        tokenizer: Any = self._model.tokenizer
        if not tokenizer.chat_template:
            return f"{_SYSTEM}\n {text}"
        try:
            messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": text}]
            written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # noqa: BLE001 - templates raise what they like, above all at system messages
            if "system" not in str(error).lower():
                raise InputError(Fault(source=SOURCE, found=f"a chat template that fails ({error})")) from None
            messages = [{"role": "user", "content": f"{_SYSTEM}\n {text}"}]
            written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return str(written)


def windows(n_documents: int, window: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield the windows of a list as (start, end), from its end to its top, as RankGPT slides them (arXiv 2304.09542).

    The last one may be shorter, and is the first that reaches the top. (The authors' code leaves a list of exactly
    ``window - stride`` documents unranked.)
    """
    start, end = max(n_documents - window, 0), n_documents
    while end > start:
        yield start, end
        if start == 0:
            return
        start, end = max(start - stride, 0), end - stride


def rank_scores(order: np.ndarray) -> np.ndarray:
    """Return minus the logarithm of each document's rank, float32 ``[k]``: its softmax is as 1 / rank.

    Args:
        order: documents, best first, int ``[k]``.
    """
    scores = np.empty(len(order), dtype=np.float32)
    scores[order] = -np.log(np.arange(1, len(order) + 1))
    return scores


def _ignore(n: int) -> None:
    """Take a progress report and show nothing."""
