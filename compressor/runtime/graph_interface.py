"""What goes into a ranker's graph and what comes out: checked before the first score, never guessed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from compressor.errors import Fault, InputError

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
LOGITS_NAME = "logits"
EMBEDDING_NAMES = ("embedding", "sentence_embedding")
SUPPORTED = (
    "one relevance logit per pair ('logits' [batch, 1]) or one vector per text ('embedding' [batch, width]), "
    "as float32 or float16"
)
_INPUT_TYPES: dict[str, np.dtype[Any]] = {"tensor(int64)": np.dtype(np.int64), "tensor(int32)": np.dtype(np.int32)}
_OUTPUT_TYPES = ("tensor(float)", "tensor(float16)")


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphInterface:
    """How to feed a ranker's graph.

    Attributes:
        kind: a cross-encoder scores a pair in one row; a bi-encoder embeds query and document apart.
        inputs: input name to integer type; each is ``[batch, sequence]``.
        output: the output that holds ``[batch, 1]`` logits or ``[batch, width]`` embeddings.
    """

    kind: Literal["cross_encoder", "bi_encoder"]
    inputs: dict[str, np.dtype[Any]]
    output: str


def read_interface(session: ort.InferenceSession, source: Path) -> GraphInterface:
    """Return the interface of a ranker's graph.

    An output called ``logits``, ``embedding`` or ``sentence_embedding`` is taken by its name; a sole output with
    another name is taken as logits where its shape is ``[batch, 1]``.

    Raises:
        InputError: inputs or outputs that no ranker of ours has; lists all of them and says what is supported.
    """
    faults: list[Fault] = []
    inputs = {node.name: node for node in session.get_inputs()}
    for name, node in inputs.items():
        faults += _input_faults(name, node, source)
    faults += [
        Fault(source=source, found=f"a graph without the input {name!r}", allowed=f"inputs {', '.join(INPUTS)}")
        for name in ("input_ids", "attention_mask")
        if name not in inputs
    ]
    output, kind = _choose_output(session.get_outputs(), source, faults)
    if faults:
        raise InputError(faults)
    return GraphInterface(
        kind=kind, inputs={name: _INPUT_TYPES[node.type] for name, node in inputs.items()}, output=output
    )


def _input_faults(name: str, node: Any, source: Path) -> list[Fault]:
    where = f"input {name!r}"
    if name not in INPUTS:
        return [
            Fault(
                source=source,
                where=where,
                found="an input that rankers of supported families do not have",
                allowed=", ".join(INPUTS),
                fix="export the ranker so that the graph makes everything else by itself",
            )
        ]
    faults = []
    if node.type not in _INPUT_TYPES:
        faults.append(Fault(source=source, where=where, found=node.type, allowed=", ".join(_INPUT_TYPES)))
    fixed = [size for size in node.shape if isinstance(size, int)]
    if len(node.shape) != 2 or fixed:
        faults.append(
            Fault(
                source=source,
                where=where,
                found=f"the shape {_shown(node.shape)}",
                allowed="[batch, sequence], both free",
                fix="export the graph with dynamic batch and sequence axes",
            )
        )
    return faults


def _choose_output(
    outputs: list[Any], source: Path, faults: list[Fault]
) -> tuple[str, Literal["cross_encoder", "bi_encoder"]]:
    named = {node.name: node for node in outputs}
    embedding = next((name for name in EMBEDDING_NAMES if name in named), None)
    if LOGITS_NAME not in named and embedding is not None:
        faults += _output_faults(named[embedding], source, is_embedding=True)
        return embedding, "bi_encoder"
    if LOGITS_NAME in named or len(outputs) == 1:
        node = named.get(LOGITS_NAME, outputs[0])
        faults += _output_faults(node, source, is_embedding=False)
        return node.name, "cross_encoder"
    shown = ", ".join(f"{node.name} {_shown(node.shape)}" for node in outputs)
    faults.append(Fault(source=source, found=f"the outputs {shown}", allowed=SUPPORTED, fix=_NO_SCORE_FIX))
    return "", "cross_encoder"


_NO_SCORE_FIX = "hidden states alone hold no score: export the ranker with its head, or the encoder with its pooling"


def _output_faults(node: Any, source: Path, *, is_embedding: bool) -> list[Fault]:
    where, shape = f"output {node.name!r}", node.shape
    if node.type not in _OUTPUT_TYPES:
        return [Fault(source=source, where=where, found=node.type, allowed=SUPPORTED)]
    if len(shape) == 3:
        return [
            Fault(
                source=source,
                where=where,
                found=f"hidden states of every token {_shown(shape)}",
                allowed=SUPPORTED,
                fix=_NO_SCORE_FIX,
            )
        ]
    if len(shape) == 2 and (is_embedding or shape[1] == 1 or _is_free_logit(node)):
        return []
    if len(shape) == 2 and isinstance(shape[1], int):
        found, fix = f"a head with {shape[1]} logits {_shown(shape)}", "export a ranker with num_labels=1"
        if shape[1] == 2:
            fix = "fold the two logits into their difference (relevant minus irrelevant) before the export"
        return [Fault(source=source, where=where, found=found, allowed=SUPPORTED, fix=fix)]
    return [Fault(source=source, where=where, found=f"the shape {_shown(shape)}", allowed=SUPPORTED)]


def _is_free_logit(node: Any) -> bool:
    """Some exporters leave the label axis of ``logits`` free; the first batch then shows whether it is 1."""
    return node.name == LOGITS_NAME and not isinstance(node.shape[1], int)


def _shown(shape: list[Any]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
