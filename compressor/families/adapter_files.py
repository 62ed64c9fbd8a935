"""Reads adapters from their folders: PEFT's LoRA, RandLoRA and SHiRA, AdapterBias, and sparse differences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from compressor.errors import Fault, InputError
from compressor.families.checkpoint import FLOATS, aligned, opened
from compressor.families.peft_config import CONFIG, KINDS, PeftConfig, read_peft_config
from compressor.storage import sha256_file

WEIGHTS = "adapter_model.safetensors"

# Ends of tensors' names: the kind of adapter, and the tensor's role in it. All others replace a tensor of the base.
_ENDS = {
    ".lora_A.weight": ("lora", "lora_A"),
    ".lora_B.weight": ("lora", "lora_B"),
    ".lora_B.bias": ("lora", "lora_B.bias"),
    ".lora_magnitude_vector": ("lora", "lora_magnitude_vector"),
    ".lora_embedding_A": ("lora_embedding", "lora_embedding_A"),
    ".lora_embedding_B": ("lora_embedding", "lora_embedding_B"),
    ".randlora_lambda": ("randlora", "randlora_lambda"),
    ".randlora_gamma": ("randlora", "randlora_gamma"),
    ".randlora_A": ("randlora", "randlora_A"),
    ".randlora_B": ("randlora", "randlora_B"),
    ".shira_weight": ("shira", "shira_weight"),
    ".shira_indices": ("shira", "shira_indices"),
    ".adapter_vector": ("adapter_bias", "adapter_vector"),
    ".adapter_alpha.weight": ("adapter_bias", "adapter_alpha.weight"),
    ".adapter_alpha.bias": ("adapter_bias", "adapter_alpha.bias"),
    ".values": ("sparse", "values"),
    ".indices": ("sparse", "indices"),
}
NEEDED = {
    "lora": ("lora_A", "lora_B"),
    "lora_embedding": ("lora_embedding_A", "lora_embedding_B"),
    "randlora": ("randlora_lambda", "randlora_gamma"),
    "shira": ("shira_weight", "shira_indices"),
    "adapter_bias": ("adapter_vector", "adapter_alpha.weight", "adapter_alpha.bias"),
    "sparse": ("values", "indices"),
}
_OF_CONFIG = {"LORA": ("lora", "lora_embedding"), "RANDLORA": ("randlora",), "SHIRA": ("shira",)}
_WITHOUT_CONFIG = {"adapter_bias": "AdapterBias", "sparse": "sparse differences"}
_SHARED = "base_model"  # PEFT's name of what all modules share
_PICKLED = ("adapter_model.bin", "pytorch_diff.bin")


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """What an adapter holds for one module, or for one tensor where it is a sparse difference.

    Attributes:
        kind: one of `NEEDED`.
        module: the module's name in the model that was trained.
        parts: float64, indices int64, by role.
    """

    kind: str
    module: str
    parts: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The content of an adapter's folder.

    Attributes:
        folder: where it lies.
        config: PEFT's settings; None for AdapterBias and sparse differences, which have none.
        adapted: what it holds for the modules that it changes.
        replaced: tensors that were trained whole, float64, such as a scoring head and biases.
    """

    folder: Path
    config: PeftConfig | None
    adapted: tuple[Adapted, ...]
    replaced: Mapping[str, Tensor]

    @property
    def kind(self) -> str:
        """What it is, in words."""
        if self.config:
            return KINDS[self.config.kind] + (" with magnitudes (DoRA)" if self.config.magnitudes else "")
        return " and ".join(sorted({_WITHOUT_CONFIG[one.kind] for one in self.adapted}))


def open_adapter(folder: Path) -> Adapter:
    """Read ``adapter_model.safetensors`` and, where PEFT wrote it, ``adapter_config.json``.

    Raises:
        InputError: there is no such adapter, or one that cannot be merged exactly; says why.
    """
    _check_files(folder)
    config = read_peft_config(folder) if (folder / CONFIG).is_file() else None
    groups: dict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
    replaced: dict[str, Tensor] = {}
    for name, tensor in sorted(_tensors(folder / WEIGHTS).items()):
        end = next((end for end in _ENDS if name.endswith(end)), None)
        if end is None:
            replaced[name] = tensor
        else:
            kind, role = _ENDS[end]
            groups[kind, name.removesuffix(end)][role] = tensor
    _share(groups)
    adapted = tuple(Adapted(kind=kind, module=module, parts=parts) for (kind, module), parts in groups.items())
    adapter = Adapter(folder=folder, config=config, adapted=adapted, replaced=replaced)
    faults = [Fault(source=folder / WEIGHTS, where=where, found=found) for where, found in _incomplete(adapter)]
    if faults:
        raise InputError(faults)
    return adapter


