"""Could a product with sparse codes ever be faster than the matrix that they stand for?

A matrix ``[outputs, inputs]`` stored as atoms and codes (`dense_sparse`) can be multiplied without being expanded:
``x @ atoms.T`` first, a thin product, and then, for each output, a sum over the few atoms of its code. Timed here on
the same inputs, taking turns, each row as a ratio to the dense product of its own runtime within the turn:

- ``numpy_gather``: one gather, one product and one sum for each non-zero, over all outputs at once.
- ``torch_csr``: the codes as a CSR matrix, by torch's sparse kernel.
- ``onnxruntime_gather``: a Gather, a Mul and an Add for each non-zero, as a graph could have them.
- ``torch_thin``, ``numpy_thin``: ``x @ atoms.T`` alone, which no kernel for the codes could do without.

The last ones decide whether a kernel of one's own is worth a thought: in the time that they leave over, it has
``outputs · nonzeros`` gathered multiply-adds to do for each token. Takes about two minutes on two idle cores; on a busy
machine the numbers mean nothing.

    python benchmarks/dense_sparse_speed.py --out runs/dense_sparse_speed.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.bench.machine import describe_machine
from compressor.passes.dense_sparse import DenseSparse
from compressor.ranker.spec import DenseSparseForm, LinearSpec
from compressor.runtime.session import session_options
from compressor.storage import write_json

Product = Callable[[], np.ndarray]

SHAPES = ((384, 1536), (768, 3072))  # inputs, outputs: MiniLM's and BERT's first feed-forward matrix
SHARES = (0.5, 0.36, 0.2, 0.1)  # of the bytes; 0.36 is 2.8 times smaller
LEAST_ATOMS_PER_NONZERO = 4


def main() -> int:
    """Measure and write the table."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    rows = []
    for inputs, outputs in SHAPES:
        for share in SHARES:
            row = measure(inputs, outputs, share, arguments)
            rows.append(row)
            ratios = ", ".join(f"{name} {found['ratio']:.2f}" for name, found in row["products"].items())
            print(
                f"{outputs} × {inputs} at {share:.0%}, {row['nonzeros']} of {row['atoms']} atoms: {ratios}", flush=True
            )
    result = {
        "machine": describe_machine().model_dump(mode="json"),
        "load_average": Path("/proc/loadavg").read_text().split()[:3] if Path("/proc/loadavg").exists() else None,
        "threads": arguments.threads, "tokens": arguments.tokens, "rounds": arguments.rounds, "rows": rows,
    }  # fmt: skip
    write_json(arguments.out, result)
    return 0


