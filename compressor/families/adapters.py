"""Merges adapters into the weights of the ranker that they were trained on, or says all that does not fit."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from compressor.errors import Fault, InputError
from compressor.families.adapter_changes import (
    Change,
    LowRank,
    RandomBases,
    Replacement,
    Shape,
    Shift,
    Sparse,
    drawn_ternary_bases,
)
from compressor.families.adapter_files import NEEDED, Adapted, Adapter
from compressor.families.catalogue import FAMILIES
from compressor.families.family import FamilyAdapter, is_prefixed, is_unused, stock_names, stock_shapes
from compressor.families.peft_config import PeftConfig
from compressor.ranker.spec import RankerSpec

_FEED_FORWARD = re.compile(r"layers\.\d+\.ffn\.down\.weight")
_POSITIONS = ("embeddings.positions.weight",)


def check_adapter(adapter: Adapter, spec: RankerSpec) -> None:
    """Refuse an adapter that was trained on a ranker of another shape.

    Raises:
        InputError: names all that does not fit, like faults of several layers together.
    """
    _changes(adapter, _Base.of(adapter, spec))


def merged_weights(adapter: Adapter, spec: RankerSpec, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a ranker's weights, fp32, after which it scores as ranker and adapter together do.

    Raises:
        InputError: as `check_adapter`; or sums are NaN or infinite.
    """
    base, merged = _Base.of(adapter, spec), dict(weights)
    for change in _changes(adapter, base):
        parts = base.names[change.target]
        before = torch.cat([merged[part].double() for part in parts])  # ModernBERT stacks several in one
        after = change.merged(before).float()
        if not after.isfinite().all():
            raise InputError(Fault(source=adapter.folder, where=change.target, found="NaN or infinite sums"))
        rows = [merged[part].shape[0] for part in parts]
        merged |= {part: piece.contiguous() for part, piece in zip(parts, after.split(rows), strict=True)}
    return merged


@dataclass(frozen=True, kw_only=True)
class _Base:
    """The tensors of the checkpoint that an adapter's names refer to.

    Attributes:
        family, spec: whose checkpoint.
        names: each with the canonical tensors that are stacked in it.
        shapes: of the same.
        feed_forwards: module that holds a feed-forward's output matrix: name of that matrix.
        untrained: starts of names that the trained model had not: the head's, where it was a bare encoder.
        has_folded_segment: whether the only segment's row was added to the positions.
    """

    family: FamilyAdapter
    spec: RankerSpec
    names: Mapping[str, tuple[str, ...]]
    shapes: Mapping[str, Shape]
    feed_forwards: Mapping[str, str]
    untrained: tuple[str, ...]
    has_folded_segment: bool

    @classmethod
    def of(cls, adapter: Adapter, spec: RankerSpec) -> Self:
        family = FAMILIES[spec.family]
        prefixed = is_prefixed(family, [*(one.module for one in adapter.adapted), *adapter.replaced])
        names = stock_names(family, spec, prefixed=prefixed)
        shapes = stock_shapes(family, spec, prefixed=prefixed)
        outputs = [name for name, parts in names.items() if _FEED_FORWARD.fullmatch(parts[0])]
        return cls(
            family=family,
            spec=spec,
            names=names,
            shapes={name: shapes[name] for name in names},
            feed_forwards={name.rsplit(".", 2)[0]: name for name in outputs},
            untrained=() if prefixed else tuple(f"{name}." for name in family.head),
            has_folded_segment=bool(family.segment_table) and not spec.embeddings.segments,
        )

    def misfit(self, change: Change) -> str:
        """Return why a change has no place, or an empty text."""
        if change.target not in self.names:
            return "this ranker has no such tensor"
        shape = self.shapes[change.target]
        if isinstance(change, LowRank | RandomBases) and len(shape) != 2:
            return f"factors of a matrix for a tensor of {list(shape)}"
        if isinstance(change, Replacement) and self.has_folded_segment and self.names[change.target] == _POSITIONS:
            return "positions trained whole, to which this ranker has added its only segment"
        return "; ".join(change.misfits(shape))

    def modules(self) -> list[str]:
        """Return the modules with a matrix that the trained model had."""
        ends = [name for name, shape in self.shapes.items() if len(shape) == 2 and name.endswith(".weight")]
        return [name.removesuffix(".weight") for name in ends if not name.startswith(self.untrained)]


def _changes(adapter: Adapter, base: _Base) -> list[Change]:
    """Return what an adapter does to each tensor, replacements first."""
    changes: list[Change] = [
        Replacement(target=name, parts={"value": tensor}) for name, tensor in adapter.replaced.items()
    ]
    misfits: list[tuple[str, str]] = []
    drawn = _drawn_bases(adapter, base)
    for one in adapter.adapted:
        if one.kind == "adapter_bias" and one.module not in base.feed_forwards:
            misfits.append((one.module, "no feed-forward ends here, so no matrix can hold a shift of what it gives"))
        elif one.kind == "randlora" and not (drawn or _has_bases(one)):
            misfits.append((one.module, _NO_BASES))
        else:
            changes += _changes_of(one, adapter, base, drawn)
    changes = [one for one in changes if one.target in base.names or not is_unused(base.family, base.spec, one.target)]
    for change in changes:
        if misfit := base.misfit(change):
            misfits.append((change.target, misfit))
    if adapter.config:
        misfits += _untold(adapter.config, base, {change.target for change in changes})
    if misfits:
        raise InputError([Fault(source=adapter.folder, where=w, found=found) for w, found in _by_layer(misfits)])
    return changes


