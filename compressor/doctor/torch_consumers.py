"""Consumers that load ``model.safetensors`` with transformers' stock classes."""

from __future__ import annotations

from collections.abc import Iterator

from compressor.doctor.file_rules import pair_template_read
from compressor.doctor.findings import Consumer, Reason, note, obstacle
from compressor.doctor.folder import RankerFolder
from compressor.doctor.graph_facts import TensorFacts
from compressor.runtime.folder import MANIFEST

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_HEADS = ("classifier", "score")  # what stock classes for sequence classification call theirs
_SHORT_ROW = 128  # tokens; in longer rows a query is not the longer text
_WITHOUT_SEGMENTS = ("distilbert", "modernbert")
_GIVE_SEGMENTS = ("BertTokenizer", "BertTokenizerFast", "ElectraTokenizer", "ElectraTokenizerFast",
                  "PreTrainedTokenizerFast", "TokenizersBackend")  # fmt: skip
_WORD_TABLES = ("word_embeddings.weight", "tok_embeddings.weight")
_OTHER_NAMES, _DEFAULTS = {"hidden_size": "dim"}, {"hidden_size": 768}  # DistilBERT's; all families'
_SLOW_TOKENIZERS = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
_SINCE_TRANSFORMERS_5 = ("TokenizersBackend", "PythonBackend", "SentencePieceBackend", "MistralCommonBackend")
_IDENTITY = "torch.nn.modules.linear.Identity"
# The slow tokenizers that eland loads, and the files of each.
_ELAND_FILES = {
    "bert": ("vocab.txt",), "electra": ("vocab.txt",), "distilbert": ("vocab.txt",), "mobilebert": ("vocab.txt",),
    "squeezebert": ("vocab.txt",), "mpnet": ("vocab.txt",), "roberta": ("vocab.json", "merges.txt"),
    "bart": ("vocab.json", "merges.txt"), "xlm-roberta": ("sentencepiece.bpe.model",), "deberta-v2": ("spm.model",),
}  # fmt: skip
_ELAND_MOST_TOKENS = 8192
# Words in a path by which rerankers takes a folder for something else than a cross-encoder.
_RERANKERS_WORDS = (
    "lit5", "t5", "inranker", "rankllm", "gpt", "colbert", "cohere", "pinecone", "jina", "isaacus", "voyage",
    "text-embeddings-inference", "ms-marco-minilm-l-12-v2", "ms-marco-multibert-l-12", "vicuna", "zephyr",
    "bge-reranker-v2.5-gemma2-lightweight", "monovlm", "monoqwen2-vl", "llm-relevance-filter", "upr", "mxbaiv2",
    "mxbai-rerank-base-v2", "mxbai-rerank-large-v2", "pylate",
)  # fmt: skip


def configured(folder: RankerFolder) -> Iterator[Reason]:
    """Yield why transformers cannot tell which architecture this is."""
    if fault := folder.fault_of("config.json"):
        yield obstacle(fault, file="config.json", fix="write it again")
    elif not folder.has("config.json"):
        yield obstacle("no config.json", file="config.json", fix="copy the checkpoint's")
    elif not folder.family:
        yield obstacle("no model_type", file="config.json", key="model_type", fix="write the architecture's: bert, ...")


