"""Adapters beside matrices: PEFT's parametrizations, masked and rounded with their matrices, exactly merged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from compressor.ranker.linears import Linear
from compressor.ranker.spec import Float16, Int4Blocks, Int8Dynamic, Int8Static, LinearSpec, SparseForm
from compressor.training.adapters import AdaptedLinear, LoraAdapter, RandLoraAdapter, SharedBases
from tests.families.adapter_folders import low_rank, random_bases

SHAPES = [(16, 16), (40, 16), (16, 40)]  # outputs, inputs
RANK = 3


def linear_of(outputs: int, inputs: int, **changes: Any) -> Linear:
    linear = Linear(LinearSpec(outputs=outputs, inputs=inputs, **changes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if isinstance(linear.spec.form, SparseForm):
            linear.weight[linear.weight.abs() < 0.7] = 0
        if isinstance(linear.spec.precision, Int8Static):
            linear.input_ranges.copy_(torch.tensor([[-3.0, 3.0]]))
    return linear


def adapted_by(kind: str, linear: Linear, dropout: float = 0.0, bases: Any = "dense") -> AdaptedLinear:
    """Return the linear with an adapter that has learned something."""
    generator = torch.Generator().manual_seed(2)
    if kind == "lora":
        adapter: Any = LoraAdapter(linear.spec, RANK, 6.0, generator)
    else:
        shared = SharedBases([*SHAPES, (linear.spec.outputs, linear.spec.inputs)], RANK, seed=5, kind=bases)
        adapter = RandLoraAdapter(linear.spec, RANK, 6.0, shared)
    found = AdaptedLinear(linear, adapter, dropout)
    with torch.no_grad():
        for part in adapter.parts.values():
            part.add_(0.1 * torch.randn(part.shape, generator=generator))
    return found


def merged(linear: AdaptedLinear) -> Linear:
    result = Linear(linear.spec)
    result.load_state_dict(linear.settled(linear.state_dict()))
    return result


def values_of(inputs: int) -> torch.Tensor:
    return torch.randn(7, inputs, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["lora", "randlora"])
def test_the_forward_is_pefts(kind, shape):
    plain = linear_of(*shape)
    linear = adapted_by(kind, plain)
    values, parts = values_of(shape[1]), linear.adapter.parts
    if kind == "lora":
        reference = low_rank(parts["down"], parts["up"], 6.0 / RANK)
    else:
        bases = SharedBases(SHAPES, RANK, seed=5, kind="dense").like(parts["gamma"])
        assert {name: base.shape for name, base in bases.items()} == {"a": (RANK, 1, 40), "b": (40, 14, RANK)}
        reference = random_bases(bases["a"], bases["b"], parts["lambda"], parts["gamma"], 6.0 / RANK)
    expected = reference(plain, values, plain(values))
    torch.testing.assert_close(linear(values), expected, atol=1e-5, rtol=1e-5)
    assert (expected - plain(values)).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["lora", "randlora"])
@pytest.mark.parametrize("form", [{}, {"form": SparseForm()}], ids=["dense", "sparse"])
@pytest.mark.parametrize("precision", [None, Int8Dynamic(), Int8Static(), Int4Blocks(), Float16()], ids=str)
def test_merged_equals_unmerged(kind, form, precision):
    changes = {**form, **({"precision": precision} if precision else {})}
    linear = adapted_by(kind, linear_of(40, 16, **changes))
    values = values_of(16)
    expected = linear(values)
    found = merged(linear)(values)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        base = linear_of(40, 16, **changes)(values)
    assert (expected - base).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["lora", "randlora"])
def test_nothing_is_changed_at_first_and_zeros_never(kind):
    plain = linear_of(16, 40, form=SparseForm())
    generator = torch.Generator().manual_seed(2)
    adapter: Any = (
        LoraAdapter(plain.spec, RANK, 6.0, generator)
        if kind == "lora"
        else RandLoraAdapter(plain.spec, RANK, 6.0, SharedBases(SHAPES, RANK, 5, "dense"))
    )
    assert torch.equal(merged(AdaptedLinear(plain, adapter)).weight, plain.weight)
    linear = adapted_by(kind, plain)
    update = linear.matrix() - linear.weight
    zeros = plain.weight == 0
    assert 0.3 < zeros.float().mean() < 0.7
    assert (linear.matrix()[zeros] == 0).all()
    assert (merged(linear).weight[zeros] == 0).all()
    assert (update[~zeros] != 0).all()
    # What would land on zeros moves no adapter either.
    linear(values_of(40)).square().sum().backward()
    gradients = {name: part.grad for name, part in linear.adapter.named_parameters()}
    free = adapted_by(kind, plain)
    F.linear(values_of(40), free.weight + free.adapter.update() * ~zeros, free.bias).square().sum().backward()
    for name, part in free.adapter.named_parameters():
        torch.testing.assert_close(part.grad, gradients[name])
    assert all(name.startswith("adapter.") for name, one in linear.named_parameters() if one.grad is not None)


def test_rows_and_columns_of_nested_widths():
    for kind in ("lora", "randlora"):
        for form in ({}, {"form": SparseForm()}):
            linear = adapted_by(kind, linear_of(40, 16, **form))
            whole = merged(linear)
            for cut in ({"outputs": 10}, {"inputs": 6}, {"outputs": 10, "inputs": 6}):
                values = values_of(cut.get("inputs", 16))
                torch.testing.assert_close(linear(values, **cut), whole(values, **cut), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "randlora"])
def test_dropout_is_of_the_update_alone_and_of_training_alone(kind):
    linear = adapted_by(kind, linear_of(16, 40), dropout=0.5).eval()
    values = values_of(40)
    with torch.no_grad():
        torch.testing.assert_close(linear(values), merged(linear)(values), atol=1e-5, rtol=1e-5)
    torch.manual_seed(4)
    found = linear(values)
    torch.manual_seed(4)
    seen = F.dropout(values, 0.5)
    expected = F.linear(values, linear.weight, linear.bias) + F.linear(seen, linear.adapter.update())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="rounded together"):
        adapted_by(kind, linear_of(16, 40, precision=Int8Dynamic()), dropout=0.5)


@pytest.mark.parametrize("kind", ["dense", "sparse", "very_sparse"])
def test_bases_are_those_of_their_seed_and_stored_nowhere(kind):
    part = torch.zeros(1)
    one, same, other = (SharedBases(SHAPES, RANK, seed, kind).like(part) for seed in (5, 5, 6))
    for name in ("a", "b"):
        assert torch.equal(one[name], same[name])
        assert not torch.equal(one[name], other[name])
        assert float(one[name].std()) == pytest.approx(1, abs=1e-5)
        share = {"dense": 1.0, "sparse": 1 / 3, "very_sparse": 1 / 40**0.5}[kind]
        assert float((one[name] != 0).float().mean()) == pytest.approx(share, abs=0.12)
    linear = adapted_by("randlora", linear_of(16, 40), bases=kind)
    stored = {"weight", "bias", "adapter.parts.lambda", "adapter.parts.gamma"}
    assert set(linear.state_dict()) == stored
    assert {name for name, one in linear.named_parameters() if one.requires_grad} == {
        "adapter.parts.lambda", "adapter.parts.gamma"
    }  # fmt: skip


def test_an_update_of_random_bases_has_full_rank_and_one_of_lora_its_own():
    for kind, rank in (("lora", RANK), ("randlora", 16)):
        update = adapted_by(kind, linear_of(40, 16)).adapter.update()
        assert int(torch.linalg.matrix_rank(update)) == rank
