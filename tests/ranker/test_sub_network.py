"""Parts of an encoder: they score as a ranker does from which the rest was cut, in forward and backward passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compressor.algorithms.subcloning import sliced, within_layers
from compressor.passes.kept_layers import cut_spec, cut_weights
from compressor.ranker.encoder import Encoder
from compressor.ranker.narrowing import narrowed
from compressor.ranker.spec import DropoutSpec, RankerSpec
from compressor.ranker.sub_network import WHOLE, SubNetwork, running
from tests.ranker.cases import SPECS
from tests.tiny import batch_of, build_ranker, tiny_layer, tiny_spec

LENGTHS = [1, 12, 30, 5]
TOLERANCE = 2e-5  # a layer computed for first tokens alone, sums in another order


@pytest.fixture(params=[name for name, spec in SPECS.items() if len(spec.layers) > 1])
def spec(request: pytest.FixtureRequest) -> RankerSpec:
    return SPECS[request.param]


def cut_layers(spec: RankerSpec, skipped: int) -> Encoder:
    kept = [layer for layer in range(len(spec.layers)) if layer != skipped]
    ranker = build_ranker(spec)
    return ranker.changed(spec=cut_spec(spec, kept), weights=cut_weights(ranker.weights, kept)).module


def cut_neurons(spec: RankerSpec, widths: list[int]) -> Encoder:
    ranker, heads = build_ranker(spec), [layer.heads for layer in spec.layers]
    kept = within_layers(spec, [torch.arange(one) for one in heads], [torch.arange(width) for width in widths])
    small = narrowed(spec, width=spec.width, heads=heads, ffn_widths=widths)
    return ranker.changed(spec=small, weights=sliced(spec, ranker.weights, kept)).module


def some_widths(spec: RankerSpec) -> list[int]:
    """Return widths that differ from layer to layer, and are less than all."""
    return [max(1, layer.ffn_width // (2 + index)) if layer.ffn_width else 0 for index, layer in enumerate(spec.layers)]


@torch.inference_mode()
def test_layers_left_out_are_as_if_cut(spec):
    module, batch = build_ranker(spec).module, batch_of(spec, LENGTHS)
    whole = module(**batch)
    for skipped in range(len(spec.layers)):
        expected = cut_layers(spec, skipped)(**batch)
        with running(module, SubNetwork(skipped=frozenset({skipped}))):
            torch.testing.assert_close(module(**batch), expected, rtol=0, atol=TOLERANCE)
            trace = module.trace(**batch)
        torch.testing.assert_close(trace.logits, expected, rtol=0, atol=TOLERANCE)
        if skipped - 1 in trace.reductions:  # a rule acts behind its layer's own state
            assert torch.equal(trace.states[skipped + 1], trace.reductions[skipped - 1].states(trace.states[skipped]))
        else:
            assert trace.states[skipped + 1] is trace.states[skipped]
        assert trace.skipped == {skipped}
        assert set(trace.exits) == set(spec.exit_layers) - {skipped}
        assert not torch.allclose(whole, expected, rtol=0, atol=TOLERANCE)
    assert torch.equal(module(**batch), whole)


@torch.inference_mode()
def test_first_neurons_are_as_if_the_others_were_cut(spec):
    module, batch, widths = build_ranker(spec).module, batch_of(spec, LENGTHS), some_widths(spec)
    whole = module(**batch)
    with running(module, SubNetwork(ffn_widths=widths)):
        found, trace = module(**batch), module.trace(**batch)
    cut = cut_neurons(spec, widths)
    torch.testing.assert_close(found, cut(**batch), rtol=0, atol=TOLERANCE)
    for layer, logits in cut.trace(**batch).exits.items():
        torch.testing.assert_close(trace.exits[layer], logits, rtol=0, atol=TOLERANCE)
    assert any(widths)
    assert not torch.allclose(found, whole, rtol=0, atol=TOLERANCE)
    assert torch.equal(module(**batch), whole)


@torch.inference_mode()
def test_relations_are_told_of_layers_that_run_alone():
    spec = tiny_spec(layers=(tiny_layer(),) * 3)
    module, batch = build_ranker(spec).module, batch_of(spec, LENGTHS)
    for skipped in (1, 2):
        with running(module, SubNetwork(skipped=frozenset({skipped}))):
            found = module.trace(**batch, relations=(0, skipped))
        assert set(found.relations) == {0}
        torch.testing.assert_close(found.logits, cut_layers(spec, skipped)(**batch), rtol=0, atol=TOLERANCE)


def gradients(module: Encoder, part: SubNetwork, batch: dict[str, Tensor]) -> dict[str, Tensor | None]:
    with running(module, part):
        loss = module(**batch).square().sum()
    loss.backward()  # outside the block: what is computed twice runs the same part again
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def test_gradients_are_the_parts_own_with_layers_computed_twice_too():
    spec = tiny_spec(dropout=DropoutSpec(), layers=(tiny_layer(),) * 3)
    batch, part = batch_of(spec, LENGTHS), SubNetwork(skipped=frozenset({1}), ffn_widths=[8, 32, 5])
    once, twice = build_ranker(spec).trainable(), build_ranker(spec).trainable()
    twice.gradient_checkpointing = True
    found, again = (gradients(module, part, batch) for module in (once, twice))
    for name, gradient in found.items():
        other = again[name]
        if name.startswith("layers.1."):
            assert gradient is None
            assert other is None
            continue
        assert gradient is not None
        assert other is not None
        torch.testing.assert_close(gradient, other)
    up, down = found["layers.0.ffn.up.weight"], found["layers.0.ffn.down.weight"]
    assert up is not None
    assert down is not None
    assert (up[8:] == 0).all()
    assert (down[:, 8:] == 0).all()
    assert up[:8].abs().amin(dim=1).max() > 0


def test_the_whole_comes_back_whatever_happens():
    module = build_ranker().module
    outer = SubNetwork(ffn_widths=[4, 4])
    with running(module, outer):
        with pytest.raises(RuntimeError, match="within"), running(module, SubNetwork(skipped=frozenset({0}))):
            raise RuntimeError("within")
        assert module.part is outer
    assert module.part is WHOLE
