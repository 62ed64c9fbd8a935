"""Rules that several consumers of ONNX files share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compressor.cpu import SATURATING
from compressor.doctor.findings import Reason, note, obstacle
from compressor.doctor.folder import RankerFolder
from compressor.doctor.graph_facts import RUNTIME_DOMAINS, STANDARD_DOMAINS, GraphFacts
from compressor.runtime.folder import MANIFEST

USUAL_FILES = ("model.onnx", "onnx/model.onnx")  # most consumers look into the root first
_RANKER_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# ONNX Runtime 1.18 to 1.20 read these; servers that bundle a runtime are at these or later ones.
_OLD_OPSET, _OLD_IR = 21, 10
_EIGHT_BIT_BLOCKS = "MatMulNBits with weights of 8 bits, which ONNX Runtime has from 1.22 on (x86 CPUs)"


def chosen(folder: RankerFolder, names: Sequence[str], fix: str) -> Iterator[Reason]:
    """Yield why none of the files that a consumer looks for can be read; nothing where the first that is there can."""
    file = first_of(folder, names)
    if file is None:
        others = folder.onnx_files
        found = f"ONNX files by other names alone ({', '.join(others)})" if others else "no ONNX file"
        yield obstacle(f"{found}; it looks for {' or '.join(names)}", file=names[-1], fix=fix)
    elif file in folder.broken:
        yield obstacle(folder.broken[file], file=file, fix="download or export it again")


def first_of(folder: RankerFolder, names: Sequence[str]) -> str | None:
    """Return the first of these files that is there."""
    return next((name for name in names if name in folder.graphs or name in folder.broken), None)


def graph_of(folder: RankerFolder, names: Sequence[str]) -> GraphFacts | None:
    """Return the graph that a consumer takes, if there is one and it can be read."""
    return folder.graphs.get(first_of(folder, names) or "")


def operators(graph: GraphFacts) -> Iterator[Reason]:
    """Yield operators that no build of ONNX Runtime has, and weights that are not there."""
    known = (*STANDARD_DOMAINS, *RUNTIME_DOMAINS)
    for domain, kinds in graph.operators.items():
        if domain not in known:
            yield obstacle(
                f"operators that ONNX Runtime has not ({', '.join(kinds)} of {domain})",
                file=graph.file, key=domain, fix="export the graph with operators of ai.onnx or com.microsoft alone",
            )  # fmt: skip
    for name in graph.missing_files:
        yield obstacle(
            f"weights lie in {name}, which is not in the folder beside it", file=graph.file, key="external_data",
            fix="put that file there",
        )  # fmt: skip


def scores(graph: GraphFacts, *, by_name: bool) -> Iterator[Reason]:
    """Yield why the graph's output is no score of a pair.

    Args:
        graph: what the consumer runs.
        by_name: whether it asks for ``logits``, and does not take the first output.
    """
    names = [output.name for output in graph.outputs]
    if by_name and "logits" not in names:
        yield obstacle(
            f"the outputs {', '.join(names)}; it asks for logits", file=graph.file, key="logits",
            fix="export a ranker whose output is called logits",
        )  # fmt: skip
        return
    output = next((one for one in graph.outputs if one.name == "logits"), None) if by_name else graph.outputs[0]
    if output is None or output.shape is None:
        return
    last = output.shape[-1] if output.shape else None
    if len(output.shape) != 2 or output.name in ("embedding", "sentence_embedding"):
        yield obstacle(
            f"{output.name} {list(output.shape)}, which is no score of a pair", file=graph.file, key=output.name,
            fix="bi-encoders score with their own tools: rankpress, or sentence-transformers' SentenceTransformer",
        )  # fmt: skip
    elif isinstance(last, int) and last != 1:
        yield obstacle(
            f"{last} logits per pair", file=graph.file, key=output.name,
            fix="fold them into one (relevant minus irrelevant) before the export",
        )  # fmt: skip


def fed_inputs(graph: GraphFacts, fed: Sequence[str] = _RANKER_INPUTS) -> Iterator[Reason]:
    """Yield inputs that the consumer does not feed."""
    for one in graph.inputs:
        if one.name not in fed:
            yield obstacle(
                f"the input {one.name}, which it does not feed ({', '.join(fed)})", file=graph.file, key=one.name,
                fix="export the ranker so that the graph makes everything else by itself",
            )  # fmt: skip


def declared_inputs(graph: GraphFacts) -> Iterator[Reason]:
    """Yield inputs that the consumer feeds to every graph, and this one does not have."""
    for name in _RANKER_INPUTS[:2]:
        if graph.input(name) is None:
            yield obstacle(
                f"no input {name}, which it feeds", file=graph.file, key=name,
                fix="export a graph with input_ids and attention_mask",
            )  # fmt: skip


def int64_inputs(graph: GraphFacts) -> Iterator[Reason]:
    """Yield inputs of another type than int64, which the consumer feeds."""
    for one in graph.inputs:
        if one.kind != "int64":
            yield obstacle(
                f"an input of {one.kind}; it feeds int64", file=graph.file, key=one.name,
                fix="export with int64 inputs, or put a Cast behind each",
            )  # fmt: skip


def free_axes(graph: GraphFacts) -> Iterator[Reason]:
    """Yield axes of fixed size, which batches of other sizes do not fit."""
    for one in graph.inputs:
        if one.shape is not None and any(isinstance(size, int) for size in one.shape):
            yield obstacle(
                f"the fixed shape {list(one.shape)}", file=graph.file, key=one.name,
                fix="export with free axes for batch and sequence",
            )  # fmt: skip


def int8_sums(graph: GraphFacts) -> Iterator[Reason]:
    """Yield why scores in int8 are others than ours, in sessions that do not ask for wide sums."""
    if graph.sums_int8:
        yield note(
            f"8-bit products: on x86 CPUs without VNNI ({', '.join(SATURATING)}) ONNX Runtime sums them in 16 bits "
            "unless it is told otherwise, and they saturate where weights take more than 7",
            file=graph.file, key="session.x64quantprecision", moves_scores=True,
            fix="set that session option to 1 where the consumer lets you, or export weights of 7 bits "
            "(quantize: {reduce_range: true}, or builds: [int8_reduced_range])",
        )  # fmt: skip
    if graph.finds_ranges:
        yield note(
            "ranges of activations are found batch by batch: scores move with batch mates, and every consumer makes "
            "batches of its own",
            file=graph.file, key="DynamicQuantizeLinear", moves_scores=True, fix="quantize: {scheme: int8_static}",
        )  # fmt: skip


def bundled_runtime(graph: GraphFacts) -> Iterator[Reason]:
    """Yield what an ONNX Runtime that comes with the consumer, and is not yours to choose, may not know."""
    if graph.opset > _OLD_OPSET or graph.ir_version > _OLD_IR:
        yield note(
            f"opset {graph.opset} and IR version {graph.ir_version}; ONNX Runtime 1.18 to 1.20 read up to "
            f"{_OLD_OPSET} and {_OLD_IR}, and this consumer brings a runtime of its own",
            file=graph.file, key="opset_import", fix="check its runtime's version, or export opset 21 or earlier",
        )  # fmt: skip
    if 8 in graph.block_bits:
        yield note(_EIGHT_BIT_BLOCKS, file=graph.file, key="MatMulNBits", fix="check its runtime's version")


def main_file_alone(folder: RankerFolder, file: str) -> Iterator[Reason]:
    """Yield what else the folder has, and rankpress alone uses."""
    for key, text in folder.list_features.items():
        yield note(f"{text}: rankpress alone uses that; here {file} scores every pair", file=MANIFEST, key=key)