def adapter_fingerprint(folder: Path) -> str:
    """Return a hash of what an adapter's folder holds.

    Raises:
        InputError: there is no adapter.
    """
    _check_files(folder)
    paths = [folder / name for name in (CONFIG, WEIGHTS)]
    return "-".join(sha256_file(path) for path in paths if path.is_file())


def _check_files(folder: Path) -> None:
    if (folder / WEIGHTS).is_file():
        return
    found, fix = f"no {WEIGHTS}", "give the folder that PEFT's save_pretrained wrote"
    pickled = [name for name in _PICKLED if (folder / name).is_file()]
    if not folder.is_dir():
        found = "no such folder"
    elif pickled:
        found += f", only {pickled[0]}, which may run code when it is read"
        fix = "convert it to safetensors once, where you trust it; sparse tensors as NAME.indices and NAME.values"
    raise InputError(Fault(source=folder, found=found, allowed="an adapter's folder", fix=fix))


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return tensors by their names in the trained model, without unused originals of modules trained whole."""
    with opened(path) as file:
        stored = {name: aligned(file, name) for name in file.keys() if ".original_module." not in name}  # noqa: SIM118
    faults = []
    for name, tensor in stored.items():
        if name.endswith("indices"):  # PEFT on Windows writes them as floats
            allowed, fits = "whole numbers", torch.equal(tensor.long().to(tensor.dtype), tensor)
        else:
            allowed, fits = "finite floating-point numbers", tensor.dtype in FLOATS and bool(tensor.isfinite().all())
        if not fits:
            faults.append(Fault(source=path, where=name, found=f"other numbers ({tensor.dtype})", allowed=allowed))
    if faults:
        raise InputError(faults)
    return {
        _trained_name(name): tensor.long() if name.endswith("indices") else tensor.double()
        for name, tensor in stored.items()
    }


def _trained_name(name: str) -> str:
    """Return a tensor's name without what PEFT wraps around modules."""
    own = name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".modules_to_save.", ".")
    # Some versions write DoRA's magnitudes as a module.
    return own.removesuffix(".weight") if own.endswith(".lora_magnitude_vector.weight") else own


def _share(groups: dict[tuple[str, str], dict[str, Tensor]]) -> None:
    """Give modules the parts that they share: RandLoRA's bases, and AdapterBias's one linear layer for all vectors."""
    bases = groups.pop(("randlora", _SHARED), {})
    lone = [key for key, parts in groups.items() if key[0] == "adapter_bias" and "adapter_vector" not in parts]
    alphas = {module: groups.pop((kind, module)) for kind, module in lone}
    for (kind, module), parts in groups.items():
        shared = bases if kind == "randlora" else {}
        if kind == "adapter_bias":
            shared = next((alpha for holder, alpha in alphas.items() if module.startswith(f"{holder}.")), {})
        groups[kind, module] = {**shared, **parts}


def _incomplete(adapter: Adapter) -> list[tuple[str, str]]:
    """Return what an adapter lacks or has too much by its own account, place and words."""
    own = _OF_CONFIG[adapter.config.kind] if adapter.config else tuple(_WITHOUT_CONFIG)
    foreign = sorted({one.kind for one in adapter.adapted if one.kind not in own})
    if foreign and not adapter.config:
        return [("", f"{', '.join(foreign)} tensors without {CONFIG}, whose settings they need")]
    if foreign:
        return [("", f"{', '.join(foreign)} tensors, of which {CONFIG} says nothing")]
    if not adapter.adapted:
        return [("", f"no tensors of an adapter among {len(adapter.replaced)}")]
    faults = []
    for one in adapter.adapted:
        needed = NEEDED[one.kind]
        if adapter.config and adapter.config.magnitudes and one.kind == "lora":
            needed = (*needed, "lora_magnitude_vector")
        missing = [role for role in needed if role not in one.parts]
        if missing:
            faults.append((one.module, f"{', '.join(one.parts)} without {', '.join(missing)}"))
        if "lora_magnitude_vector" in one.parts and not (adapter.config and adapter.config.magnitudes):
            faults.append((one.module, f"lora_magnitude_vector, and {CONFIG} without use_dora"))
    return faults
