"""Linear forms and the int8 simulation, against a numpy oracle and ONNX Runtime's own op."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from compressor.ranker.linears import Linear, Table
from compressor.ranker.quantizers import int8_rows, straight_through, uint8_activations
from compressor.ranker.spec import (
    DenseSparseForm,
    Int4Blocks,
    Int8Dynamic,
    Int8Rows,
    LinearSpec,
    LowRankForm,
    TableSpec,
)


def filled(spec: LinearSpec, seed: int = 0) -> Linear:
    generator = torch.Generator().manual_seed(seed)
    module = Linear(spec)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return module


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ACTIVATIONS = {
    "both signs": numbers(7, 5) * 3,
    "positive": numbers(7, 5).abs() + 2,
    "negative": -numbers(7, 5).abs() - 2,
    "one outlier": torch.cat([numbers(6, 5) * 0.1, torch.full((1, 5), 100.0)]),
    "tiny": numbers(7, 5) * 1e-20,
    "halves": torch.tensor([[0.0, 255.0, 0.5, 1.5, 2.5, 126.5, 127.5]]),
    "halves beside a zero point": torch.tensor([[-1.0, 254.0, 0.5, -0.5, 2.5, 3.5]]),
    "zeros": torch.zeros(3, 4),
}


def dynamic_quantize_linear(values: np.ndarray) -> np.ndarray:
    """Return what ONNX DynamicQuantizeLinear keeps of the values, by the formulas of its reference page."""
    low, high = np.float32(min(values.min(), 0)), np.float32(max(values.max(), 0))
    scale = (high - low) / np.float32(255) or np.float32(1)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    kept = np.clip(np.rint(values / scale) + zero, 0, 255)
    return (kept - zero) * scale


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_round_like_the_onnx_formula(name):
    values = ACTIVATIONS[name]
    np.testing.assert_array_equal(uint8_activations(values).numpy(), dynamic_quantize_linear(values.numpy()))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_round_like_onnxruntime(name):
    values = ACTIVATIONS[name].numpy()
    outputs = [
        ("q", TensorProto.UINT8, values.shape),
        ("scale", TensorProto.FLOAT, []),
        ("zero", TensorProto.UINT8, []),
    ]
    graph = helper.make_graph(
        [helper.make_node("DynamicQuantizeLinear", ["x"], [output[0] for output in outputs])],
        "rounding",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape)],
        [helper.make_tensor_value_info(*output) for output in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    quantized, scale, zero = session.run(None, {"x": values})
    expected = (quantized.astype(np.float32) - np.float32(zero)) * scale
    np.testing.assert_array_equal(uint8_activations(ACTIVATIONS[name]).numpy(), expected)


@pytest.mark.parametrize("levels", [127, 63])
def test_rows_are_rounded_to_their_own_scale(levels):
    weight = numbers(6, 9) * torch.logspace(-6, 3, 6)[:, None]
    weight[2] = 0
    values, scales = int8_rows(weight, levels=levels)
    assert (values.dtype, values.shape, scales.shape) == (torch.int8, (6, 9), (6,))
    largest = np.abs(weight.numpy()).max(axis=1)
    expected = np.where(largest > 0, largest / np.float32(levels), 1)
    np.testing.assert_array_equal(scales.numpy(), expected)
    np.testing.assert_array_equal(values.numpy(), np.rint(weight.numpy() / expected[:, None]))
    assert values.abs().amax(dim=1).tolist() == [levels, levels, 0, levels, levels, levels]
    assert ((values * scales[:, None] - weight).abs() <= scales[:, None] / 2 * 1.001).all()


def test_rounding_of_rows_is_stable():
    values, scales = int8_rows(numbers(4, 8))
    again, same_scales = int8_rows(values * scales[:, None])
    torch.testing.assert_close(same_scales, scales)
    assert torch.equal(again, values)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("reduce_range", [False, True])
def test_int8_linear_is_the_product_of_rounded_factors(rank, reduce_range):
    form = {"form": LowRankForm(rank=rank)} if rank else {}
    spec = LinearSpec(inputs=5, outputs=6, precision=Int8Dynamic(reduce_range=reduce_range), **form)
    module, values = filled(spec), numbers(7, 5, seed=9)
    levels = 63 if reduce_range else 127

    def product(left: np.ndarray, weight: torch.Tensor) -> np.ndarray:
        rounded, scales = int8_rows(weight, levels=levels)
        return dynamic_quantize_linear(left) @ (rounded.numpy() * scales.numpy()[:, None]).T

    factors = [module.down, module.up] if rank else [module.weight]
    expected = values.numpy()
    for factor in factors:
        expected = product(expected, factor)
    assert module.bias is not None
    with torch.no_grad():
        found = module(values).numpy()
    np.testing.assert_allclose(found, expected + module.bias.detach().numpy(), atol=1e-5)
    exact = filled(spec.changed(precision={"kind": "fp32"}))(values).detach().numpy()
    assert 1e-4 < np.abs(found - exact).max() < 0.3


def test_gradients_pass_straight_through():
    values = numbers(3, 4).requires_grad_()
    straight_through(values, torch.zeros(3, 4)).mul(2).sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, torch.full((3, 4), 2.0))

    module = filled(LinearSpec(inputs=5, outputs=6, precision=Int8Dynamic()))
    inputs = numbers(7, 5, seed=3).requires_grad_()
    module(inputs).sum().backward()
    rounded, scales = int8_rows(module.weight)
    # As for a plain linear whose factors are the rounded ones.
    torch.testing.assert_close(inputs.grad, (rounded * scales[:, None]).sum(dim=0).expand(7, 5))
    torch.testing.assert_close(module.weight.grad, uint8_activations(inputs).detach().sum(dim=0).expand(6, 5))


def test_rounding_is_the_same_with_and_without_gradients():
    module, values = filled(LinearSpec(inputs=5, outputs=6, precision=Int8Dynamic())), numbers(7, 5)
    with torch.no_grad():
        expected = module(values)
    torch.testing.assert_close(module(values), expected, rtol=0, atol=2e-6)


def test_full_rank_equals_dense():
    dense = filled(LinearSpec(inputs=6, outputs=4))
    left, values, right = torch.linalg.svd(dense.weight.detach(), full_matrices=False)
    thin = Linear(LinearSpec(inputs=6, outputs=4, form=LowRankForm(rank=4)))
    thin.load_state_dict({"down": right, "up": left * values, "bias": dense.state_dict()["bias"]})
    inputs = numbers(9, 6)
    torch.testing.assert_close(thin(inputs), dense(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("codes", ["rows", "columns"])
@pytest.mark.parametrize(("atoms", "blocks"), [(7, 1), (300, 2)])
def test_atoms_and_codes_are_one_matrix_of_which_parts_can_be_run(codes, atoms, blocks):
    form = DenseSparseForm(codes=codes, atoms=atoms, nonzeros=3, blocks=blocks)
    module = filled(LinearSpec(inputs=6, outputs=4, form=form))
    drawn = torch.rand(*module.values.shape[:2], atoms, generator=torch.Generator().manual_seed(1))
    module.indices.copy_(drawn.argsort(dim=2)[..., :3])
    assert module.indices.dtype == (torch.uint8 if atoms == 7 else torch.int16)
    matrix = torch.zeros(4, 6)
    coded = matrix if codes == "rows" else matrix.T
    length = coded.shape[1] // blocks
    found = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    for block in range(blocks):
        for vector in range(len(coded)):
            for value, index in zip(found["values"][block, vector], found["indices"][block, vector], strict=True):
                coded[vector, block * length : (block + 1) * length] += value * found["atoms"][block, int(index)]
    inputs = numbers(5, 6)
    assert module.bias is not None
    torch.testing.assert_close(module(inputs), inputs @ matrix.T + module.bias)
    torch.testing.assert_close(module(inputs, outputs=2), module(inputs)[:, :2])
    torch.testing.assert_close(module(inputs[:, :4], inputs=4), inputs[:, :4] @ matrix[:, :4].T + module.bias)


def test_linear_without_bias():
    module = filled(LinearSpec(inputs=3, outputs=2, bias=False))
    assert [name for name, _ in module.named_parameters()] == ["weight"]
    assert torch.equal(module(torch.zeros(4, 3)), torch.zeros(4, 2))


def test_table_rows_are_rounded_one_by_one():
    table = Table(TableSpec(rows=5, width=4, precision=Int8Rows()))
    table.weight.data = numbers(5, 4) * torch.logspace(-3, 3, 5)[:, None]
    values, scales = int8_rows(table.weight)
    ids = torch.tensor([3, 0, 3, 4])
    with torch.no_grad():
        assert torch.equal(table(ids), (values * scales[:, None])[ids])
    table(ids).sum().backward()
    assert table.weight.grad is not None
    assert torch.equal(table.weight.grad, torch.tensor([1.0, 0, 0, 2, 1])[:, None].expand(5, 4))


def test_table_rows_take_4_bits_by_blocks():
    table = Table(TableSpec(rows=5, width=72, precision=Int4Blocks(block_size=32)))
    table.weight.data = numbers(5, 72) * torch.logspace(-3, 3, 5)[:, None]
    ids = torch.tensor([3, 0, 3, 4])
    with torch.no_grad():
        found = table(ids)
    for begin in (0, 32, 64):
        block, exact = found[:, begin : begin + 32], table.weight.data[ids, begin : begin + 32]
        assert all(len(row.unique()) <= 16 for row in block)
        step = exact.abs().amax(dim=1) / 8
        assert ((block - exact).abs() <= 1.001 * step[:, None]).all()
    table(ids).sum().backward()
    assert table.weight.grad is not None
    assert torch.equal(table.weight.grad, torch.tensor([1.0, 0, 0, 2, 1])[:, None].expand(5, 72))
