"""Norms, activations, linears and tables of the written graph against their torch twins, in both dialects."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from compressor.export.layers import activate, norm
from compressor.export.linears import add_bias, fused_linears, linear, table
from compressor.ranker.layers import activate as torch_activate
from compressor.ranker.layers import build_norm
from compressor.ranker.linears import Linear, Table
from compressor.ranker.spec import (
    Activation,
    Float16,
    Int4Blocks,
    Int8Blocks,
    Int8Dynamic,
    Int8Rows,
    Int8Static,
    LinearSpec,
    LowRankForm,
    NormSpec,
    TableSpec,
)
from tests.export.component import DIALECTS, TOLERANCE, close, run_component, tensors, values, whole
from tests.tiny import WIDTH

pytestmark = pytest.mark.parametrize("dialect", DIALECTS)

NORMS = {
    "layer": NormSpec(epsilon=1e-5),
    "layer without bias": NormSpec(epsilon=1e-5, bias=False),
    "rms": NormSpec(kind="rms", epsilon=1e-6, bias=False),
}
LINEARS = {
    "dense": LinearSpec(inputs=WIDTH, outputs=24),
    "without bias": LinearSpec(inputs=WIDTH, outputs=24, bias=False),
    "low rank": LinearSpec(inputs=WIDTH, outputs=24, form=LowRankForm(rank=3)),
    "int8": LinearSpec(inputs=WIDTH, outputs=24, precision=Int8Dynamic()),
    "int8 of 7 bits": LinearSpec(inputs=WIDTH, outputs=24, precision=Int8Dynamic(reduce_range=True)),
    "int8 low rank": LinearSpec(inputs=WIDTH, outputs=24, precision=Int8Dynamic(), form=LowRankForm(rank=3)),
    "static int8": LinearSpec(inputs=WIDTH, outputs=24, precision=Int8Static()),
    "static int8 low rank": LinearSpec(inputs=WIDTH, outputs=24, precision=Int8Static(), form=LowRankForm(rank=3)),
    "int8 blocks": LinearSpec(inputs=WIDTH, outputs=24, precision=Int8Blocks()),
    "int4 blocks": LinearSpec(inputs=WIDTH, outputs=24, precision=Int4Blocks()),
    "int4 blocks low rank": LinearSpec(inputs=WIDTH, outputs=24, precision=Int4Blocks(), form=LowRankForm(rank=3)),
    "fp16": LinearSpec(inputs=WIDTH, outputs=24, precision=Float16()),
}


@pytest.mark.parametrize("spec", NORMS.values(), ids=NORMS)
def test_norm(dialect, spec):
    module = build_norm(spec, WIDTH)
    weights = tensors(module, "n")
    x = values(5, WIDTH) * 3 + 1
    close(run_component(dialect, {"x": x}, lambda g: norm(g, "norm", "n", spec, weights, "x")), module(torch.tensor(x)))


def test_absent_norm_is_the_identity(dialect):
    x = values(5, WIDTH)
    found = run_component(dialect, {"x": x}, lambda g: g.node("Identity", [norm(g, "n", "n", None, {}, "x")], "same"))
    assert np.array_equal(found, x)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("kind", get_args(Activation))
def test_activation(dialect, kind, biased):
    x = np.linspace(-9, 9, 7 * WIDTH, dtype=np.float32).reshape(7, WIDTH)
    bias = torch.tensor(values(WIDTH)) if biased else None
    found = run_component(dialect, {"x": x}, lambda g: activate(g, "act", kind, whole("x", bias=bias)))
    close(found, torch_activate(torch.tensor(x) + (0 if bias is None else bias), kind))


@pytest.mark.parametrize("spec", LINEARS.values(), ids=LINEARS)
def test_linear(dialect, spec):
    module = Linear(spec)
    weights = tensors(module, "l")
    x = values(9, WIDTH)
    found = run_component(dialect, {"x": x}, lambda g: add_bias(g, "sum", linear(g, "linear", "l", spec, weights, "x")))
    # ONNX Runtime's CPU computes half precision in fp32 and skips some of the roundings in between: a step of 2^-11.
    close(found, module(torch.tensor(x)), 5e-4 if spec.precision.kind == "fp16" else TOLERANCE)


@pytest.mark.parametrize("spec", [LINEARS[n] for n in ("dense", "int8", "static int8", "int4 blocks")])
def test_linears_of_one_input_share_a_product(dialect, spec):
    modules = {part: Linear(spec) for part in ("query", "value")}
    weights = {
        name: tensor for part, module in modules.items() for name, tensor in tensors(module, f"a.{part}").items()
    }
    x = values(9, WIDTH)
    made = []

    def write(graph):
        made.extend(fused_linears(graph, "a", "a", dict.fromkeys(modules, spec), weights, "x"))
        return graph.node("Identity", [made[0].value], "all")

    found = run_component(dialect, {"x": x}, write)
    assert [(one.first, one.width, one.columns) for one in made] == [(0, 24, 48), (24, 24, 48)]
    for one, module in zip(made, modules.values(), strict=True):
        bias = 0 if one.bias is None else one.bias.numpy()
        close(found[:, one.first : one.first + one.width] + bias, module(torch.tensor(x)))


@pytest.mark.parametrize("first_row", [0, 2])
@pytest.mark.parametrize("precision", [None, Int8Rows(), Int4Blocks(), Float16()], ids=["fp32", "int8", "int4", "fp16"])
@pytest.mark.parametrize("width", [6, 64, 67])
def test_table(dialect, precision, width, first_row):
    spec = TableSpec(rows=11, width=width, **({"precision": precision} if precision else {}))
    module = Table(spec)
    weights = tensors(module, "t")
    ids = np.array([0, 3, 8, 3], dtype=np.int64)
    found = run_component(dialect, {"ids": ids}, lambda g: table(g, "table", "t", spec, weights, "ids", first_row))
    close(found, module(torch.tensor(ids + first_row)))