def measure(inputs: int, outputs: int, share: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time all products of one shape and share; ratios above 1 are faster than the runtime's own dense product."""
    step = DenseSparse(share=share, nonzeros=1 / LEAST_ATOMS_PER_NONZERO)
    form = step.form_of("ffn.up", LinearSpec(inputs=inputs, outputs=outputs))
    draw = np.random.default_rng(0)
    atoms = draw.standard_normal((form.atoms, inputs), dtype=np.float32)
    places = draw.random((outputs, form.atoms)).argsort(axis=1)[:, : form.nonzeros]
    values = draw.standard_normal((outputs, form.nonzeros), dtype=np.float32)
    read = draw.standard_normal((arguments.tokens, inputs), dtype=np.float32)
    products = _products(form, atoms, places, values, read, arguments.threads)
    expected = products["numpy_dense"]()
    for name, product in products.items():
        if not name.endswith("_thin"):
            np.testing.assert_allclose(product(), expected, rtol=1e-3, atol=1e-2, err_msg=name)
    seconds: dict[str, list[float]] = {name: [] for name in products}
    for number in range(arguments.rounds + 1):
        for name, product in products.items():
            start = time.perf_counter()
            product()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {
        "inputs": inputs, "outputs": outputs, "share": share, "atoms": form.atoms, "nonzeros": form.nonzeros,
        "products": {name: _summary(name, seconds) for name in products},
    }  # fmt: skip


def _summary(name: str, seconds: dict[str, list[float]]) -> dict[str, float]:
    dense = seconds[f"{name.partition('_')[0]}_dense"]
    ratios = sorted(one / other for one, other in zip(dense, seconds[name], strict=True))
    return {
        "median_ms": 1000 * statistics.median(seconds[name]),
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[len(ratios) // 10],
        "ratio_high": ratios[-1 - len(ratios) // 10],
    }


def _products(
    form: DenseSparseForm, atoms: np.ndarray, places: np.ndarray, values: np.ndarray, read: np.ndarray, threads: int
) -> dict[str, Product]:
    """Return ``read [T, inputs]`` times the matrix, ``[T, outputs]``, in every way."""
    codes = np.zeros((len(places), form.atoms), dtype=np.float32)
    np.put_along_axis(codes, places, values, axis=1)
    matrix = np.ascontiguousarray((codes @ atoms).T)
    thin = np.ascontiguousarray(atoms.T)
    tensors = {"read": torch.from_numpy(read), "matrix": torch.from_numpy(matrix), "thin": torch.from_numpy(thin)}
    sparse = torch.from_numpy(codes).to_sparse_csr()

    def numpy_gather() -> np.ndarray:
        mixed = read @ thin
        result = np.zeros((len(read), len(places)), dtype=np.float32)
        for number in range(form.nonzeros):
            result += mixed[:, places[:, number]] * values[:, number]
        return result

    def torch_csr() -> np.ndarray:
        return (sparse @ (tensors["read"] @ tensors["thin"]).T).T.numpy()

    dense_session = _session(matrix, None, None, threads)
    gather_session = _session(thin, places, values, threads)
    return {
        "numpy_dense": lambda: read @ matrix,
        "numpy_thin": lambda: read @ thin,
        "numpy_gather": numpy_gather,
        "torch_dense": lambda: (tensors["read"] @ tensors["matrix"]).numpy(),
        "torch_thin": lambda: (tensors["read"] @ tensors["thin"]).numpy(),
        "torch_csr": torch_csr,
        "onnxruntime_dense": lambda: dense_session.run(None, {"read": read})[0],
        "onnxruntime_gather": lambda: gather_session.run(None, {"read": read})[0],
    }


def _session(
    matrix: np.ndarray, places: np.ndarray | None, values: np.ndarray | None, threads: int
) -> ort.InferenceSession:
    """Return a graph that multiplies by a matrix and, where there are codes, sums what they pick, a code at a time."""
    nodes = [helper.make_node("MatMul", ["read", "matrix"], ["mixed"])]
    constants = {"matrix": matrix}
    if places is not None and values is not None:
        total = ""
        for number in range(places.shape[1]):
            constants |= {f"places.{number}": places[:, number].astype(np.int64), f"values.{number}": values[:, number]}
            picked, scaled = f"picked.{number}", f"scaled.{number}"
            nodes.append(helper.make_node("Gather", ["mixed", f"places.{number}"], [picked], axis=1))
            nodes.append(helper.make_node("Mul", [picked, f"values.{number}"], [scaled]))
            if total:
                nodes.append(helper.make_node("Add", [total, scaled], [f"total.{number}"]))
            total = f"total.{number}" if total else scaled
        nodes.append(helper.make_node("Identity", [total], ["result"]))
    else:
        nodes.append(helper.make_node("Identity", ["mixed"], ["result"]))
    graph = helper.make_graph(
        nodes, "product",
        [helper.make_tensor_value_info("read", TensorProto.FLOAT, ["tokens", matrix.shape[0]])],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ascontiguousarray(one), name) for name, one in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ort.InferenceSession(model.SerializeToString(), session_options(threads), providers=["CPUExecutionProvider"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, default=1024, help="rows of the product")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/dense_sparse_speed.json"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
