"""The way back: a spec that is uniform and dense becomes a checkpoint that transformers loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors.torch import save_file

from compressor.errors import InputError, RunError
from compressor.families.catalogue import FAMILIES, spec_of_config
from compressor.families.family import to_stock
from compressor.families.sentence_folder import write_modules
from compressor.ranker.ranker import Ranker
from compressor.ranker.sparsity import densified
from compressor.ranker.spec import ClassifierHead, RankerSpec
from compressor.storage import write_json

# Fields of a source config that speak of its file, not of its shape, or that newer fields replace.
_STALE = (
    "_name_or_path", "auto_map", "dtype", "torch_dtype", "transformers_version", "quantization_config", "num_labels",
    "global_attn_every_n_layers", "global_rope_theta", "local_rope_theta", "rope_scaling", "rope_theta",
)  # fmt: skip
IDENTITY = "torch.nn.modules.linear.Identity"


def can_be_stock(spec: RankerSpec) -> str | None:
    """Return None where the family's stock architecture computes this spec, else the first reason why not."""
    spec = densified(spec)  # zeros are weights like others
    config = stock_config(spec, {})
    try:
        stock = spec_of_config(config, Path("config.json"), is_encoder=not isinstance(spec.head, ClassifierHead))
    except InputError as error:
        return str(error)
    # What only training and the tokenizer ask about does not make an architecture.
    same = {"max_length": spec.max_length, "dropout": spec.dropout, "separator_id": spec.separator_id}
    stock = stock.model_copy(update=same)
    if not isinstance(spec.head, ClassifierHead):
        stock = stock.model_copy(update={"head": spec.head})
    return _difference("", stock, spec)


def _difference(place: str, stock: Any, found: Any) -> str | None:
    """Return where two specs first differ, in words."""
    if stock == found:
        return None
    if isinstance(stock, BaseModel) and type(stock) is type(found):
        pairs = [(f"{place}.{name}".lstrip("."), getattr(stock, name), getattr(found, name)) for name in dict(stock)]
        return next(difference for pair in pairs if (difference := _difference(*pair)))
    if isinstance(stock, tuple) and isinstance(found, tuple) and len(stock) == len(found):
        parts = [(f"{place}.{index}", *pair) for index, pair in enumerate(zip(stock, found, strict=True))]
        return next(difference for part in parts if (difference := _difference(*part)))
    return f"{place} is {_shown(found)}, the stock architecture has {_shown(stock)}"


def _shown(value: Any) -> str:
    return value.model_dump_json(exclude_defaults=True) if isinstance(value, BaseModel) else repr(value)


def stock_config(spec: RankerSpec, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``config.json`` of a spec.

    Args:
        spec: the shape; where it is not uniform, the first layer speaks for all.
        source: the config of the checkpoint it came from, for what a spec does not say.
    """
    family = FAMILIES[spec.family]
    kept = {name: value for name, value in source.items() if name not in _STALE}
    config = {**kept, "model_type": spec.family, **family.write(spec)}
    if not isinstance(spec.head, ClassifierHead):
        return {**config, "architectures": [family.base_class(spec.family)]}
    labels = kept.get("id2label")
    label = str(next(iter(labels.values()))) if isinstance(labels, Mapping) and len(labels) == 1 else "LABEL_0"
    return {
        **config,
        "architectures": [family.classes[spec.family]],
        "id2label": {"0": label},
        "label2id": {label: 0},
        "sentence_transformers": _sentence_transformers(source),
    }


def _sentence_transformers(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return what sentence-transformers shall do to the logit: what it did to the teacher's, else nothing."""
    nested = source.get("sentence_transformers")
    activation = source.get("sbert_ce_default_activation_function") or IDENTITY
    return {"activation_fn": activation, **(nested if isinstance(nested, Mapping) else {})}


def stock_checkpoint(ranker: Ranker, folder: Path) -> None:
    """Write a ranker as a checkpoint that transformers and sentence-transformers load with equal scores.

    Args:
        ranker: uniform, dense and without exits, see `can_be_stock`.
        folder: gets ``config.json``, ``model.safetensors`` and the tokenizer's files.

    Raises:
        RunError: the ranker has no stock form.
    """
    reason = can_be_stock(ranker.spec)
    if reason:
        raise RunError(f"this ranker has no stock form: {reason}")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", stock_config(ranker.spec, ranker.source_config))
    tensors = to_stock(FAMILIES[ranker.spec.family], ranker.spec, ranker.weights)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes private files
    for name, content in ranker.tokenizer_files.items():
        (folder / name).write_bytes(content)
    if not isinstance(ranker.spec.head, ClassifierHead):
        write_modules(ranker.spec, folder)
