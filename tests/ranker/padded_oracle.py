"""A second, plain implementation of the encoder: padded, einsum by einsum, in double precision, fp32 specs only."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from compressor.ranker.spec import (
    AttentionSpec,
    CausalPattern,
    ClassifierHead,
    DenseSparseForm,
    FeedForwardSpec,
    KeepRule,
    KeepShareRule,
    KeepThresholdRule,
    LayerSpec,
    LearnedScorer,
    LinearMapSpec,
    LinearSpec,
    LowRankForm,
    MergeRule,
    NormSpec,
    PageRankScorer,
    PoolRule,
    RankerSpec,
    WindowPattern,
)

Weights = Mapping[str, Tensor]


def oracle(
    spec: RankerSpec, weights: Weights, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
) -> Tensor:
    """Return logits ``[B, 1]`` or unit vectors ``[B, D]`` in float64, padding computed like everything else."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    mask = attention_mask.bool()
    rows = [ids[real].tolist() for ids, real in zip(input_ids, mask, strict=True)]
    parts = [_parts(ids, spec.separator_id) for ids in rows]
    secret = _secret(spec, input_ids, mask)
    x = _embed(spec, w, input_ids, token_type_ids)  # [B, S, D]
    tokens: tuple[Tensor, Tensor] | None = None  # what windows see, and where it is real
    for i, layer in enumerate(spec.layers):
        name, before = f"layers.{i}", x
        shown, real = tokens or (x, mask)
        if layer.norm_placement == "post":
            mixed = _attend(layer.attention, w, name, x, shown, real, secret) if layer.attention else 0.0
            x = _norm(layer.attention_norm, w, f"{name}.attention_norm", x + mixed)
            fed = _feed(layer.ffn, w, name, x) if layer.ffn else 0.0
            x = _norm(layer.ffn_norm, w, f"{name}.ffn_norm", x + fed)
        else:
            if layer.attention:
                read, shown = (_norm(layer.attention_norm, w, f"{name}.attention_norm", each) for each in (x, shown))
                x = x + _attend(layer.attention, w, name, read, shown, real, secret)
            if layer.ffn:
                x = x + _feed(layer.ffn, w, name, _norm(layer.ffn_norm, w, f"{name}.ffn_norm", x))
        tokens = (x, mask) if isinstance(layer.token_rule, PoolRule) and layer.token_rule.queries_only else None
        if layer.token_rule:
            x, mask = _reduce(layer, w, name, before, x, mask, parts, rows, secret)
    return _head(spec, w, _norm(spec.final_norm, w, "final_norm", x), mask)


def _parts(ids: list[int], separator: int | None) -> tuple[int, list[int]]:
    """Return how many tokens stand before the first separator, at least one, and the columns of the document."""
    start = ids.index(separator) if separator in ids else len(ids)
    return max(start, 1), [column for column in range(start, len(ids)) if ids[column] != separator]


def _secret(spec: RankerSpec, input_ids: Tensor, mask: Tensor) -> Tensor:
    """Return which tokens do not see which, bool ``[B, S, S]``: an isolated query's see no other's."""
    secret = torch.zeros(*mask.shape, mask.shape[1], dtype=torch.bool)
    for b, row in enumerate(input_ids.tolist()):
        row = row[: int(mask[b].sum())]
        end = row.index(spec.separator_id) + 1 if spec.separator_id in row else len(row)
        if spec.isolates_query:
            secret[b, 1:end, :1] = secret[b, 1:end, end:] = True
    return secret


