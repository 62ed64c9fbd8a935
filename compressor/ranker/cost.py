"""What a spec costs: parameters, and multiply-adds per pair of a given length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from compressor.cascade_stages import depth_of
from compressor.ranker.spec import (
    ClassifierHead,
    DenseSparseForm,
    KeepRule,
    LayerSpec,
    LinearSpec,
    LowRankForm,
    MergeRule,
    NormSpec,
    PageRankScorer,
    RankerSpec,
    TableSpec,
    TokenRule,
)
from compressor.ranker.token_rule_spec import shows_tokens

QUERY_TOKENS = 8  # of a typical web query or question

Count = TypeVar("Count", int, Any)  # a number, or an array or a tensor of numbers


def parameters(spec: RankerSpec) -> int:
    """Return the number of stored weights, biases and norm parameters, those of exits among them."""
    tables = sum(table.rows * table.width for _, table in tables_of(spec))
    linears = sum(linear_weights(linear) + linear.outputs * linear.bias for _, linear in linears_of(spec))
    scorers = sum(2 * spec.width for layer in spec.layers if layer.has_learned_scorer)
    return tables + linears + scorers + sum(_norm_parameters(norm, width) for norm, width in _norms(spec))


def macs(spec: RankerSpec, n_tokens: int, query_tokens: int = QUERY_TOKENS) -> int:
    """Return the multiply-adds of one pair of ``n_tokens`` real tokens: linear layers plus attention products.

    The last layer counts for the first token alone where the head reads nothing else, as it is computed; exits count
    nothing, as nobody computes them who asks for the ranker's scores.

    Token rules let tokens of the document alone go, so with them it matters how a pair is divided. All but
    ``query_tokens``, the first token and two separators is taken for the document, by default as if every query had
    `QUERY_TOKENS`. What a rule looks at besides the layer's own attention counts, too.
    """
    left = {index: layer.token_rule.n_left for index, layer in enumerate(spec.layers) if layer.token_rule}
    return macs_of_rows(spec, n_tokens, document_tokens(n_tokens, query_tokens), min(n_tokens, query_tokens + 1), left)


def document_tokens(n_tokens: int, query_tokens: int = QUERY_TOKENS) -> int:
    """Return how many of a pair's tokens are its document's: all but the query, the first token and two separators."""
    return max(0, n_tokens - query_tokens - 3)


def macs_of_rows(
    spec: RankerSpec, n_tokens: Count, n_document: Count, n_asking: Count, left: Mapping[int, Callable[[Count], Count]]
) -> Count:
    """Return the multiply-adds of a pair, where it is told how many document tokens stay behind some layers.

    Counts may be arrays or tensors with one value for each of several pairs, also such in which tokens count in part;
    then so is the result.

    Args:
        spec: the ranker; of its token rules only those count that stand behind layers in ``left``.
        n_tokens: of the pair.
        n_document: of them, the document's.
        n_asking: of them, the first token and the query's.
        left: takes how many document tokens reach a rule to how many stay, by layer.
    """
    lengths, judging = [], 0
    for index, layer in enumerate(spec.layers):
        lengths.append(n_tokens)
        if index in left:
            judging = judging + scorer_macs(layer, spec.width, n_tokens, n_asking)
            n_left = left[index](n_document)
            judging = judging + shown_macs(spec, index, layer.token_rule, n_tokens, n_tokens - n_document + n_left)
            if isinstance(layer.token_rule, MergeRule):  # a matrix product sums up what has merged
                judging = judging + (n_document - n_left) ** 2 * spec.width
            n_tokens, n_document = n_tokens - n_document + n_left, n_left
    return macs_of_lengths(spec, lengths) + judging


def macs_of_lengths(spec: RankerSpec, lengths: Sequence[Count]) -> Count:
    """Return the multiply-adds of a pair of which each layer reads so many tokens, whatever its token rules say.

    What judges tokens is not counted. Lengths may be arrays or tensors, as of `macs_of_rows`.
    """
    total = rest_macs(spec, lengths[0])
    for index, n_tokens in enumerate(lengths):
        total = total + layer_macs(spec, index, n_tokens)
    return total


def rest_macs(spec: RankerSpec, n_tokens: Count) -> Count:
    """Return the part of `macs` that is of no layer: what stands before them all, and the head."""
    head = _head_macs(spec.head) if isinstance(spec.head, ClassifierHead) else 0
    return _embedding_macs(spec, n_tokens) + head


def layer_macs(spec: RankerSpec, index: int, n_tokens: Count) -> Count:
    """Return the part of `macs` that one layer has where ``n_tokens`` reach it, without its token rule."""
    for_first = index == len(spec.layers) - 1 and spec.reads_first_token_only
    return _layer_macs(spec.layers[index], n_tokens, 1 if for_first else n_tokens)


def macs_of_stages(spec: RankerSpec, n_tokens: int) -> list[int]:
    """Return the multiply-adds of one pair by how many stages of the spec's cascade it passes, from none to all.

    Every stage's score counts, and of those behind the embeddings the cosines of all tokens with all.
    """
    stages = spec.cascade.stages if spec.cascade else ()
    total, depth, found = _embedding_macs(spec, n_tokens), 0, []
    for stage in stages:
        total += sum(_layer_macs(layer, n_tokens, n_tokens) for layer in spec.layers[depth : depth_of(stage.behind)])
        depth = depth_of(stage.behind)
        exit_head = None if stage.behind == "embeddings" else spec.layers[stage.behind].exit
        total += _head_macs(exit_head) if exit_head else n_tokens**2 * spec.embeddings.tokens.width
        found.append(total)
    below = _embedding_macs(spec, n_tokens) + sum(_layer_macs(one, n_tokens, n_tokens) for one in spec.layers[:depth])
    return [*found, total + macs(spec, n_tokens) - below]


def macs_of_shared_query(spec: RankerSpec, n_tokens: int, query_tokens: int = QUERY_TOKENS) -> tuple[int, int]:
    """Return the multiply-adds of a query, once for a list, and of each candidate, where queries are isolated.

    Counted as in `macs`. Of the last attention that the head's tokens come through, the query's keys and values alone
    are made.

    Args:
        spec: the shape, without token rules.
        n_tokens: of a whole pair, the query's among them.
        query_tokens: of the query's text; one separator goes with them.
    """
    n_query = min(query_tokens + 1, n_tokens - 1)
    n_own = n_tokens - n_query
    query, candidate = _embedding_macs(spec, n_query), _embedding_macs(spec, n_own)
    last_read = last_attention(spec) if spec.reads_first_token_only else None
    for index, layer in enumerate(spec.layers):
        first_only = index == len(spec.layers) - 1 and spec.reads_first_token_only
        candidate += _layer_macs(layer, n_own, 1 if first_only else n_own, n_tokens)
        if last_read is None or index < last_read:
            query += _layer_macs(layer, n_query, n_query)
        elif index == last_read and layer.attention:
            query += (linear_macs(layer.attention.key) + linear_macs(layer.attention.value)) * n_query
    return query, candidate + (_head_macs(spec.head) if isinstance(spec.head, ClassifierHead) else 0)


def last_attention(spec: RankerSpec) -> int | None:
    """Return the index of the last layer that has an attention; None where no token sees another."""
    return max((index for index, layer in enumerate(spec.layers) if layer.attention), default=None)


def macs_by_linear(spec: RankerSpec, n_tokens: int) -> dict[str, int]:
    """Return the part that each linear has in `macs`, by name; attention products are the rest of it.

    Where token rules let tokens go, linears behind them count as if they had not.
    """
    last = f"layers.{len(spec.layers) - 1}."
    found = {}
    for name, linear in linears_of(spec.without_exits()):
        for_first = spec.reads_first_token_only and name.startswith(last) and not name.endswith((".key", ".value"))
        found[name] = linear_macs(linear) * (1 if for_first or name.startswith("head.") else n_tokens)
    return found


def _embedding_macs(spec: RankerSpec, n_tokens: Count) -> Count:
    return n_tokens * (linear_macs(spec.embeddings.project) if spec.embeddings.project else 0)


def _layer_macs(layer: LayerSpec, n_tokens: Count, asking: Count | int, n_seen: Count | None = None) -> Count:
    """Return those of a layer over so many tokens, of which some ask, and see all of them or other numbers of keys."""
    total: Any = 0
    if a := layer.attention:
        total += (linear_macs(a.query) + linear_macs(a.output)) * asking
        total += (linear_macs(a.key) + linear_macs(a.value)) * n_tokens
        total += 2 * asking * (n_tokens if n_seen is None else n_seen) * a.heads * a.head_width
    parts = [getattr(layer.ffn, name, None) for name in ("up", "gate", "down")]  # a linear map has the last alone
    return total + sum(linear_macs(part) for part in parts if part) * asking


def _head_macs(head: ClassifierHead) -> int:
    return linear_macs(head.output) + (linear_macs(head.dense) if head.dense else 0)


def scorer_macs(layer: LayerSpec, width: int, n_tokens: Count, n_asking: Count) -> Count | int:
    """Return the multiply-adds of judging the tokens of a row, as the written graph does it.

    Shares of full attention are at hand there; where a layer has another pattern, products of queries and keys are
    taken anew. Merging takes the products of all keys, summed over heads, and sums them up.

    Args:
        layer: one with or without a token rule.
        width: of the residual stream.
        n_tokens: that reach the rule.
        n_asking: of them, the first token and the query's.
    """
    if layer.has_learned_scorer:
        return (n_tokens + n_asking) * width
    if isinstance(layer.token_rule, MergeRule):
        return n_tokens**2 * (layer.head_width + 1)
    if not isinstance(layer.token_rule, KeepRule) or layer.attention is None:
        return 0
    scorer, attention = layer.token_rule.scorer, layer.attention
    rows, steps = (n_tokens, scorer.steps) if isinstance(scorer, PageRankScorer) else (n_asking, 1)
    products = 0 if attention.pattern.kind == "full" else rows * n_tokens * attention.heads * attention.head_width
    return products + steps * rows * n_tokens


def shown_macs(spec: RankerSpec, index: int, rule: TokenRule | None, n_tokens: Count, n_left: Count) -> Count | int:
    """Return what the layer behind a pool costs more where its windows see the tokens that they are made of.

    Args:
        spec: the ranker.
        index: of the layer that the rule stands behind.
        rule: that one.
        n_tokens: that reach the rule.
        n_left: of them, those that reach the next layer.
    """
    if not shows_tokens(rule):
        return 0
    above = spec.layers[index + 1]
    for_first = index + 1 == len(spec.layers) - 1 and spec.reads_first_token_only
    asking = 1 if for_first else n_left
    return _layer_macs(above, n_tokens, asking, n_tokens) - _layer_macs(above, n_left, asking, n_left)


def linear_macs(linear: LinearSpec) -> int:
    """Return the multiply-adds of one linear for one token; atoms and codes count as the matrix they stand for."""
    return linear.inputs * linear.outputs if isinstance(linear.form, DenseSparseForm) else linear_weights(linear)


def linear_weights(linear: LinearSpec) -> int:
    """Return how many floats of one linear are stored, its bias and the indices of sparse codes not counted."""
    if isinstance(linear.form, DenseSparseForm):
        return linear.form.weights(linear.inputs, linear.outputs)
    if isinstance(linear.form, LowRankForm):
        return linear.form.rank * (linear.inputs + linear.outputs)
    return linear.inputs * linear.outputs


def linears_of(spec: RankerSpec) -> Iterator[tuple[str, LinearSpec]]:
    """Yield name and spec of every linear, those of exits too, in the order of the forward pass."""
    if spec.embeddings.project:
        yield "embeddings.project", spec.embeddings.project
    for index, layer in enumerate(spec.layers):
        for block, names in (("attention", ("query", "key", "value", "output")), ("ffn", ("gate", "up", "down"))):
            for name in names:
                if linear := getattr(getattr(layer, block), name, None):
                    yield f"layers.{index}.{block}.{name}", linear
        if layer.exit:
            yield from _linears_of_head(f"layers.{index}.exit", layer.exit)
    if isinstance(spec.head, ClassifierHead):
        yield from _linears_of_head("head", spec.head)


def _linears_of_head(name: str, head: ClassifierHead) -> Iterator[tuple[str, LinearSpec]]:
    if head.dense:
        yield f"{name}.dense", head.dense
    yield f"{name}.output", head.output


def tables_of(spec: RankerSpec) -> Iterator[tuple[str, TableSpec]]:
    """Yield name and spec of every lookup table."""
    for name in ("tokens", "positions", "segments"):
        table = getattr(spec.embeddings, name)
        if table:
            yield f"embeddings.{name}", table


def _norms(spec: RankerSpec) -> Iterator[tuple[NormSpec | None, int]]:
    yield spec.embeddings.norm, spec.embeddings.tokens.width
    for layer in spec.layers:
        yield layer.attention_norm, spec.width
        yield layer.ffn_norm, spec.width
        if layer.exit:
            yield layer.exit.norm, layer.exit.output.inputs
    yield spec.final_norm, spec.width
    if isinstance(spec.head, ClassifierHead):
        yield spec.head.norm, spec.head.output.inputs


def _norm_parameters(norm: NormSpec | None, width: int) -> int:
    return 0 if norm is None else width * (2 if norm.bias else 1)
