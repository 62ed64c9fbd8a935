"""The packed encoder against a plain padded one, and what packing promises: padding and neighbors change nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compressor.ranker.attention import visible
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import CausalPattern, FullPattern, RankerSpec, TableSpec, WindowPattern
from compressor.ranker.tokens import TokenLayout
from tests.ranker.cases import SPECS
from tests.ranker.padded_oracle import oracle
from tests.tiny import batch_of, build_ranker, lively_weights, module_of, tokenizer_files

# fp32 against float64: rounding over two or three layers with activations of size 1 to 10.
ORACLE_TOLERANCE = 1e-5
# Other batch shapes make other blocks in matrix products: sums in another order.
BATCH_TOLERANCE = 2e-6


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> RankerSpec:
    return SPECS[request.param]


LENGTHS = [1, 7, 40, 23, 2]


@torch.inference_mode()
def test_packed_equals_padded_reference(spec):
    weights = lively_weights(spec)
    batch = batch_of(spec, LENGTHS)
    expected = oracle(spec, weights, **batch)
    found = module_of(spec)(**batch)
    assert found.dtype == torch.float32
    assert found.shape == ((len(LENGTHS), 1) if spec.output_name == "logits" else (len(LENGTHS), spec.width))
    assert expected.std() > 0.01  # a comparison of constants would prove nothing
    torch.testing.assert_close(found.double(), expected, rtol=ORACLE_TOLERANCE, atol=ORACLE_TOLERANCE)


@torch.inference_mode()
def test_a_trace_ends_where_forward_ends(spec):
    batch = batch_of(spec, LENGTHS)
    module = module_of(spec)
    attends = next(index for index, layer in enumerate(spec.layers) if layer.attention)
    trace = module.trace(**batch, relations=[attends])
    rows = [int(layout.mask.sum()) for layout in trace.layouts]
    assert rows[0] == sum(LENGTHS)
    if spec.reads_first_token_only and len(spec.layers) > 1:
        rows[-1] = len(LENGTHS)
    assert [tuple(state.shape) for state in trace.states] == [(n_rows, spec.width) for n_rows in rows]
    # Where the head reads the first token alone, forward computes the last layer for that token only.
    torch.testing.assert_close(module(**batch), trace.logits, rtol=0, atol=BATCH_TOLERANCE)
    layer: Any = module.layers[attends]
    attention, read = layer.attention, trace.states[attends]
    normed = read if layer.spec.norm_placement == "post" else layer.attention_norm(read)
    for found, linear in zip(trace.relations[attends], (attention.query, attention.key, attention.value), strict=True):
        torch.testing.assert_close(found, linear(normed), rtol=0, atol=BATCH_TOLERANCE)


def test_attention_with_gradients_gives_the_same_scores_and_finite_gradients(spec):
    module = module_of(spec)
    batch = batch_of(spec, LENGTHS)
    with torch.inference_mode():
        expected = module(**batch)
    module.requires_grad_(True)
    found = module(**batch)
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=BATCH_TOLERANCE)
    found.sum().backward()
    grads = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    assert len(grads) > 10
    assert all(grad.isfinite().all() for grad in grads)


@torch.inference_mode()
def test_first_token_layer_equals_the_full_layer(spec):
    module = module_of(spec)
    batch = batch_of(spec, LENGTHS)
    layout = TokenLayout.of(batch["attention_mask"])
    values = module.embed(layout, batch["input_ids"], batch["token_type_ids"])
    full = module.layers[0](values, layout)
    alone = module.layers[0](values, layout, True)
    torch.testing.assert_close(alone, full[layout.first], rtol=0, atol=5e-6)


@torch.inference_mode()
def test_last_layer_is_computed_for_first_tokens_only_where_nothing_else_is_read(spec):
    module = module_of(spec)
    rows = []
    module.layers[-1].register_forward_hook(lambda _module, _inputs, output: rows.append(output.shape[0]))
    module(**batch_of(spec, LENGTHS))
    n_reached = len(module.trace(**batch_of(spec, LENGTHS)).layouts[-1].to_packed)
    assert rows[0] == (len(LENGTHS) if spec.head.pool == "first" else n_reached)
    assert (n_reached < sum(LENGTHS)) == bool(spec.rule_layers)


@torch.inference_mode()
def test_score_is_the_same_alone_and_in_any_batch(spec):
    module = module_of(spec)
    together = batch_of(spec, LENGTHS)
    in_batch = module(**together)
    for row, length in enumerate(LENGTHS):
        alone = {name: tensor[row : row + 1, :length] for name, tensor in together.items()}
        torch.testing.assert_close(module(**alone), in_batch[row : row + 1], rtol=0, atol=BATCH_TOLERANCE)
    wider = batch_of(spec, LENGTHS, columns=spec.max_length)
    torch.testing.assert_close(module(**wider), in_batch, rtol=0, atol=BATCH_TOLERANCE)


@torch.inference_mode()
def test_content_of_padding_cannot_change_a_score(spec):
    module = module_of(spec)
    batch = batch_of(spec, LENGTHS)
    padding = batch["attention_mask"] == 0
    other = {**batch, "input_ids": torch.where(padding, 99, batch["input_ids"])}
    other["token_type_ids"] = torch.where(padding, 0, batch["token_type_ids"])
    assert not torch.equal(other["input_ids"], batch["input_ids"])
    assert torch.equal(module(**other), module(**batch))


@torch.inference_mode()
def test_ids_outside_the_vocabulary_are_harmless_in_padding(spec):
    batch = batch_of(spec, LENGTHS)
    module = module_of(spec)
    expected = module(**batch)
    batch["input_ids"] = torch.where(batch["attention_mask"] == 0, 10**6, batch["input_ids"])
    assert torch.equal(module(**batch), expected)


@torch.inference_mode()
def test_causal_first_token_sees_only_itself():
    spec = SPECS["causal_first"]
    module = module_of(spec)
    batch = batch_of(spec, [10])
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, 1:] = 9
    assert torch.equal(module(**changed), module(**batch))


@torch.inference_mode()
def test_window_hides_what_is_out_of_reach():
    spec = SPECS["window"]  # two layers of reach 2: the first token learns from at most 4 places away
    module = module_of(spec)
    batch = batch_of(spec, [10])
    far, near = ({**batch, "input_ids": batch["input_ids"].clone()} for _ in range(2))
    far["input_ids"][0, 5:] = 9
    near["input_ids"][0, 4] = 9
    assert torch.equal(module(**far), module(**batch))
    assert not torch.allclose(module(**near), module(**batch), atol=1e-4)


@torch.inference_mode()
def test_segments_default_to_zero():
    spec = SPECS["bert"]
    module = module_of(spec)
    batch = batch_of(spec, [6, 3])
    batch["token_type_ids"] = torch.zeros_like(batch["token_type_ids"])
    without = {name: tensor for name, tensor in batch.items() if name != "token_type_ids"}
    assert torch.equal(module(**without), module(**batch))


@torch.inference_mode()
def test_position_offset_shifts_the_table():
    spec = SPECS["roberta"]
    weights = lively_weights(spec)
    shifted_weights = {**weights, "embeddings.positions.weight": weights["embeddings.positions.weight"][2:].clone()}
    embeddings = spec.embeddings.changed(position_offset=0, positions=TableSpec(rows=40, width=spec.width))
    plain = Ranker(spec=spec.changed(embeddings=embeddings), weights=shifted_weights, tokenizer_files=tokenizer_files())
    batch = batch_of(spec, LENGTHS)
    assert torch.equal(plain.module(**batch), module_of(spec)(**batch))


@pytest.mark.parametrize("name", ["bert", "similarity_mean"])
def test_ranker_scores_do_not_depend_on_the_batch_budget(name, tiny_pairs):
    ranker = build_ranker(SPECS[name])
    expected = ranker.score(tiny_pairs)
    assert expected.shape == (len(tiny_pairs),)
    assert expected.std() > 0.01
    for batch_tokens in (1, 64, 100_000):
        np.testing.assert_allclose(ranker.score(tiny_pairs, batch_tokens=batch_tokens), expected, atol=BATCH_TOLERANCE)
    one_by_one = [ranker.score([pair])[0] for pair in tiny_pairs]
    np.testing.assert_allclose(one_by_one, expected, atol=BATCH_TOLERANCE)


@torch.inference_mode()
def test_bf16_autocast_is_near_fp32(spec):
    module = module_of(spec)
    batch = batch_of(spec, LENGTHS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = module(**batch)
    exact = module(**batch)
    assert not torch.equal(rough.float(), exact)
    # bfloat16 keeps 8 bits: about 0.4 % a product, some steps of it over the layers.
    assert (rough.float() - exact).abs().max() < 0.06 * max(1.0, float(exact.abs().max()))


@pytest.mark.parametrize("pattern", [FullPattern(), WindowPattern(reach=1), CausalPattern()])
@pytest.mark.parametrize("first_only", [False, True])
def test_every_query_sees_a_real_token_of_its_row(pattern, first_only):
    layout = TokenLayout.of(torch.tensor([[1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]))
    seen = visible(pattern, layout, first_only)
    assert not (seen & ~layout.mask[:, None, None, :]).any()
    assert seen.any(dim=-1).all()
