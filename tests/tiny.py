"""Tiny rankers built in code: a 2-layer, 2-head, width-16 encoder and a WordPiece tokenizer of about 200 tokens."""

from __future__ import annotations

import json
import string
from typing import TYPE_CHECKING, Any

from compressor.ranker.spec import (
    AttentionSpec,
    ClassifierHead,
    DropoutSpec,
    EmbeddingsSpec,
    FeedForwardSpec,
    LayerSpec,
    LinearSpec,
    NormSpec,
    RankerSpec,
    TableSpec,
)

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.data import RankingData
    from compressor.ranker.encoder import Encoder
    from compressor.ranker.ranker import Ranker

WIDTH, HEADS, FFN_WIDTH, MAX_LENGTH = 16, 2, 32, 40
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_TEXT = """
    a about air all and animal are ask be bird bread by can car cat city cloud code cold count day dog door eat
    engine fast file find fish food for from garden give green house how if in is it large list long make many model
    moon more new of old on open or order other page path plant rain read red return river road rule score sea search
    short sleep small snow song star stone sun table that the time to train tree value water what when where which
    white why wind with word write"""
WORDS = tuple(_TEXT.split())


def vocabulary() -> list[str]:
    """Return the tokens in the order of their ids: specials, characters, continued characters, words."""
    characters = string.ascii_lowercase + string.digits
    longer = [word for word in WORDS if len(word) > 1]
    return [*SPECIALS, *characters, *(f"##{c}" for c in characters), *string.punctuation, *longer]


def tokenizer_files(document_segment: int = 1) -> dict[str, bytes]:
    """Return a BERT tokenizer's files, name to content; any ASCII text becomes known tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokens = {token: index for index, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]"))  # noqa: S106  # a token of text, no secret
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] $B:{document_segment} [SEP]:{document_segment}",
        special_tokens=[("[CLS]", tokens["[CLS]"]), ("[SEP]", tokens["[SEP]"])],
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIALS))
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIALS}
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": MAX_LENGTH, **names}
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "special_tokens_map.json": json.dumps(names).encode(),
        "vocab.txt": "\n".join(tokens).encode(),
    }


def tiny_layer(**changes: Any) -> LayerSpec:
    """Return a BERT layer: post-norm, full attention, plain feed-forward with the exact GELU."""
    square = LinearSpec(inputs=WIDTH, outputs=WIDTH)
    norm = NormSpec(epsilon=1e-12)
    layer = LayerSpec(
        norm_placement="post",
        attention=AttentionSpec(
            heads=HEADS, head_width=WIDTH // HEADS, query=square, key=square, value=square, output=square
        ),
        attention_norm=norm,
        ffn=FeedForwardSpec(
            activation="gelu",
            up=LinearSpec(inputs=WIDTH, outputs=FFN_WIDTH),
            down=LinearSpec(inputs=FFN_WIDTH, outputs=WIDTH),
        ),
        ffn_norm=norm,
    )
    return layer.changed(**changes)


def tiny_spec(**changes: Any) -> RankerSpec:
    """Return the shape of a BERT cross-encoder, with some fields replaced."""
    spec = RankerSpec(
        family="bert",
        width=WIDTH,
        max_length=MAX_LENGTH,
        pad_id=0,
        embeddings=EmbeddingsSpec(
            tokens=TableSpec(rows=len(vocabulary()), width=WIDTH),
            positions=TableSpec(rows=MAX_LENGTH, width=WIDTH),
            segments=TableSpec(rows=2, width=WIDTH),
            norm=NormSpec(epsilon=1e-12),
        ),
        layers=(tiny_layer(), tiny_layer()),
        head=ClassifierHead(
            pool="first",
            dense=LinearSpec(inputs=WIDTH, outputs=WIDTH),
            activation="tanh",
            output=LinearSpec(inputs=WIDTH, outputs=1),
        ),
        dropout=DropoutSpec(hidden=0.1, attention=0.1, head=0.1),
    )
    return spec.changed(**changes)


def lively_weights(spec: RankerSpec, seed: int = 0, scale: float = 0.3) -> dict[str, Tensor]:
    """Return random weights under which scores differ between pairs, with no bias zero and no norm at one."""
    import torch

    from compressor.ranker.encoder import random_weights

    generator = torch.Generator().manual_seed(seed + 1)
    weights = random_weights(spec, seed, scale)
    return {
        name: tensor if tensor.dim() > 1 else tensor + torch.randn(tensor.shape, generator=generator) * 0.1
        for name, tensor in weights.items()
    }


def build_ranker(spec: RankerSpec | None = None, seed: int = 0) -> Ranker:
    """Return a ranker of a spec (by default `tiny_spec()`) with random weights and the tiny tokenizer."""
    from compressor.ranker.ranker import Ranker

    spec = spec or tiny_spec()
    config = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "num_labels": 1}
    segments = spec.embeddings.segments
    files = tokenizer_files(document_segment=min(1, segments.rows - 1) if segments else 1)
    return Ranker(spec=spec, weights=lively_weights(spec, seed), tokenizer_files=files, source_config=config)


def batch_of(spec: RankerSpec, lengths: list[int], columns: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Return random rows of the given lengths, padded to ``columns``; equal seeds give equal tokens.

    Where the spec knows a separator, it stands behind three tokens and at the end of every row, and nowhere else.
    """
    import torch

    columns = columns or max(lengths)
    generator = torch.Generator().manual_seed(seed)
    full = torch.randint(2, spec.embeddings.tokens.rows, (len(lengths), spec.max_length), generator=generator)
    if spec.separator_id is not None:
        full = torch.where(full == spec.separator_id, 1, full)
        full[:, 3] = full[range(len(lengths)), torch.tensor(lengths) - 1] = spec.separator_id
    mask = (torch.arange(columns) < torch.tensor(lengths)[:, None]).long()
    rows = spec.embeddings.segments.rows if spec.embeddings.segments else 1
    segments = (torch.arange(columns) > 3).long().clamp(max=rows - 1) * mask
    ids = torch.where(mask.bool(), full[:, :columns], spec.pad_id)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}