def tokenized(folder: RankerFolder) -> Iterator[Reason]:
    """Yield why transformers finds no tokenizer."""
    if not folder.has("tokenizer.json") and not any(map(folder.has, _SLOW_TOKENIZERS)):
        yield obstacle("no tokenizer", file="tokenizer.json", fix="save the checkpoint's tokenizer into the folder")
    yield from pair_template_read(folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if fault := folder.fault_of(name):
            yield obstacle(fault, file=name, fix="save the checkpoint's tokenizer again")


def before_transformers_5(folder: RankerFolder) -> Iterator[Reason]:
    """Yield what tokenizers saved by transformers 5 have that earlier versions cannot read."""
    settings = folder.object("tokenizer_config.json")
    if (name := settings.get("tokenizer_class")) in _SINCE_TRANSFORMERS_5:
        yield obstacle(
            f"{name}, a class of transformers 5; this consumer wants an earlier one",
            file="tokenizer_config.json", key="tokenizer_class",
            fix="write the family's class (BertTokenizer, ...) or PreTrainedTokenizerFast",
        )  # fmt: skip
    if isinstance(settings.get("extra_special_tokens"), list):
        yield obstacle(
            "a list, as transformers 5 writes it; earlier versions want an object",
            file="tokenizer_config.json", key="extra_special_tokens", fix="move it to additional_special_tokens",
        )  # fmt: skip


def checkpoint(folder: RankerFolder) -> Iterator[Reason]:
    """Yield why the folder holds no cross-encoder that ``AutoModelForSequenceClassification`` loads whole."""
    yield from configured(folder)
    weights = folder.weights
    if not any(map(folder.has, _WEIGHTS)):
        yield obstacle(
            f"no weights for torch{_why_no_checkpoint(folder)}", file="model.safetensors",
            fix="use the ONNX file, with a consumer that reads ONNX",
        )  # fmt: skip
    elif isinstance(weights, str):
        yield obstacle(weights, file="model.safetensors", fix="download or export it again")
    elif weights is not None:
        if not any(part in _HEADS for name in weights for part in name.split(".")):
            yield obstacle(
                "no weights of a scoring head: one would be made up at random", file="model.safetensors",
                key="classifier", fix="save a model for sequence classification",
            )  # fmt: skip
        yield from _of_other_size(folder, weights)
        if half := sorted({"F16", "BF16"} & {tensor.kind for tensor in weights.values()}):
            yield note(
                f"weights in {' and '.join(half)}: transformers 5 computes in that, slowly on CPUs",
                file="model.safetensors", key="dtype", fix="ask for float32 (model_kwargs={'dtype': 'float32'})",
                moves_scores=True,
            )  # fmt: skip
    if folder.family and folder.n_labels != 1:
        yield obstacle(
            f"{folder.n_labels} logits per pair", file="config.json", key="id2label",
            fix="fold the head into one logit (relevant minus irrelevant), and write id2label with one entry",
        )  # fmt: skip
    yield from tokenized(folder)


def segments_taken(folder: RankerFolder) -> Iterator[Reason]:
    """Yield where the tokenizer gives segments that the model does not take: transformers 4 refuses them."""
    settings = folder.object("tokenizer_config.json")
    name = settings.get("tokenizer_class")
    if folder.family in _WITHOUT_SEGMENTS and name in _GIVE_SEGMENTS and "model_input_names" not in settings:
        yield obstacle(
            f"not there: {name} gives token_type_ids, which {folder.family} does not take",
            file="tokenizer_config.json", key="model_input_names", fix='write ["input_ids", "attention_mask"]',
        )  # fmt: skip


def long_queries(folder: RankerFolder) -> Iterator[Reason]:
    """Yield that rows are so short that a query may be the longer text, which the consumer cuts first."""
    length = folder.object("tokenizer_config.json").get("model_max_length")
    if isinstance(length, int) and length < _SHORT_ROW:
        yield note(
            f"rows of {length} tokens: the longer of both texts is cut, where rankpress cuts the document and leaves "
            "the query whole",
            file="tokenizer_config.json", key="model_max_length", moves_scores=True,
            fix="shorten queries beforehand; others score alike",
        )  # fmt: skip


def _of_other_size(folder: RankerFolder, weights: dict[str, TensorFacts]) -> Iterator[Reason]:
    """Yield where the word table is not what ``config.json`` makes transformers build."""
    table = next((one for name, one in weights.items() if name.endswith(_WORD_TABLES)), None)
    if table is None or table.shape is None or len(table.shape) != 2 or not folder.config:
        return
    for key, found in zip(("vocab_size", "hidden_size"), table.shape, strict=True):
        told = folder.config.get(key, folder.config.get(_OTHER_NAMES.get(key, key), _DEFAULTS.get(key, found)))
        if told != found:
            yield obstacle(
                f"{told}, where the weights have {found}",
                file="config.json",
                key=key,
                fix="write what the weights have",
            )


def is_loaded_by_torch(folder: RankerFolder) -> bool:
    """Whether transformers loads the folder's checkpoint as a cross-encoder, whole."""
    return not any(reason.kind == "obstacle" for reason in checkpoint(folder))


def _why_no_checkpoint(folder: RankerFolder) -> str:
    if not folder.has(MANIFEST):
        return ""
    precision = folder.object(MANIFEST).get("precision")
    kinds = precision.get("linears") if isinstance(precision, dict) else None
    rounded = sorted(set(kinds) - {"fp32"}) if isinstance(kinds, dict) else []
    return f": linears are in {', '.join(rounded)}" if rounded else ": its shape is no stock architecture's"


def activation(folder: RankerFolder) -> Iterator[Reason]:
    """Yield what sentence-transformers does to the logit."""
    config = folder.config
    nested = config.get("sentence_transformers")
    named = nested.get("activation_fn") if isinstance(nested, dict) else None
    named = named or config.get("sbert_ce_default_activation_function")
    if not named:
        text = "no activation_fn: sentence-transformers applies a sigmoid, which is 1 from a logit of 17 on, in fp32"
    elif not str(named).startswith("torch."):
        text = f"{named}, which is taken with trust_remote_code alone: a sigmoid is applied in its place"
    elif str(named) == _IDENTITY:
        return
    else:
        text = f"{named} is applied to the logit"
    yield note(
        text, file="config.json", key="sentence_transformers.activation_fn",
        fix="for raw logits write torch.nn.modules.linear.Identity, or pass activation_fn=torch.nn.Identity()",
    )  # fmt: skip


def _sentence_transformers(folder: RankerFolder) -> Iterator[Reason]:
    yield from checkpoint(folder)
    yield from long_queries(folder)
    yield from activation(folder)
    yield from modules(folder)


def modules(folder: RankerFolder) -> Iterator[Reason]:
    """Yield what a ``modules.json`` changes."""
    if not folder.has("modules.json"):
        return
    if (fault := folder.fault_of("modules.json")) and "list" not in fault:
        yield obstacle(fault, file="modules.json", fix="write it again, or remove it")
    kind = folder.object("config_sentence_transformers.json").get("model_type", "SentenceTransformer")
    if kind != "CrossEncoder":
        yield obstacle(
            f"a chain of modules for {kind}", file="config_sentence_transformers.json", key="model_type",
            fix="remove modules.json from a cross-encoder's folder; bi-encoders load as SentenceTransformer",
        )  # fmt: skip


def _rerankers(folder: RankerFolder) -> Iterator[Reason]:
    yield from checkpoint(folder)
    yield from long_queries(folder)
    path = str(folder.path).lower()
    if words := [word for word in _RERANKERS_WORDS if word in path]:
        yield note(
            f"the path has {words[0]!r} in it, by which rerankers takes the folder for another kind of ranker",
            key="path", fix='pass model_type="cross-encoder"',
        )  # fmt: skip


def _eland(folder: RankerFolder) -> Iterator[Reason]:
    yield from checkpoint(folder)
    yield from before_transformers_5(folder)
    if not folder.family:
        return
    wanted = _ELAND_FILES.get(folder.family)
    if wanted is None:
        yield obstacle(
            f"{folder.family}, whose tokenizer is none of those that Elasticsearch has", file="config.json",
            key="model_type", fix=f"use a teacher of another family ({', '.join(_ELAND_FILES)})",
        )  # fmt: skip
    for name in wanted or ():
        if not folder.has(name):
            yield obstacle(
                "not there: eland loads the slow tokenizer", file=name, fix="copy it from the teacher's checkpoint"
            )
    length = folder.object("tokenizer_config.json").get("model_max_length")
    if not isinstance(length, int) or length > _ELAND_MOST_TOKENS:
        yield note(
            f"{length}, which eland takes for no limit", file="tokenizer_config.json", key="model_max_length",
            fix="write the longest row, or pass --max-model-input-length",
        )  # fmt: skip


TORCH_CONSUMERS = (
    Consumer(name="sentence-transformers (torch)", version="6.2.0", evidence="run", rules=_sentence_transformers),
    Consumer(name="rerankers", version="0.10.0", evidence="run", rules=_rerankers),
    Consumer(name="eland (Elasticsearch)", version="9.2.0", rules=_eland),
)
