"""`trim_vocabulary`: the tokens that a collection uses, and no others: a smaller file, equal scores, no speed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeInt

from compressor.passes.contract import Need, Pass, PlanError, Promise, Supply
from compressor.passes.refusals import refuse_quantized
from compressor.ranker.spec import RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from collections import Counter

    from compressor.ranker.ranker import Ranker
    from compressor.runtime.tokenizer import PairTokenizer

Source = Literal["train", "in_domain", "calibration", "dev"]


@register("trim_vocabulary")
class TrimVocabulary(Pass):
    """Keep the tokens of given texts, all special tokens, single characters and bytes; take the other rows away.

    Scores of texts that the whole vocabulary cut into kept tokens are equal to the bit. Others come apart into smaller
    pieces; ``held_out`` tells how many would. Rows of a table are looked up, not multiplied: nothing gets faster.

    ``texts``: whose queries and documents count; documents are all of the collection, not only candidates.
    ``min_count``: how often a token must occur; 0 keeps every token.
    ``held_out``: data on which the share of texts that are cut otherwise is measured.
    """

    texts: tuple[Source, ...] = Field(default=("in_domain",), min_length=1)
    min_count: NonNegativeInt = 1
    held_out: Source | None = None

    def needs(self) -> frozenset[Need]:
        held_out = frozenset({self.held_out} if self.held_out else ())
        return held_out | (frozenset(self.texts) if self.min_count else frozenset())

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_quantized(spec, self.verb)
        if self.held_out in self.texts:
            raise PlanError(
                f"{self.held_out}, whose own tokens are kept", allowed="data that is not in texts", setting="held_out"
            )
        return spec

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        from compressor.ranker.vocabulary import (
            new_places,
            refuse_unknown_model,
            renumbered_config,
            tokens_to_keep,
            trimmed_files,
        )

        if not self.min_count:
            return ranker.changed()
        tokenizer = json.loads(ranker.tokenizer_files["tokenizer.json"])
        refuse_unknown_model(tokenizer, self.verb)
        counts = self._counts(ranker.tokenizer, supply)
        pad, separator = ranker.spec.pad_id, ranker.spec.separator_id
        named = {pad} if separator is None else {pad, separator}
        seen = {*named, *(index for index, n in counts.items() if n >= self.min_count)}
        order = new_places(tokenizer, tokens_to_keep(tokenizer, seen))
        places = {old: new for new, old in enumerate(order)}
        before, table = ranker.spec.embeddings, "embeddings.tokens.weight"
        embeddings = before.changed(tokens=before.tokens.changed(rows=len(order)))
        small = ranker.changed(
            spec=ranker.spec.changed(
                embeddings=embeddings, pad_id=places[pad], separator_id=None if separator is None else places[separator]
            ),
            weights={**ranker.weights, table: ranker.weights[table][order].clone()},
            tokenizer_files=trimmed_files(ranker.tokenizer_files, order),
            source_config=renumbered_config(ranker.source_config, places),
        )
        supply.note("tokens", {"before": before.tokens.rows, "kept": len(order)})
        if self.held_out:
            texts = self._texts(supply, self.held_out)
            supply.note("held_out", _cut_otherwise(ranker.tokenizer, small.tokenizer, order, texts))
        return small

    def promises(self, result: Ranker) -> Sequence[Promise]:
        if not self.min_count:
            return ()
        most = result.spec.embeddings.tokens.rows

        def check(ranker: Ranker) -> str | None:
            found = ranker.spec.embeddings.tokens.rows
            return f"{found:,} tokens" if found > most else None

        return [Promise(text=f"at most {most:,} tokens", check=check)]

    def _counts(self, tokenizer: PairTokenizer, supply: Supply) -> Counter[int]:
        from collections import Counter

        from compressor.progress import progress

        counts: Counter[int] = Counter()
        texts = [text for source in self.texts for text in self._texts(supply, source)]
        with progress("Counting tokens", len(texts)) as advance:
            for ids in tokenizer.pieces(texts):
                counts.update(ids)
                advance()
        return counts

    @staticmethod
    def _texts(supply: Supply, source: Source) -> list[str]:
        data = supply.data(source)
        return [*data.queries.values(), *data.documents.values()]


def _cut_otherwise(
    whole: PairTokenizer, small: PairTokenizer, order: Sequence[int], texts: Sequence[str]
) -> dict[str, float]:
    changed = sum(
        before != [order[place] for place in after]
        for before, after in zip(whole.pieces(texts), small.pieces(texts), strict=True)
    )
    return {"texts": len(texts), "cut_otherwise": changed, "share": round(changed / max(1, len(texts)), 4)}