_NO_BASES = (
    "no random bases in the file, and dense ones cannot be drawn again: PEFT draws them in a half precision that "
    "depends on the machine (save the adapter with save_projection: true)"
)


def _changes_of(one: Adapted, adapter: Adapter, base: _Base, drawn: Mapping[str, Tensor]) -> list[Change]:
    weight, bias, parts = f"{one.module}.weight", f"{one.module}.bias", one.parts
    if one.kind == "adapter_bias":
        # v·(αᵀa + c) onto what a matrix makes of a: an update of rank 1, and a shift of the bias.
        weight, vector = base.feed_forwards[one.module], parts["adapter_vector"].reshape(-1, 1)
        constant = parts["adapter_alpha.bias"].reshape(-1)
        return [
            LowRank(target=weight, parts={"down": parts["adapter_alpha.weight"], "up": vector}, rank=1, scaling=1),
            Shift(target=f"{weight.removesuffix('weight')}bias", parts={"shift": (vector * constant).squeeze(1)}),
        ]
    if one.kind in ("shira", "sparse") or adapter.config is None:
        values, indices = (parts[role] for role in NEEDED[one.kind])
        target = weight if one.kind == "shira" else one.module
        return [Sparse(target=target, parts={"values": values, "indices": indices})]
    rank, scaling = adapter.config.rank_of(one.module), adapter.config.scaling_of(one.module)
    if one.kind == "randlora":
        names = {"randlora_lambda": "lambda", "randlora_gamma": "gamma", "randlora_A": "a", "randlora_B": "b"}
        found = {names[role]: part for role, part in parts.items()}
        return [RandomBases(target=weight, parts={**drawn, **found}, rank=rank, scaling=scaling)]
    down, up = (parts[role] for role in NEEDED[one.kind])
    factors = {"down": down, "up": up}
    if "lora_magnitude_vector" in parts:
        factors["magnitude"] = parts["lora_magnitude_vector"].reshape(-1)
    is_table = one.kind == "lora_embedding"
    changes: list[Change] = [LowRank(target=weight, parts=factors, rank=rank, scaling=scaling, is_table=is_table)]
    if "lora_B.bias" in parts:
        changes.append(Shift(target=bias, parts={"shift": parts["lora_B.bias"]}, scaling=scaling))
    return changes


def _has_bases(one: Adapted) -> bool:
    return {"randlora_A", "randlora_B"} <= one.parts.keys()


def _drawn_bases(adapter: Adapter, base: _Base) -> dict[str, Tensor]:
    """Draw the bases that RandLoRA's modules share, as large as the largest needs; nothing where they cannot be."""
    config = adapter.config
    lacking = config and config.kind == "RANDLORA" and not all(map(_has_bases, adapter.adapted))
    if not config or not lacking or not (config.sparse or config.very_sparse):
        return {}
    shapes = [base.shapes.get(f"{one.module}.weight", ()) for one in adapter.adapted]
    sides = [max((shape[side] for shape in shapes if len(shape) == 2), default=1) for side in (0, 1)]
    a, b = drawn_ternary_bases(config.rank, min(sides), max(sides), config.seed, very=config.very_sparse)
    return {"a": a.double(), "b": b.double()}


def _untold(config: PeftConfig, base: _Base, changed: Iterable[str]) -> list[tuple[str, str]]:
    """Return what the config says was trained and the file says nothing of: another model's, or lost."""
    changed, untold = set(changed), []
    adapted = {name.removesuffix(".weight") for name in changed if name.endswith(".weight")}
    for module in base.modules():
        if config.is_target(module) and module not in adapted and not config.is_whole(f"{module}.weight"):
            untold.append((module, "a target of the adapter for which it holds nothing"))
    for name in base.names:
        module, _, kind = name.rpartition(".")
        if name in changed or name.startswith(base.untrained):
            continue
        if config.is_whole(name):
            untold.append((name, "trained whole (modules_to_save), and not in the file"))
        elif kind == "bias" and (config.biases == "all" or (config.biases == "adapted" and module in adapted)):
            untold.append((name, "a bias that was trained, and is not in the file"))
    return untold


def _by_layer(misfits: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Join misfits that differ in the layer alone: ``encoder.layer.{0, 1}.output.dense``."""
    layers: dict[tuple[str, str], list[str]] = defaultdict(list)
    for place, found in dict.fromkeys(misfits):
        numbers = re.findall(r"\.(\d+)\.", place)
        layers[re.sub(r"\.\d+\.", ".{}.", place, count=1), found] += numbers[:1]
    joined = []
    for (place, found), numbers in layers.items():
        shown = numbers[0] if len(numbers) == 1 else "{" + ", ".join(numbers) + "}"
        joined.append((place.replace("{}", shown, 1), found))
    return joined
