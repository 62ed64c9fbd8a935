"""Servers and browsers: rules read in their documentation or sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from compressor.doctor.file_rules import opened, pair_template_read
from compressor.doctor.findings import Consumer, Reason, note, obstacle
from compressor.doctor.folder import PairTemplate, RankerFolder
from compressor.doctor.graph_facts import GraphFacts
from compressor.doctor.graph_rules import (
    USUAL_FILES,
    bundled_runtime,
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
    before_transformers_5,
    checkpoint,
    configured,
    is_loaded_by_torch,
    long_queries,
    segments_taken,
)

_FEEDS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_LARGEST_FILE_BYTES = 2 * 10**9
_BERT_IDS = {"first_id": 101, "separator_id": 102}  # what Vespa's tokenInputIds writes into every row
_BROWSER_DEFAULT = "onnx/model_quantized.onnx"
_CLASSES_IN_CANDLE = ("bert", "camembert", "distilbert", "modernbert", "roberta", "xlm-roberta")
_CLASSES_IN_JS = (
    "albert", "bert", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra", "esm", "mobilebert",
    "modernbert", "mpnet", "neobert", "roberta", "roformer", "squeezebert", "xlm", "xlm-roberta",
)  # fmt: skip


def _text_embeddings_inference(folder: RankerFolder) -> Iterator[Reason]:
    yield from configured(folder)
    if folder.config:
        yield from _served_as_reranker(folder)
    if not folder.has("tokenizer.json"):
        yield obstacle("not there: fast tokenizers alone are read", file="tokenizer.json")
    yield from pair_template_read(folder)
    name = "sentence_bert_config.json"
    if folder.has(name) and not isinstance(folder.object(name).get("max_seq_length"), int):
        yield obstacle(
            "not there, as sentence-transformers writes it since 5.4; the file is refused without it",
            file=name, key="max_seq_length", fix="add the longest row in tokens, or remove the file",
        )  # fmt: skip
    not_started = list(_started_by_onnx_runtime(folder))
    if not_started and folder.family in _CLASSES_IN_CANDLE and is_loaded_by_torch(folder):
        first = not_started[0]
        yield note(
            f"{first.text}; it then reads model.safetensors with its candle backend", file=first.file, key=first.key,
            fix=first.fix,
        )  # fmt: skip
        return
    yield from not_started
    if graph := graph_of(folder, USUAL_FILES):
        yield from _run_in_float32(folder, graph)


def _started_by_onnx_runtime(folder: RankerFolder) -> Iterator[Reason]:
    config = folder.config
    for key, alias in (("hidden_size", "n_embd"), ("num_hidden_layers", "n_layer")):
        if config and not isinstance(config.get(key, config.get(alias)), int):
            yield obstacle("not there: its ONNX backend asks for it", file="config.json", key=key, fix="write it")
    yield from chosen(folder, USUAL_FILES, fix="rename the file that is to be served: no other can be named")
    if graph := graph_of(folder, USUAL_FILES):
        yield from operators(graph)


def _served_as_reranker(folder: RankerFolder) -> Iterator[Reason]:
    config = folder.config
    classes = config.get("architectures")
    if not any(str(name).endswith("Classification") for name in _list(classes)):
        yield obstacle(
            f"{classes}: no class that ends with Classification", file="config.json", key="architectures",
            fix="write the stock class for sequence classification",
        )  # fmt: skip
    for key in ("id2label", "label2id"):
        labels = config.get(key)
        if not isinstance(labels, dict) or len(labels) != 1:
            yield obstacle(
                f"{labels}: /rerank is there for exactly one label", file="config.json", key=key,
                fix="write one label, where the head has one logit",
            )  # fmt: skip
    if not isinstance(config.get("max_position_embeddings", config.get("n_positions")), int):
        yield obstacle("not there", file="config.json", key="max_position_embeddings", fix="write the longest row")


def _run_in_float32(folder: RankerFolder, graph: GraphFacts) -> Iterator[Reason]:
    yield from scores(graph, by_name=True)
    yield from fed_inputs(graph, _FEEDS)
    yield from declared_inputs(graph)
    yield from int64_inputs(graph)
    yield from free_axes(graph)
    yield from _float_output(graph)
    yield from bundled_runtime(graph)
    yield from int8_sums(graph)
    yield from main_file_alone(folder, graph.file)


def _float_output(graph: GraphFacts) -> Iterator[Reason]:
    output = next((one for one in graph.outputs if one.name == "logits"), None)
    if output is not None and output.kind != "float":
        yield obstacle(
            f"logits of {output.kind}; it reads float32 alone", file=graph.file, key="logits",
            fix="cast the output to float32 in the graph",
        )  # fmt: skip


def _vespa(folder: RankerFolder) -> Iterator[Reason]:
    if not folder.has("tokenizer.json"):
        yield obstacle("not there: its embedder reads it", file="tokenizer.json")
    yield from pair_template_read(folder)
    yield from chosen(folder, USUAL_FILES[::-1], fix="name the file in the schema's onnx-model")
    graph = graph_of(folder, USUAL_FILES[::-1])
    if graph is None:
        return
    yield from operators(graph)
    yield from scores(graph, by_name=False)
    if graph.external_files:
        yield obstacle(
            f"weights lie in {', '.join(graph.external_files)}: a ranking model must be one file", file=graph.file,
            key="external_data", fix="save it as one file (onnx.save_model with save_as_external_data=False)",
        )  # fmt: skip
    if graph.size_bytes >= _LARGEST_FILE_BYTES:
        yield obstacle(f"{graph.size_bytes / 1e9:.1f} GB in one file", file=graph.file, fix="less than 2 GB: round it")
    yield from _shape_by_trial(graph)
    template = folder.pair_template
    if isinstance(template, PairTemplate):
        ids = {"first_id": template.first_id, "separator_id": template.separator_id}
        if ids != _BERT_IDS:
            yield note(
                f"rows begin with the token {ids['first_id']} and part texts with {ids['separator_id']}, where "
                "tokenInputIds writes 101 and 102",
                file="tokenizer.json", key="post_processor",
                fix=f"write customTokenInputIds({ids['first_id']}, {ids['separator_id']}, LENGTH, ...) in the schema",
            )  # fmt: skip
    yield from bundled_runtime(graph)
    yield from int8_sums(graph)
    yield from main_file_alone(folder, graph.file)


def _shape_by_trial(graph: GraphFacts) -> Iterator[Reason]:
    """Vespa runs a graph on rows of zeros when sizes of its output are not sizes of its inputs."""
    known = {size for one in graph.inputs for size in one.shape or () if isinstance(size, str)}
    for output in graph.outputs:
        for size in output.shape or (None,):
            if size is None or (isinstance(size, str) and size not in known):
                yield note(
                    f"an axis ({size or 'without a name'}) that no input has: it is found by running the graph on rows "
                    "without a token, which some graphs refuse",
                    file=graph.file, key=output.name, fix="name the batch axis alike in inputs and output",
                )  # fmt: skip
                return


def _transformers_js(folder: RankerFolder) -> Iterator[Reason]:
    yield from configured(folder)
    if folder.family and folder.family not in _CLASSES_IN_JS:
        yield obstacle(
            f"{folder.family}, for which it has no AutoModelForSequenceClassification", file="config.json",
            key="model_type",
        )  # fmt: skip
    yield from opened(folder, ("tokenizer.json", "tokenizer_config.json"))
    yield from pair_template_read(folder)
    files = (USUAL_FILES[1],) if first_of(folder, USUAL_FILES[1:]) else (_BROWSER_DEFAULT,)
    yield from chosen(folder, files, fix="move the file to onnx/, where it is looked for")
    if graph := graph_of(folder, files):
        yield from operators(graph)
        yield from scores(graph, by_name=True)
        yield from fed_inputs(graph, _FEEDS)
        yield from int64_inputs(graph)
        yield from free_axes(graph)
        yield from _external_in_js(folder, graph)
        yield from bundled_runtime(graph)
        yield from int8_sums(graph)
        yield from main_file_alone(folder, graph.file)
    if files[0] == USUAL_FILES[1] and _BROWSER_DEFAULT not in folder.graphs:
        yield note(
            "not there, and browsers ask for it (dtype q8) unless told otherwise", file=_BROWSER_DEFAULT,
            fix='pass { dtype: "fp32" }, which takes onnx/model.onnx, whatever its precision',
        )  # fmt: skip
    if folder.config and folder.config.get("problem_type") != "multi_label_classification":
        yield note(
            "the text-classification pipeline applies a softmax, which over one logit is 1 for every pair",
            file="config.json", key="problem_type", fix="call AutoModelForSequenceClassification itself",
        )  # fmt: skip


def _external_in_js(folder: RankerFolder, graph: GraphFacts) -> Iterator[Reason]:
    settings = folder.config.get("transformers.js_config")
    told = isinstance(settings, dict) and settings.get("use_external_data_format")
    if graph.external_files and not told:
        yield obstacle(
            "not there, while weights lie outside of the graph", file="config.json",
            key="transformers.js_config.use_external_data_format", fix="set it to true, or save one file",
        )  # fmt: skip


def _infinity(folder: RankerFolder) -> Iterator[Reason]:
    yield from checkpoint(folder)
    yield from before_transformers_5(folder)
    yield from segments_taken(folder)
    yield from long_queries(folder)
    classes = folder.config.get("architectures")
    if folder.config and not any("SequenceClassification" in str(name) for name in _list(classes)):
        yield obstacle(
            f"{classes}: no class for sequence classification, so that it is taken for an encoder", file="config.json",
            key="architectures", fix="write the stock class for sequence classification",
        )  # fmt: skip
    if folder.onnx_files:
        yield note(
            "its torch engine reads model.safetensors; its optimum engine hands a file's whole path to optimum-onnx "
            "0.1.0, which compares it with bare names and finds none",
            file=folder.onnx_files[0], fix="--engine torch; for ONNX use another server",
        )  # fmt: skip


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


SERVERS = (
    Consumer(name="text-embeddings-inference", version="1.9", rules=_text_embeddings_inference),
    Consumer(name="Vespa", version="8", rules=_vespa),
    Consumer(name="infinity", version="0.0.78", evidence="run", rules=_infinity),
    Consumer(name="transformers.js", version="4.3", rules=_transformers_js),
)
