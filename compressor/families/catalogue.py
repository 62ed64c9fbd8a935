"""The supported families, and what to say to a checkpoint of any other kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compressor.errors import Fault, InputError, suggest
from compressor.families.bert import BERT
from compressor.families.config import Config
from compressor.families.distilbert import DISTILBERT
from compressor.families.electra import ELECTRA
from compressor.families.family import FamilyAdapter
from compressor.families.modernbert import MODERNBERT
from compressor.families.roberta import ROBERTA
from compressor.ranker.spec import RankerSpec

FAMILIES: dict[str, FamilyAdapter] = {
    model_type: family for family in (BERT, ELECTRA, ROBERTA, DISTILBERT, MODERNBERT) for model_type in family.classes
}

_SUPPORTED = "BERT (MiniLM, TinyBERT), ELECTRA, RoBERTa, XLM-RoBERTa, DistilBERT and ModernBERT with one logit"


def spec_of_config(values: Mapping[str, Any], source: Path, *, is_encoder: bool = False) -> RankerSpec:
    """Describe a checkpoint's shape from its ``config.json`` alone.

    Args:
        values: the config.
        source: the file, for messages.
        is_encoder: whether it is the encoder of a bi-encoder, which needs no scoring head.

    Raises:
        InputError: all reasons why rankpress cannot score as this checkpoint does.
    """
    faults = _refusals(values, source, is_encoder)
    family = FAMILIES.get(str(values.get("model_type")))
    if family is None or faults:
        raise InputError(faults)
    config = Config(values, source)
    try:
        spec = family.read(config)
    except ValidationError as error:
        raise InputError(config.faults or [Fault(source=source, found=_reasons(error))]) from None
    if config.faults:
        raise InputError(config.faults)
    return spec


def _reasons(error: ValidationError) -> str:
    return "a shape that cannot be: " + "; ".join(
        fault["msg"].removeprefix("Value error, ") for fault in error.errors()
    )


def _refusals(values: Mapping[str, Any], source: Path, is_encoder: bool) -> list[Fault]:
    faults = []
    model_type = values.get("model_type")
    if model_type not in FAMILIES:
        faults.append(_unknown_type(values, source))
    if "quantization_config" in values:
        fix = "give the checkpoint from before quantization; the recipe's quantize pass makes the int8 one"
        faults.append(Fault(source=source, where="quantization_config", found="quantized weights", fix=fix))
    if model_type in FAMILIES and not is_encoder:
        faults += _head_faults(values, source)
    return faults


def _unknown_type(values: Mapping[str, Any], source: Path) -> Fault:
    model_type = values.get("model_type")
    classes = " ".join(map(str, values.get("architectures") or ()))
    fix = suggest(str(model_type), FAMILIES)
    if values.get("is_encoder_decoder") or "T5" in classes or str(model_type).endswith("t5"):
        found = f"an encoder-decoder checkpoint ({model_type})"
        fix = "monoT5 and RankT5 rankers are not compressed; they can teach: distill's 'teachers: [{large: ...}]'"
    elif "ForCausalLM" in classes:
        found = f"a decoder checkpoint ({model_type}, {classes})"
        fix = "rankers that compare the logits of two words are not compressed; they can teach: distill's "
        fix += "'teachers: [{large: ...}]'"
    elif values.get("auto_map"):
        found = f"an architecture of its own code ({model_type}, auto_map)"
        fix = "code from a checkpoint is never run"
    else:
        found = f"the model type {model_type!r}" if model_type else "no model_type"
    return Fault(source=source, where="model_type", found=found, allowed=_SUPPORTED, fix=fix)


def _head_faults(values: Mapping[str, Any], source: Path) -> list[Fault]:
    labels = values.get("id2label") or {}
    count = len(labels) if labels else values.get("num_labels", 1)
    if count == 1:
        return []
    fix = "train a one-logit head; the difference of two logits is not what other runtimes of this folder would score"
    return [Fault(source=source, where="id2label", found=f"a head of {count} logits", allowed="1", fix=fix)]
