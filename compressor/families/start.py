"""Where a student may start: any ranker, bi-encoder or bare encoder, read as a cross-encoder with one logit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from compressor.families.catalogue import FAMILIES
from compressor.families.config import Config
from compressor.families.onnx_import import NotRecognizedError
from compressor.families.sources import CheckpointSource, OnnxFile, Source
from compressor.families.stock import stock_config
from compressor.families.teacher import check_finite, open_source
from compressor.ranker.encoder import random_weights
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import ClassifierHead, RankerSpec

T = TypeVar("T")

# What the config of the checkpoint says of a logit that is no longer its own.
_OF_OLD_HEAD = ("sentence_transformers", "sbert_ce_default_activation_function", "id2label", "label2id", "num_labels")


def peek_start(reference: str, base: Path) -> RankerSpec:
    """Return the shape that `load_start` gives, without loading or downloading weights.

    Raises:
        InputError: there is no such checkpoint, or one that rankpress cannot read exactly.
    """
    source = open_source(reference, base, with_weights=False)
    if isinstance(source, CheckpointSource):
        config = source.checkpoint().config
        spec = replace(source, is_encoder=True).spec()
    else:
        config = {}
        spec = _with_any_head(source, lambda one: one.spec())
    return spec if isinstance(spec.head, ClassifierHead) else spec.changed(head=fresh_head(spec, config))


def load_start(reference: str, base: Path, *, seed: int, keep_head: bool = True) -> tuple[Ranker, dict[str, Any]]:
    """Read a checkpoint as a cross-encoder with one logit.

    Args:
        reference: what a recipe's ``teacher:`` may be, or the same without a head of one logit: a bare encoder, an
            encoder in ONNX that gives its last states, a head of more logits.
        base: the folder that relative paths start from.
        seed: for what is drawn at random.
        keep_head: keep what there is of a head; otherwise only what is part of the encoder (BERT's pooler).

    Returns:
        The ranker in fp32, without history, and notes: the family, the kind of files, and which weights were drawn.

    Raises:
        InputError: there is no such checkpoint, or one that rankpress cannot read exactly.
    """
    source = open_source(reference, base, with_weights=True)
    found: Mapping[str, Tensor] = {}
    if isinstance(source, CheckpointSource):
        encoder, notes = replace(source, is_encoder=True).read()
        spec = encoder.spec.changed(head=fresh_head(encoder.spec, encoder.source_config))
        found = source.checkpoint().head_weights(spec)
    else:
        encoder, notes = _with_any_head(source, lambda one: one.read())
        found = {name: tensor for name, tensor in encoder.weights.items() if name.startswith("head.")}
    check_finite(encoder, reference)
    notes = {"family": encoder.spec.family, **notes}
    ranker, drawn = with_head(encoder, found, seed=seed, keep_head=keep_head)
    return ranker.changed(history=()), {**notes, "drawn": drawn}


def with_head(
    encoder: Ranker, found: Mapping[str, Tensor], *, seed: int, keep_head: bool = True
) -> tuple[Ranker, list[str]]:
    """Return a ranker with a scoring head of one logit, and the names of the weights that were drawn for it.

    Args:
        encoder: the ranker, with whatever head.
        found: weights of the head that are there already.
        seed: for the others: normal matrices as wide as the family draws them, zero biases, unit norms.
        keep_head: keep all of ``found``; otherwise only what is part of the encoder (BERT's pooler).
    """
    spec = encoder.spec
    if not isinstance(spec.head, ClassifierHead):
        spec = spec.changed(head=fresh_head(spec, encoder.source_config))
    kept = dict(found) if keep_head else _of_encoder(spec, found)
    scale = encoder.source_config.get("initializer_range")
    drawn = {
        name: tensor
        for name, tensor in random_weights(spec, seed, float(scale) if isinstance(scale, int | float) else 0.02).items()
        if name.startswith("head.") and name not in kept
    }
    body = {name: tensor for name, tensor in encoder.weights.items() if not name.startswith("head.")}
    config = encoder.source_config
    if drawn:
        config = {name: value for name, value in config.items() if name not in _OF_OLD_HEAD}
    return encoder.changed(spec=spec, weights={**body, **kept, **drawn}, source_config=config), sorted(drawn)


def fresh_head(spec: RankerSpec, config: Mapping[str, Any]) -> ClassifierHead:
    """Return the scoring head that a spec's family puts on an encoder of its width.

    Args:
        spec: of the encoder.
        config: its config, which may say how the head is made (ModernBERT's ``classifier_pooling``).
    """
    own = {name: value for name, value in config.items() if name.startswith("classifier_")}
    heads = {"num_attention_heads": 1, "n_heads": 1}  # divides every width; the encoder's own number plays no part
    shape = Config({**stock_config(spec, config), **own, **heads}, Path("config.json"))
    head = FAMILIES[spec.family].read(shape).head
    if not isinstance(head, ClassifierHead):
        raise TypeError(f"the family {spec.family} reads no classifier")
    return head


def _of_encoder(spec: RankerSpec, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the head that the family counts to the encoder, as BERT does its pooler."""
    poolers = [part for parts in FAMILIES[spec.family].backbone.values() for part in parts if part.startswith("head.")]
    return {name: tensor for name, tensor in found.items() if name.startswith(tuple(f"{part}." for part in poolers))}


def _with_any_head(source: Source, ask: Callable[[Source], T]) -> T:
    """Ask a source as a cross-encoder, or where its graph has no logit as an encoder."""
    try:
        return ask(source)
    except NotRecognizedError:
        if not isinstance(source, OnnxFile) or source.pool is not None:
            raise
        return ask(source.as_encoder())
