"""What a family is: a table of tensor names, read in both directions, and config ↔ spec."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.errors import Fault
from compressor.families.config import Config
from compressor.ranker.encoder import expected_shapes
from compressor.ranker.spec import ClassifierHead, RankerSpec

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class FamilyAdapter:
    """One stock architecture.

    Attributes:
        classes: transformers' class of the cross-encoder by ``model_type``.
        prefix: the backbone's name inside the cross-encoder.
        backbone: stock module to canonical modules, for the part that has the prefix; ``{i}`` counts layers. Several
            canonical modules are stacked in the stock one, along its rows.
        head: the same for the scoring head, which has no prefix.
        segment_table: the stock name of the token type table. One of a single row is folded into the positions: it
            is added to every token alike, and tokenizers of such families know no token types.
        unused: starts of tensor names that checkpoints carry and scores do not depend on.
        read: config to spec of the cross-encoder.
        write: spec to the config's shape fields.
    """

    classes: Mapping[str, str]
    prefix: str
    backbone: Mapping[str, tuple[str, ...]]
    head: Mapping[str, tuple[str, ...]]
    segment_table: str | None = None
    unused: tuple[str, ...] = field(default=("embeddings.position_ids", "embeddings.token_type_ids"))
    read: Callable[[Config], RankerSpec]
    write: Callable[[RankerSpec], dict[str, Any]]

    def base_class(self, model_type: str) -> str:
        """Return transformers' class without a head."""
        return self.classes[model_type].removesuffix("ForSequenceClassification") + "Model"


def stock_names(family: FamilyAdapter, spec: RankerSpec, *, prefixed: bool) -> dict[str, tuple[str, ...]]:
    """Return every stock tensor of a spec with the canonical tensors that are stacked in it."""
    shapes = expected_shapes(spec)
    names: dict[str, tuple[str, ...]] = {}
    for table, prefix in ((family.backbone, f"{family.prefix}." if prefixed else ""), (family.head, "")):
        for stock, canonical in _per_layer(table, len(spec.layers)):
            for kind in ("weight", "bias"):
                if f"{canonical[0]}.{kind}" in shapes:
                    names[f"{prefix}{stock}.{kind}"] = tuple(f"{name}.{kind}" for name in canonical)
    return names


def _per_layer(table: Mapping[str, tuple[str, ...]], n_layers: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    for stock, canonical in table.items():
        for i in range(n_layers) if "{i}" in stock else (0,):
            yield stock.format(i=i), tuple(name.format(i=i) for name in canonical)


def stock_shapes(family: FamilyAdapter, spec: RankerSpec, *, prefixed: bool) -> dict[str, Shape]:
    """Return name and shape of every tensor of a spec's stock checkpoint."""
    shapes = expected_shapes(spec)
    stock: dict[str, Shape] = {}
    for name, parts in stock_names(family, spec, prefixed=prefixed).items():
        stock[name] = (sum(shapes[part][0] for part in parts), *shapes[parts[0]][1:])
    if family.segment_table and not spec.embeddings.segments:
        stock[_segment_name(family, prefixed)] = (1, spec.embeddings.tokens.width)
    return stock


def _segment_name(family: FamilyAdapter, prefixed: bool) -> str:
    return f"{family.prefix}.{family.segment_table}.weight" if prefixed else f"{family.segment_table}.weight"


def is_prefixed(family: FamilyAdapter, names: Iterable[str]) -> bool:
    """Whether a checkpoint's backbone tensors carry the prefix; those saved without a head do not."""
    return any(name.startswith(f"{family.prefix}.") for name in names)


def shape_faults(family: FamilyAdapter, spec: RankerSpec, tensors: Mapping[str, Shape], source: Path) -> list[Fault]:
    """Compare a checkpoint's tensors with what its config asks for: missing, unexpected, of another shape."""
    expected = stock_shapes(family, spec, prefixed=is_prefixed(family, tensors))
    missing = [name for name in expected if name not in tensors]
    of_head = [name for name in missing if name.startswith(tuple(f"{name}." for name in family.head))]
    if of_head:
        return [_no_head(source, of_head)]
    faults = []
    if missing:
        found = f"a checkpoint without {_listed(missing)}"
        faults.append(Fault(source=source, found=found, fix="save the whole model with save_pretrained"))
    unexpected = [name for name in tensors if name not in expected and not is_unused(family, spec, name)]
    if unexpected:
        fix = "a model that computes more than its config says cannot be scored rightly"
        faults.append(Fault(source=source, found=f"tensors of no known place: {_listed(unexpected)}", fix=fix))
    for name, shape in expected.items():
        if name in tensors and tensors[name] != shape:
            found, allowed = f"shape {list(tensors[name])}", f"{list(shape)}, as config.json says"
            faults.append(Fault(source=source, where=name, found=found, allowed=allowed))
    return faults


def _no_head(source: Path, missing: list[str]) -> Fault:
    return Fault(
        source=source,
        found=f"a base encoder without a scoring head (no {_listed(missing)})",
        allowed="a trained cross-encoder with one logit, or a bi-encoder saved by sentence-transformers (modules.json)",
        fix="a fresh head would score at random: name a ranker as teacher, give this encoder to the pass start_from, "
        "and train it with finetune or distill",
    )


def is_unused(family: FamilyAdapter, spec: RankerSpec, name: str) -> bool:
    """Whether a ranker's scores do not depend on a tensor of its checkpoint."""
    own = name.removeprefix(f"{family.prefix}.")
    if own.startswith(family.unused):
        return True
    # A bi-encoder's checkpoint may carry heads of its pretraining; its vectors do not depend on them.
    pretraining = ("pooler.", "cls.", "lm_head.", "decoder.", "vocab_", "generator_", "discriminator_", "head.", "qa_")
    return not isinstance(spec.head, ClassifierHead) and own.startswith((*pretraining, *family.head))


def _listed(names: list[str]) -> str:
    shown = ", ".join(islice(names, 4))
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def to_canonical(family: FamilyAdapter, spec: RankerSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under canonical names, fp32; shapes were checked before."""
    shapes = expected_shapes(spec)
    prefixed = is_prefixed(family, tensors)
    weights: dict[str, Tensor] = {}
    for stock, parts in stock_names(family, spec, prefixed=prefixed).items():
        rows = [shapes[part][0] for part in parts]
        pieces = tensors[stock].float().split(rows) if len(parts) > 1 else [tensors[stock].float()]
        weights |= {part: piece.contiguous() for part, piece in zip(parts, pieces, strict=True)}
    if family.segment_table and not spec.embeddings.segments:
        row = tensors[_segment_name(family, prefixed)].float()
        weights["embeddings.positions.weight"] = weights["embeddings.positions.weight"] + row
    return weights


def to_stock(family: FamilyAdapter, spec: RankerSpec, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return canonical weights under the names of the stock checkpoint; a bi-encoder's carry no prefix."""
    prefixed = isinstance(spec.head, ClassifierHead)
    tensors = {
        stock: torch.cat([weights[part] for part in parts]) if len(parts) > 1 else weights[parts[0]].contiguous()
        for stock, parts in stock_names(family, spec, prefixed=prefixed).items()
    }
    if family.segment_table and not spec.embeddings.segments:
        tensors[_segment_name(family, prefixed)] = torch.zeros(1, spec.embeddings.tokens.width)
    return tensors
