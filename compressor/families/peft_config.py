"""Reads PEFT's ``adapter_config.json``: what merging depends on, and what no merged matrix can compute."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.errors import Fault, InputError
from compressor.families.config import Config
from compressor.storage import read_json

CONFIG = "adapter_config.json"
KINDS = {"LORA": "LoRA", "RANDLORA": "RandLoRA", "SHIRA": "SHiRA"}

# Settings that change what an adapter computes, with why it is not merged. `fan_in_fan_out` is not among them: PEFT
# itself switches it off for linear layers, and these families have no others.
_NOT_MERGED = {
    "layer_replication": "layers are repeated, which no weight can do",
    "megatron_config": "matrices are split over devices",
    "alora_invocation_tokens": "only tokens behind others are changed: no matrix holds that",
    "trainable_token_indices": "single rows of tables were trained along",
    "target_parameters": "tensors other than matrices of modules were adapted",
    "use_qalora": "inputs are pooled in groups first",
    "arrow_config": "adapters are chosen token by token",
}
# Settings that choose among the modules whose names `target_modules` gives.
_SELECTIVE = ("layers_to_transform", "layers_pattern", "exclude_modules")
# Ways to start LoRA that leave the base as it was; others take a part of it away and train on the rest.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """The settings that merging depends on.

    Attributes:
        kind: PEFT's ``peft_type``, one of `KINDS`.
        base: the model that the adapter says it was trained on; may be empty.
        rank, alpha, ranks, alphas: R and α of all modules, and by pattern of a module's name where they differ.
        rank_stabilized: α / √R in place of α / R (rsLoRA, arXiv 2312.03732).
        magnitudes: whether rows have trained lengths (DoRA).
        biases: ``none``, ``all``, or ``adapted`` where those of adapted modules alone were trained.
        whole: ends of names of modules that were trained whole.
        targets: names or a regular expression of the adapted modules, where they say which modules these are.
        sparse, very_sparse: whether random bases are ternary, and how sparse.
        seed: of random bases.
    """

    kind: str
    base: str = ""
    rank: int = 1
    alpha: float = 1.0
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    rank_stabilized: bool = False
    magnitudes: bool = False
    biases: str = "none"
    whole: tuple[str, ...] = ()
    targets: tuple[str, ...] | str = ()
    sparse: bool = False
    very_sparse: bool = False
    seed: int = 0

    def rank_of(self, module: str) -> int:
        """Return R of a module."""
        return next((rank for pattern, rank in self.ranks.items() if _matches(pattern, module)), self.rank)

    def scaling_of(self, module: str) -> float:
        """Return the factor of a module's update."""
        alpha = next((alpha for pattern, alpha in self.alphas.items() if _matches(pattern, module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rank_stabilized else alpha / rank

    def is_whole(self, tensor: str) -> bool:
        """Whether a tensor belongs to a module that was trained whole; PEFT compares ends of names."""
        parts = tensor.split(".")[:-1]
        modules = [".".join(parts[: end + 1]) for end in range(len(parts))]
        return any(module.endswith(name) for module in modules for name in self.whole)

    def is_target(self, module: str) -> bool:
        """Whether the config names a module as adapted."""
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, module) is not None
        return any(module == name or module.endswith(f".{name}") for name in self.targets)


def _matches(pattern: str, module: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def read_peft_config(folder: Path) -> PeftConfig:
    """Read the config of an adapter's folder.

    Raises:
        InputError: it is broken, or of an adapter that cannot be merged exactly; says why, all reasons at once.
    """
    path = folder / CONFIG
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(Fault(source=path, found="a JSON list or value", allowed="an object"))
    kind = str(values.get("peft_type"))
    if kind not in KINDS:
        fix = "what an adapter of this kind computes is not held by the matrices of the ranker, or not read here"
        raise InputError(Fault(source=path, where="peft_type", found=repr(kind), allowed=", ".join(KINDS), fix=fix))
    return _read(Config(values, path), kind)


def _read(values: Config, kind: str) -> PeftConfig:
    settings = values.values
    for name, why in _NOT_MERGED.items():
        if settings.get(name):
            found, fix = repr(settings[name]), f"it cannot be merged: {why}"
            values.faults.append(Fault(source=values.source, where=name, found=found, fix=fix))
    if kind == "LORA" and settings.get("init_lora_weights") not in _STARTS:
        values.fault("init_lora_weights", "a start that leaves the base as it is; else the adapter fits what it left")
    alpha = ("randlora_alpha", 640.0) if kind == "RANDLORA" else ("lora_alpha", 8.0)
    config = PeftConfig(
        kind=kind,
        base=str(settings.get("base_model_name_or_path") or ""),
        rank=values.integer("r", 32 if kind == "RANDLORA" else 8),
        alpha=values.number(*alpha),
        ranks=_by_pattern(values, "rank_pattern", whole=True),
        alphas=_by_pattern(values, "alpha_pattern"),
        rank_stabilized=values.flag("use_rslora", False),
        magnitudes=values.flag("use_dora", False),
        biases=_biases(values),
        whole=_names(values, "modules_to_save"),
        targets=_targets(values),
        sparse=values.flag("sparse", False),
        very_sparse=values.flag("very_sparse", False),
        seed=values.integer("projection_prng_key", 0, least=0),
    )
    if values.faults:
        raise InputError(values.faults)
    return config


def _by_pattern(values: Config, name: str, *, whole: bool = False) -> dict[str, Any]:
    patterns = values.values.get(name) or {}
    if not isinstance(patterns, dict) or not all(map(_is_pattern, patterns)):
        return values.fault(name, "numbers by regular expressions of modules' names", {})
    numbers = Config(patterns, values.source)
    read = {pattern: numbers.integer(pattern, 1) if whole else numbers.number(pattern, 1) for pattern in patterns}
    values.faults += numbers.faults
    return read


def _biases(values: Config) -> str:
    trained = {"none": "none", "all": "all", "lora_only": "adapted", "randlora_only": "adapted"}
    name = values.values.get("bias", "none")
    return trained[name] if name in trained else values.fault("bias", ", ".join(trained), "none")


def _names(values: Config, name: str) -> tuple[str, ...]:
    names = values.values.get(name) or []
    if not isinstance(names, list) or not all(isinstance(one, str) and one for one in names):
        return values.fault(name, "a list of names", ())
    return tuple(names)


def _targets(values: Config) -> tuple[str, ...] | str:
    """Return which modules the config names as adapted; nothing where it does not say so by their names alone."""
    targets = values.values.get("target_modules")
    if any(values.values.get(name) for name in _SELECTIVE) or targets == "all-linear":
        return ()
    if isinstance(targets, str):
        return targets if _is_pattern(targets) else values.fault("target_modules", "names or a regular expression", ())
    return _names(values, "target_modules")


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
