"""One small spec per feature that a family needs; tests of the encoder run over all of them."""

from __future__ import annotations

from compressor.ranker.spec import (
    AttentionPattern,
    AttentionSpec,
    CausalPattern,
    ClassifierHead,
    EmbeddingsSpec,
    FeedForwardSpec,
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
    RotarySpec,
    SimilarityHead,
    TableSpec,
    TokenRule,
    WindowPattern,
)
from tests.tiny import FFN_WIDTH, HEADS, SPECIALS, WIDTH, tiny_layer, tiny_spec

SEPARATOR = SPECIALS.index("[SEP]")

_BERT = tiny_spec()
_NORM = NormSpec(epsilon=1e-5)
_RMS = NormSpec(kind="rms", epsilon=1e-6, bias=False)


def linear(inputs: int = WIDTH, outputs: int = WIDTH, rank: int | None = None, bias: bool = True) -> LinearSpec:
    """Return a linear's spec, low-rank where a rank is given."""
    spec = LinearSpec(inputs=inputs, outputs=outputs, bias=bias)
    return spec.changed(form=LowRankForm(rank=rank)) if rank else spec


def attention(
    heads: int = HEADS,
    head_width: int = WIDTH // HEADS,
    pattern: AttentionPattern | None = None,
    rotary_base: float | None = None,
    rank: int | None = None,
    bias: bool = True,
) -> AttentionSpec:
    """Return an attention's spec; heads × head_width need not be the residual width."""
    inner = linear(WIDTH, heads * head_width, rank, bias)
    spec = AttentionSpec(
        heads=heads,
        head_width=head_width,
        positions=RotarySpec(base=rotary_base) if rotary_base else None,
        query=inner,
        key=inner,
        value=inner,
        output=linear(heads * head_width, WIDTH, rank, bias),
    )
    return spec.changed(pattern=pattern) if pattern else spec


def feed_forward(activation: str = "gelu", width: int = FFN_WIDTH, gated: bool = False, rank: int | None = None):
    """Return a feed-forward's spec."""
    return FeedForwardSpec.model_validate(
        {
            "activation": activation,
            "up": linear(WIDTH, width, rank),
            "gate": linear(WIDTH, width, rank) if gated else None,
            "down": linear(width, WIDTH, rank),
        }
    )


def of_layers(*layers: LayerSpec, **changes: object) -> RankerSpec:
    """Return the tiny BERT with other layers."""
    return _BERT.changed(layers=layers, **changes)


def _modernbert() -> RankerSpec:
    norm = NormSpec(epsilon=1e-5, bias=False)
    wide = tiny_layer(
        norm_placement="pre",
        attention_norm=None,
        ffn_norm=norm,
        attention=attention(rotary_base=160000.0, bias=False),
        ffn=feed_forward(gated=True),
    )
    near = wide.changed(
        attention_norm=norm, attention=attention(rotary_base=10000.0, pattern=WindowPattern(reach=4), bias=False)
    )
    return RankerSpec(
        family="modernbert",
        width=WIDTH,
        max_length=40,
        pad_id=0,
        embeddings=EmbeddingsSpec(tokens=_BERT.embeddings.tokens, norm=norm),
        layers=(wide, near, wide.changed(attention_norm=norm)),
        final_norm=norm,
        head=ClassifierHead(
            pool="mean", dense=linear(bias=False), activation="gelu", norm=norm, output=linear(WIDTH, 1)
        ),
    )


def _with_rules(spec: RankerSpec, *rules: TokenRule) -> RankerSpec:
    """Return the spec with token rules behind its first layers."""
    layers = [layer.changed(token_rule=rule) for layer, rule in zip(spec.layers, rules, strict=False)]
    return spec.changed(layers=(*layers, *spec.layers[len(rules) :]), separator_id=SEPARATOR)


def _electra() -> RankerSpec:
    narrow = 8
    embeddings = EmbeddingsSpec(
        tokens=TableSpec(rows=_BERT.embeddings.tokens.rows, width=narrow),
        positions=TableSpec(rows=40, width=narrow),
        segments=TableSpec(rows=2, width=narrow),
        norm=_NORM,
        project=linear(narrow, WIDTH),
    )
    head = ClassifierHead(pool="first", dense=linear(), activation="gelu", output=linear(WIDTH, 1))
    return _BERT.changed(family="electra", embeddings=embeddings, head=head)