def _reduce(
    layer: LayerSpec, w: Weights, name: str, read: Tensor, x: Tensor, mask: Tensor, parts: list[tuple[int, list[int]]],
    rows: list[list[int]], secret: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return new states and a smaller mask: tokens that go stay where they are, but neither ask nor are seen."""
    x, after, rule = x.clone(), mask.clone(), layer.token_rule
    for b, (n_asking, document) in enumerate(parts):
        columns = mask[b].nonzero()[:, 0].tolist()
        left = [column for column in columns if column in document]
        if isinstance(rule, PoolRule):
            n_before = sum(column < document[0] for column in columns) if document else 0
            windows: dict[tuple[int, int], list[int]] = {}
            for column in left:
                place = columns.index(column) - n_before
                n_separators = place - left.index(column)
                windows.setdefault((place // rule.stride, n_separators), []).append(column)
            for window in windows.values():
                x[b, window[0]] = x[b, window].mean(0)
                after[b, window[1:]] = False
        elif isinstance(rule, MergeRule) and left:
            asked = set(rows[b][:n_asking]) if rule.keep_query_terms else set()
            groups = _groups(
                layer, rule, w, name, read[b, left], left, [rows[b][column] not in asked for column in left]
            )
            for target, group in groups.items():
                x[b, target] = x[b, [target, *group]].mean(0)
                after[b, group] = False
        elif isinstance(rule, KeepThresholdRule) and left:
            relative = len(columns) * _scores(layer, rule, w, name, read, b, columns, n_asking, secret)
            found = {column: relative[columns.index(column)].item() for column in left}
            least = min(rule.threshold, max(found.values()))
            after[b, [column for column in left if found[column] < least]] = False
        elif isinstance(rule, KeepShareRule):
            if isinstance(rule.scorer, LearnedScorer):
                scores = _learned_scores(w, f"{name}.token_rule.scorer", x[b, columns], n_asking).tolist()
            else:
                scores = _scores(layer, rule, w, name, read, b, columns, n_asking, secret).tolist()
            ranked = sorted(left, key=lambda column: (-scores[columns.index(column)], column))
            after[b, ranked[math.ceil(round(rule.share * len(left), 9)) :]] = False
    return x, after


def _groups(
    layer: LayerSpec, rule: MergeRule, w: Weights, name: str, read: Tensor, left: list[int], may_merge: list[bool]
) -> dict[int, list[int]]:
    """Return which columns of a document ``left`` merge into which, whose states ``[n, D]`` the layer read."""
    spec, n = layer.attention, len(left)
    assert spec is not None
    if layer.norm_placement == "pre":
        read = _norm(layer.attention_norm, w, f"{name}.attention_norm", read)
    keys = _linear(spec.key, w, f"{name}.attention.key", read).reshape(n, spec.heads, spec.head_width).sum(1)
    lengths = keys.norm(dim=1).clamp(min=1e-12)
    cosines = [[_rounded(c) for c in row] for row in (keys @ keys.T / lengths[:, None] / lengths).tolist()]
    spread = 1 - rule.margin
    near = [[_rounded(math.exp(-(((1 - c) / spread) ** 2) / 2)) for c in row] for row in cosines]
    energy = [sum(row[:i] + row[i + 1 :]) for i, row in enumerate(near)]
    ranked = sorted((i for i in range(n) if may_merge[i]), key=lambda i: (-energy[i], i))
    r = min(n - math.ceil(round(rule.share * n, 9)), len(ranked) // 2)
    goes, takes = ranked[:r], sorted(ranked[r : 2 * r])
    groups: dict[int, list[int]] = {}
    for i in goes:
        best = max(takes, key=lambda j: cosines[i][j])  # of equal ones the first
        groups.setdefault(left[best], []).append(left[i])
    return groups


def _rounded(value: float) -> float:
    return round(value * 2**15) / 2**15


def _learned_scores(w: Weights, name: str, given: Tensor, n_asking: int) -> Tensor:
    """Return a score of each of a row's tokens ``[n]``, whose states ``[n, D]`` the layer gave."""
    away = given - given.mean(1, keepdim=True)
    z = away / (away.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return z @ w[f"{name}.direction"] + (z * z[:n_asking].mean(0)) @ w[f"{name}.match"]


def _scores(
    layer: LayerSpec, rule: KeepRule, w: Weights, name: str, states: Tensor, b: int, columns: list[int], n_asking: int,
    secret: Tensor,
) -> Tensor:  # fmt: skip
    """Return a score of each of a row's tokens ``[n]`` in these columns, whose states the layer read."""
    read, positions = states[b, columns], torch.tensor(columns)
    spec, n = layer.attention, len(read)
    assert spec is not None
    if layer.norm_placement == "pre":
        read = _norm(layer.attention_norm, w, f"{name}.attention_norm", read)
    q, k = (
        _linear(getattr(spec, part), w, f"{name}.attention.{part}", read).reshape(1, n, spec.heads, spec.head_width)
        for part in ("query", "key")
    )
    if spec.positions:
        q, k = (_rotate(each, spec.positions.base, positions) for each in (q, k))
    logits = torch.einsum("bqhd,bkhd->hqk", q, k) / math.sqrt(spec.head_width)
    paid = logits.masked_fill(secret[b][columns][:, columns], -1e9).softmax(-1).mean(0)
    start = (torch.arange(n) < n_asking) / n_asking
    if not isinstance(rule.scorer, PageRankScorer):
        return start.double() @ paid
    scores = start = start.double()
    for _ in range(rule.scorer.steps):
        scores = (1 - rule.scorer.restart) * (paid.T @ scores) + rule.scorer.restart * start
    return scores


def _embed(spec: RankerSpec, w: Weights, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
    e = spec.embeddings
    x = w["embeddings.tokens.weight"][input_ids]
    if e.positions:
        x = x + w["embeddings.positions.weight"][e.position_offset : e.position_offset + input_ids.shape[1]]
    if e.segments:
        x = x + w["embeddings.segments.weight"][token_type_ids]
    x = _norm(e.norm, w, "embeddings.norm", x)
    return _linear(e.project, w, "embeddings.project", x) if e.project else x


def _attend(
    spec: AttentionSpec, w: Weights, layer: str, x: Tensor, shown: Tensor, mask: Tensor, secret: Tensor
) -> Tensor:
    B, S, _ = x.shape

    def heads(name: str, of: Tensor) -> Tensor:
        flat = _linear(getattr(spec, name), w, f"{layer}.attention.{name}", of)
        return flat.reshape(B, S, spec.heads, spec.head_width)

    q, k, v = heads("query", x), heads("key", shown), heads("value", shown)
    if spec.positions:
        q, k = (_rotate(each, spec.positions.base, torch.arange(S)) for each in (q, k))
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(spec.head_width)
    distance = torch.arange(S)[:, None] - torch.arange(S)[None, :]
    hidden = ~mask[:, None, None, :] | secret[:, None]
    if isinstance(spec.pattern, WindowPattern):
        hidden = hidden | (distance.abs() > spec.pattern.reach)
    if isinstance(spec.pattern, CausalPattern):
        hidden = hidden | (distance < 0)
    shares = logits.masked_fill(hidden, -1e9).softmax(-1)
    mixed = torch.einsum("bhqk,bkhd->bqhd", shares, v).reshape(B, S, -1)
    return _linear(spec.output, w, f"{layer}.attention.output", mixed)


def _rotate(x: Tensor, base: float, positions: Tensor) -> Tensor:
    d = x.shape[-1]
    angles = positions.double()[:, None] / base ** (torch.arange(0, d, 2) / d)
    angles = torch.cat([angles, angles], dim=-1)[None, :, None, :]
    turned = torch.cat([-x[..., d // 2 :], x[..., : d // 2]], dim=-1)
    return x * angles.cos() + turned * angles.sin()


def _feed(spec: FeedForwardSpec | LinearMapSpec, w: Weights, layer: str, x: Tensor) -> Tensor:
    if isinstance(spec, LinearMapSpec):
        return _linear(spec.down, w, f"{layer}.ffn.down", x)
    up = _linear(spec.up, w, f"{layer}.ffn.up", x)
    if spec.gate:
        up = _act(spec.activation, _linear(spec.gate, w, f"{layer}.ffn.gate", x)) * up
    else:
        up = _act(spec.activation, up)
    return _linear(spec.down, w, f"{layer}.ffn.down", up)


def _act(name: str, x: Tensor) -> Tensor:
    return {
        "gelu": lambda: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
        "gelu_tanh": lambda: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "relu": lambda: x.clamp(min=0),
        "silu": lambda: x / (1 + torch.exp(-x)),
        "tanh": lambda: torch.tanh(x),
    }[name]()


def _linear(spec: LinearSpec, w: Weights, name: str, x: Tensor) -> Tensor:
    if isinstance(spec.form, LowRankForm):
        y = torch.einsum("...i,ri,or->...o", x, w[f"{name}.down"], w[f"{name}.up"])
    elif isinstance(spec.form, DenseSparseForm):
        y = torch.einsum("...i,oi->...o", x, _of_codes(spec.form, w, name))
    else:
        y = torch.einsum("...i,oi->...o", x, w[f"{name}.weight"])
    return y + w[f"{name}.bias"] if spec.bias else y


def _of_codes(form: DenseSparseForm, w: Weights, name: str) -> Tensor:
    """Return the matrix of atoms and codes, vector by vector."""
    atoms, values, indices = (w[f"{name}.{kind}"] for kind in ("atoms", "values", "indices"))
    vectors = torch.stack(
        [
            torch.cat(
                [values[block, place] @ atoms[block][indices[block, place].long()] for block in range(form.blocks)]
            )
            for place in range(values.shape[1])
        ]
    )
    return vectors if form.codes == "rows" else vectors.T


def _norm(spec: NormSpec | None, w: Weights, name: str, x: Tensor) -> Tensor:
    if spec is None:
        return x
    if spec.kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x / torch.sqrt((x**2).mean(-1, keepdim=True) + spec.epsilon) * w[f"{name}.weight"]
    return x + w[f"{name}.bias"] if spec.bias else x


def _head(spec: RankerSpec, w: Weights, x: Tensor, mask: Tensor) -> Tensor:
    share = mask.double() / mask.sum(1, keepdim=True)
    pooled = x[:, 0] if spec.head.pool == "first" else torch.einsum("bsd,bs->bd", x, share)
    if not isinstance(spec.head, ClassifierHead):
        return pooled / pooled.norm(dim=-1, keepdim=True)
    if spec.head.dense:
        pooled = _linear(spec.head.dense, w, "head.dense", pooled)
    if spec.head.activation:
        pooled = _act(spec.head.activation, pooled)
    return _linear(spec.head.output, w, "head.output", _norm(spec.head.norm, w, "head.norm", pooled))
