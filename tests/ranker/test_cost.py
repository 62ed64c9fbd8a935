"""What a spec costs, against counts that do not come from the spec."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from compressor.ranker.cost import linear_macs, linears_of, macs, macs_by_linear, parameters, tables_of
from compressor.ranker.encoder import expected_shapes
from compressor.ranker.spec import KeepShareRule, LearnedScorer, MergeRule, PageRankScorer
from tests.ranker.cases import SPECS
from tests.tiny import batch_of, module_of, tiny_spec


@pytest.mark.parametrize("name", SPECS)
def test_parameters_are_the_sizes_of_all_tensors(name):
    spec = SPECS[name]
    assert parameters(spec) == sum(math.prod(shape) for shape in expected_shapes(spec).values())
    assert parameters(spec) == sum(tensor.numel() for tensor in module_of(spec).parameters())


@pytest.mark.parametrize("n_tokens", [1, 17])
@pytest.mark.parametrize("name", [name for name in SPECS if name != "kept_by_threshold"])
def test_macs_are_what_torch_counts(name, n_tokens):
    spec = SPECS[name]
    module = module_of(spec)
    batch = batch_of(spec, [n_tokens])
    counter = FlopCounterMode(display=False)
    # The math kernel shows its two matrix products to the counter; the fused CPU kernel counts as nothing.
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counter:
        module(**batch)
    # The torch module takes a scorer's queries, keys and products anew, where a graph has them at hand.
    looked_at = 0
    for index, reduction in module.trace(**batch).reductions.items():
        rule, a = spec.layers[index].token_rule, spec.layers[index].attention
        if isinstance(rule, KeepShareRule) and a and not isinstance(rule.scorer, LearnedScorer):
            n_reached = len(module.trace(**batch).layouts[index + 1].to_packed)
            assert len(reduction.kept) == min(n_reached, 5) + rule.n_left(max(0, n_reached - 5))
            rows = n_reached if isinstance(rule.scorer, PageRankScorer) else min(n_tokens, 3)
            products = rows * n_reached * a.heads * a.head_width if a.pattern.kind == "full" else 0
            looked_at += (linear_macs(a.query) + linear_macs(a.key)) * n_reached + products
        if isinstance(rule, MergeRule) and a:  # torch adds what has merged up, a graph multiplies it by a matrix
            n_reached = len(module.trace(**batch).layouts[index + 1].to_packed)
            n_gone = n_reached - len(reduction.kept)
            looked_at += linear_macs(a.key) * n_reached - n_gone**2 * spec.width
    assert macs(spec, n_tokens, query_tokens=2) + looked_at == counter.get_total_flops() // 2


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if not spec.rule_layers])
def test_linears_and_attention_products_are_all_macs(name):
    spec, n_tokens = SPECS[name], 17
    last = len(spec.layers) - 1 if spec.reads_first_token_only else None
    products = sum(
        2 * (1 if index == last else n_tokens) * n_tokens * layer.attention.heads * layer.attention.head_width
        for index, layer in enumerate(spec.layers)
        if layer.attention
    )
    assert sum(macs_by_linear(spec, n_tokens).values()) + products == macs(spec, n_tokens)


def test_token_rules_cost_less_the_longer_the_document_is():
    whole, pooled = tiny_spec(), SPECS["pooled"]
    assert macs(pooled, 11) == macs(whole, 11)  # the query, the first token and two separators stay
    saved = [macs(whole, n) - macs(pooled, n) for n in (12, 20, 30)]
    assert 0 == saved[0] < saved[1] < saved[2]  # a window of one token saves nothing
    assert macs(pooled, 20, query_tokens=0) < macs(pooled, 20)


def test_a_threshold_counts_by_the_share_that_it_was_set_for():
    spec = SPECS["kept_by_threshold"]
    rules: dict[int, Any] = {index: layer.token_rule for index, layer in enumerate(spec.layers)}
    by_share = [
        layer.changed(token_rule=(rule := rules[index]) and KeepShareRule(share=rule.share, scorer=rule.scorer))
        for index, layer in enumerate(spec.layers)
    ]
    assert macs(spec, 20) == macs(spec.changed(layers=tuple(by_share)), 20)


@pytest.mark.parametrize("name", SPECS)
def test_linears_and_tables_are_named_like_their_weights(name):
    spec = SPECS[name]
    module = module_of(spec)
    for where, linear in linears_of(spec):
        assert module.get_submodule(where).spec == linear
    for where, table in tables_of(spec):
        assert module.get_submodule(where).spec == table
    linear_tensors = {f"{where}.{part}" for where, _ in linears_of(spec) for part in ("weight", "up", "down")}
    table_tensors = {f"{where}.weight" for where, _ in tables_of(spec)}
    matrices = {tensor for tensor, shape in expected_shapes(spec).items() if len(shape) == 2}
    assert matrices <= linear_tensors | table_tensors


def test_last_layer_counts_for_the_first_token_only():
    first, mean = SPECS["similarity_first"], SPECS["similarity_mean"]
    saved_per_token = 2 * 16 * 16 + 2 * 16 * 32 + 2 * 20 * 16  # query, output, up, down, two attention products
    assert macs(mean, 20) - macs(first, 20) == 19 * saved_per_token