def _roberta() -> RankerSpec:
    embeddings = _BERT.embeddings.changed(
        positions=TableSpec(rows=42, width=WIDTH), position_offset=2, segments=TableSpec(rows=1, width=WIDTH)
    )
    return _BERT.changed(family="roberta", pad_id=1, embeddings=embeddings)


def with_exits(spec: RankerSpec, *exits: ClassifierHead | None) -> RankerSpec:
    """Return a spec with exits behind its layers, the first ones first."""
    layers = [layer.changed(exit=exit_) for layer, exit_ in zip(spec.layers, exits, strict=False)]
    return spec.changed(layers=(*layers, *spec.layers[len(layers) :]))


_PRE = tiny_layer(norm_placement="pre", attention_norm=_NORM, ffn_norm=_NORM)

_HALF = KeepShareRule(share=0.5)
_HALF_BY_RANK = KeepShareRule(share=0.5, scorer=PageRankScorer())

_FIRST_EXIT = ClassifierHead(pool="first", output=linear(WIDTH, 1))
_MEAN_EXIT = ClassifierHead(
    pool="mean", dense=linear(WIDTH, 5), activation="gelu", norm=NormSpec(epsilon=1e-5), output=linear(5, 1)
)

SPECS: dict[str, RankerSpec] = {
    "bert": _BERT,
    "electra": _electra(),
    "roberta": _roberta(),
    "modernbert": _modernbert(),
    "pre_norm": of_layers(_PRE, _PRE, final_norm=_NORM),
    "rms_norm": of_layers(*[tiny_layer(norm_placement="pre", attention_norm=_RMS, ffn_norm=_RMS)] * 2, final_norm=_RMS),
    "no_norms": of_layers(
        *[_PRE.changed(attention_norm=None, ffn_norm=None)] * 2,
        embeddings=_BERT.embeddings.changed(norm=None, positions=None, segments=None),
    ),
    "rotary": of_layers(*[tiny_layer(attention=attention(rotary_base=100.0))] * 2),
    "window": of_layers(*[tiny_layer(attention=attention(pattern=WindowPattern(reach=2)))] * 2),
    "window_and_rotary": of_layers(
        *[tiny_layer(attention=attention(pattern=WindowPattern(reach=1), rotary_base=50.0))] * 2
    ),
    "causal_mean": of_layers(
        *[tiny_layer(attention=attention(pattern=CausalPattern()))] * 2,
        head=ClassifierHead(pool="mean", output=linear(WIDTH, 1)),
    ),
    "causal_first": of_layers(*[tiny_layer(attention=attention(pattern=CausalPattern()))] * 2),
    "gated_silu": of_layers(*[tiny_layer(ffn=feed_forward("silu", gated=True))] * 2),
    "gelu_tanh": of_layers(tiny_layer(ffn=feed_forward("gelu_tanh"))),
    "relu": of_layers(tiny_layer(ffn=feed_forward("relu"))),
    "uneven_layers": of_layers(
        tiny_layer(attention=attention(heads=1), ffn=feed_forward(width=7)),
        tiny_layer(attention=attention(heads=3, head_width=6), ffn=feed_forward("relu", width=40)),
        _PRE,
    ),
    "without_blocks": of_layers(
        tiny_layer(attention=None),
        tiny_layer(ffn=None),
        _PRE.changed(ffn=None, ffn_norm=None),
        _PRE.changed(attention=None, attention_norm=None),
        tiny_layer(attention=None, ffn=None),
        tiny_layer(),
    ),
    "linear_maps": of_layers(
        tiny_layer(),
        tiny_layer(attention=None, attention_norm=None, ffn=LinearMapSpec(down=linear())),
        tiny_layer(),
        _PRE.changed(attention=None, attention_norm=None, ffn=LinearMapSpec(down=linear(bias=False))),
        _PRE.changed(ffn=LinearMapSpec(down=linear(rank=3)), ffn_norm=None),
    ),
    "last_without_attention": of_layers(tiny_layer(), tiny_layer(attention=None)),
    "low_rank": of_layers(*[tiny_layer(attention=attention(rank=3), ffn=feed_forward(rank=5, gated=True))] * 2),
    "exits": with_exits(of_layers(*[tiny_layer()] * 3), _FIRST_EXIT, _MEAN_EXIT),
    "exits_pre_norm": with_exits(of_layers(_PRE, _PRE, _PRE, final_norm=_RMS), None, _MEAN_EXIT),
    "exits_modernbert": with_exits(_modernbert(), _FIRST_EXIT, _MEAN_EXIT),
    "pooled": of_layers(tiny_layer(token_rule=PoolRule(stride=3)), tiny_layer(), separator_id=SEPARATOR),
    "pooled_queries": of_layers(
        tiny_layer(token_rule=PoolRule(stride=2, queries_only=True)),
        tiny_layer(token_rule=PoolRule(stride=3, queries_only=True)),
        tiny_layer(),
        separator_id=SEPARATOR,
    ),
    "pooled_queries_of_first_tokens": of_layers(
        _PRE.changed(token_rule=PoolRule(stride=2, queries_only=True)), _PRE, separator_id=SEPARATOR
    ),
    "pooled_queries_modernbert": _with_rules(
        _modernbert(), PoolRule(stride=3, queries_only=True), KeepShareRule(share=0.6, scorer=LearnedScorer())
    ),
    "kept_by_attention": of_layers(tiny_layer(token_rule=_HALF), tiny_layer(), separator_id=SEPARATOR),
    "kept_by_learned_scores": of_layers(
        tiny_layer(token_rule=KeepShareRule(share=0.6, scorer=LearnedScorer())),
        tiny_layer(attention=None, token_rule=KeepShareRule(share=0.6, scorer=LearnedScorer())),
        tiny_layer(),
        separator_id=SEPARATOR,
    ),
    "kept_by_threshold": of_layers(
        tiny_layer(token_rule=KeepThresholdRule(threshold=0.9, share=0.5)),
        tiny_layer(token_rule=KeepThresholdRule(threshold=0.9, share=0.5, scorer=PageRankScorer())),
        tiny_layer(),
        separator_id=SEPARATOR,
    ),
    "kept_by_pagerank": of_layers(tiny_layer(token_rule=_HALF_BY_RANK), tiny_layer(), separator_id=SEPARATOR),
    "merged": of_layers(
        tiny_layer(token_rule=MergeRule(share=0.5, margin=0.7, keep_query_terms=False)),
        tiny_layer(),
        separator_id=SEPARATOR,
    ),
    "merged_twice": _with_rules(
        _modernbert(), MergeRule(share=0.6, margin=0.5), MergeRule(share=0.7, margin=0.4, keep_query_terms=False)
    ),
    "token_rules_modernbert": _with_rules(_modernbert(), _HALF_BY_RANK, _HALF),
    "token_rules_and_exits": _with_rules(
        with_exits(of_layers(*[tiny_layer()] * 3), _FIRST_EXIT, _MEAN_EXIT), PoolRule(stride=2), _HALF
    ),
    "isolated": _BERT.changed(isolates_query=True, separator_id=SEPARATOR),
    "isolated_modernbert": _modernbert().changed(isolates_query=True, separator_id=SEPARATOR),
    "isolated_with_rules": _with_rules(
        of_layers(*[tiny_layer()] * 4), _HALF_BY_RANK, PoolRule(stride=2), _HALF
    ).changed(isolates_query=True),
    "isolated_with_pooled_queries": _with_rules(
        of_layers(*[tiny_layer()] * 3), PoolRule(stride=2, queries_only=True)
    ).changed(isolates_query=True),
    "similarity_first": _BERT.changed(head=SimilarityHead(pool="first")),
    "similarity_mean": _BERT.changed(head=SimilarityHead(pool="mean")),
}

# Those all of whose layers see the same tokens, which what fits or cuts layers one by one asks for.
WITHOUT_RULES = {name: spec for name, spec in SPECS.items() if not spec.rule_layers}
