"""Runs one component of a graph by itself in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnxruntime as ort
import torch
from onnx import helper

from compressor.export.graph import Dialect, Graph
from compressor.export.linears import Product
from compressor.runtime.session import session_options
from tests.tiny import WIDTH

DIALECTS: tuple[Dialect, ...] = ("ort", "portable")
TOLERANCE = 2e-6  # fp32 sums in another order, over values near 1


def run_component(
    dialect: Dialect, inputs: Mapping[str, np.ndarray], write: Callable[[Graph], str], kind: type = np.float32,
    options: ort.SessionOptions | None = None,
) -> np.ndarray:  # fmt: skip
    """Return the result of the value that ``write`` adds to a graph with these inputs, in a session as ours are."""
    graph = Graph(dialect, max_length=40)
    result = write(graph)
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)
        for name, array in inputs.items()
    ]
    output = helper.make_tensor_value_info(result, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), None)
    model = graph.finish(infos, [output], "component")
    session = ort.InferenceSession(
        model.SerializeToString(), options or session_options(threads=1), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, dict(inputs))
    return found


def tensors(module: torch.nn.Module, prefix: str, scale: float = 0.5) -> dict[str, torch.Tensor]:
    """Fill a module with random numbers and return its tensors under names with a prefix."""
    generator = torch.Generator().manual_seed(len(prefix))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        for name, buffer in module.named_buffers():
            assert name.endswith("input_ranges")
            buffer.copy_(torch.tensor([-2.0, 1.5]))  # some of the inputs lie outside
    module.requires_grad_(False).eval()
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


def values(*shape: int, seed: int = 0) -> np.ndarray:
    """Return random float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ragged_mask() -> np.ndarray:
    """Return an attention mask of four rows of 5, 9, 1 and 7 tokens, int64 ``[4, 9]``."""
    return (np.arange(9) < np.array([5, 9, 1, 7])[:, None]).astype(np.int64)


def close(found: np.ndarray, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    """Compare within rounding of the largest value."""
    assert found.shape == tuple(expected.shape)
    np.testing.assert_allclose(found, expected.numpy(), atol=tolerance * max(1.0, float(expected.abs().max())), rtol=0)


def whole(value: str, width: int = WIDTH, bias: torch.Tensor | None = None) -> Product:
    """Return a value as the product of one linear."""
    return Product(value=value, columns=width, width=width, bias=bias)
