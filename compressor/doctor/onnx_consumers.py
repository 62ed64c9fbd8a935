"""Python libraries that run the ONNX file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from compressor.doctor.file_rules import opened, pair_template_read
from compressor.doctor.findings import Consumer, Reason, note, obstacle
from compressor.doctor.folder import PairTemplate, RankerFolder
from compressor.doctor.graph_rules import (
    USUAL_FILES,
    chosen,
    declared_inputs,
    fed_inputs,
    first_of,
    free_axes,
    graph_of,
    int8_sums,
    int64_inputs,
    main_file_alone,
    operators,
    scores,
)
from compressor.doctor.torch_consumers import (
    activation,
    before_transformers_5,
    configured,
    is_loaded_by_torch,
    long_queries,
    modules,
    tokenized,
)

_OPTIMUM = "optimum-onnx 0.1.0"
_ASK_FOR_FILE = 'pass file_name="NAME.onnx", subfolder="onnx"'


def _optimum(folder: RankerFolder) -> Iterator[Reason]:
    yield from configured(folder)
    yield from tokenized(folder)
    yield from before_transformers_5(folder)
    yield from long_queries(folder)
    # Any file called model.onnx is the standard one, wherever it lies; a sole file of another name is taken, too.
    named = [name for name in folder.onnx_files if PurePosixPath(name).name == "model.onnx"] or folder.onnx_files
    yield from _chosen_or_exported(folder, named or USUAL_FILES, fix=_ASK_FOR_FILE)
    if len(named) > 1:
        yield note(
            f"several files that it may take: {', '.join(named)}; the first that the file system lists is run",
            file=named[0], fix=_ASK_FOR_FILE,
        )  # fmt: skip
    yield from _run_by_optimum(folder, named)


def _chosen_or_exported(folder: RankerFolder, names: Sequence[str], fix: str) -> Iterator[Reason]:
    """Both make a graph of the torch checkpoint where there is none to take."""
    if first_of(folder, names) is None and is_loaded_by_torch(folder):
        yield note(
            "not there: a graph is made of model.safetensors at each load, which takes its time", file=names[-1],
            fix=fix if folder.onnx_files else "export it once: 'rankpress compress' with an empty 'passes:'",
        )  # fmt: skip
    else:
        yield from chosen(folder, names, fix=fix)


def _run_by_optimum(folder: RankerFolder, files: list[str] | tuple[str, ...]) -> Iterator[Reason]:
    if graph := graph_of(folder, files):
        yield from operators(graph)
        yield from scores(graph, by_name=True)
        yield from fed_inputs(graph)
        yield from free_axes(graph)
        yield from int8_sums(graph)
        yield from main_file_alone(folder, graph.file)


def _sentence_transformers_onnx(folder: RankerFolder) -> Iterator[Reason]:
    yield from configured(folder)
    yield from tokenized(folder)
    yield from before_transformers_5(folder)
    yield from long_queries(folder)
    yield from _chosen_or_exported(folder, USUAL_FILES, fix='pass model_kwargs={"file_name": "onnx/NAME.onnx"}')
    if folder.family and folder.n_labels != 1:
        yield obstacle(f"{folder.n_labels} logits per pair", file="config.json", key="id2label")
    yield from _run_by_optimum(folder, USUAL_FILES)
    yield from activation(folder)
    yield from modules(folder)
    yield note(
        "not with sentence-transformers 6.2, which wants transformers 5: optimum-onnx 0.1.0 excludes it",
        key="backend", fix="install both without a version, and pip takes the last that fits, or use another consumer",
    )  # fmt: skip


def _fastembed(folder: RankerFolder) -> Iterator[Reason]:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not folder.has(name):
            yield obstacle("not there", file=name, fix="save the checkpoint's tokenizer into the folder")
    for name in ("tokenizer_config.json", "config.json", "special_tokens_map.json"):
        if fault := folder.fault_of(name):
            yield obstacle(fault, file=name, fix="write it again")
    yield from pair_template_read(folder)
    settings = folder.object("tokenizer_config.json")
    if folder.has("tokenizer_config.json") and not any(
        _is_length(settings.get(key)) for key in ("model_max_length", "max_length")
    ):
        yield obstacle(
            f"{settings.get('model_max_length')!r}, no whole number of tokens", file="tokenizer_config.json",
            key="model_max_length", fix="write the longest row that the model was trained with, such as 512",
        )  # fmt: skip
    yield from _padding_token(settings, folder)
    yield from long_queries(folder)
    yield from chosen(folder, USUAL_FILES[::-1], fix="name it in add_custom_model(model_file=...)")
    if graph := graph_of(folder, USUAL_FILES[::-1]):
        yield from operators(graph)
        yield from scores(graph, by_name=False)
        yield from fed_inputs(graph)
        yield from int64_inputs(graph)
        yield from free_axes(graph)
        yield from int8_sums(graph)
        yield from main_file_alone(folder, graph.file)


def _flashrank(folder: RankerFolder) -> Iterator[Reason]:
    yield from opened(
        folder, ("config.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"),
        fix="save it from the checkpoint, by transformers 4",
    )  # fmt: skip
    yield from pair_template_read(folder)
    if folder.config and not isinstance(folder.config.get("pad_token_id"), int):
        yield obstacle("no whole number", file="config.json", key="pad_token_id", fix="write the padding token's id")
    settings = folder.object("tokenizer_config.json")
    if settings and not isinstance(settings.get("model_max_length"), int | float):
        yield obstacle("no number", file="tokenizer_config.json", key="model_max_length", fix="write the longest row")
    yield from _padding_token(settings, folder)
    yield from long_queries(folder)
    yield from chosen(folder, USUAL_FILES[::-1], fix="name it in flashrank.Config.model_file_map")
    if graph := graph_of(folder, USUAL_FILES[::-1]):
        yield from operators(graph)
        yield from scores(graph, by_name=False)
        yield from fed_inputs(graph)
        yield from declared_inputs(graph)
        yield from int64_inputs(graph)
        yield from free_axes(graph)
        yield from _segments(folder, graph.input("token_type_ids") is not None, graph.file)
        yield from int8_sums(graph)
        yield from main_file_alone(folder, graph.file)


def _segments(folder: RankerFolder, declared: bool, file: str) -> Iterator[Reason]:
    """FlashRank feeds type ids where the tokenizer gives any but 0, whatever the graph declares."""
    template = folder.pair_template
    if not isinstance(template, PairTemplate) or template.has_segments == declared:
        return
    given = "type ids of 1, which FlashRank feeds" if template.has_segments else "type ids of 0 alone, and feeds none"
    wants = "declares" if declared else "does not declare"
    yield obstacle(
        f"{'the tokenizer gives ' + given}; {file} {wants} token_type_ids", file="tokenizer.json", key="post_processor",
        fix="give the second text the type id 0 in the post-processor's template"
        if template.has_segments
        else "export a graph without token_type_ids",
    )  # fmt: skip


def _padding_token(settings: dict[str, Any], folder: RankerFolder) -> Iterator[Reason]:
    if folder.has("tokenizer_config.json") and not isinstance(settings.get("pad_token"), str):
        yield obstacle(
            f"{settings.get('pad_token')!r}, no string", file="tokenizer_config.json", key="pad_token",
            fix="write the token's text",
        )  # fmt: skip


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= sys.maxsize


ONNX_CONSUMERS = (
    Consumer(
        name='sentence-transformers (backend="onnx")', version=f"5.7.0, {_OPTIMUM}", evidence="run",
        rules=_sentence_transformers_onnx,
    ),
    Consumer(name="optimum-onnx", version="0.1.0, transformers < 4.58", evidence="run", rules=_optimum),
    Consumer(name="fastembed", version="0.9.1", evidence="run", rules=_fastembed),
    Consumer(name="FlashRank", version="0.2.10", evidence="run", rules=_flashrank),
)  # fmt: skip