def module_of(spec: RankerSpec, seed: int = 0) -> Encoder:
    """Return the torch module of a spec with random weights, in evaluation mode."""
    return build_ranker(spec, seed).module


QUERIES = {
    "q1": "how to train a small dog",
    "q2": "which tree is green",
    "q3": "read a file fast",
    "q4": "why is the sea cold",
    "q5": "what do birds eat in snow",
    "q6": "return the value of a list",
}
DOCUMENTS = {
    "d1": "train the dog with food and give it time to sleep",
    "d2": "the tree in the garden is green when it rains",
    "d3": "open the file, read a page, return the words",
    "d4": "cold water from the river makes the sea cold",
    "d5": "birds eat bread and fish; in snow they ask for more food by the house",
    "d6": "a list has many values. return the value by its order in the list",
    "d7": "the moon, the sun and a star",
    "d8": "fast engine of a red car on the road " * 6,
}
EMPTY_DOCUMENT, LONG_DOCUMENT = "", "the wind and the rain on an old stone house by the sea " * 8


def build_data() -> RankingData:
    """Return a data set of six queries, each with all eight documents as candidates in its own order."""
    from compressor.data import RankingData

    ids = list(DOCUMENTS)
    return RankingData(
        name="tiny/test",
        collection="tiny",
        first_stage="by hand",
        queries=dict(QUERIES),
        documents=dict(DOCUMENTS),
        qrels={q: {ids[i]: 2, ids[i + 1]: 1} for i, q in enumerate(QUERIES)},
        candidates={q: ids[i:] + ids[:i] for i, q in enumerate(QUERIES)},
    )
