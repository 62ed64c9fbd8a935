"""Reads stock checkpoints: ``config.json`` and safetensors, without building a transformers model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from compressor.errors import Fault, InputError
from compressor.families.catalogue import FAMILIES, spec_of_config
from compressor.families.family import Shape, is_prefixed, shape_faults, stock_names, stock_shapes, to_canonical
from compressor.progress import progress
from compressor.ranker.encoder import expected_shapes
from compressor.ranker.spec import RankerSpec, SimilarityHead
from compressor.storage import inside, read_json

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FLOAT_NAMES = "float32, float16, bfloat16 or float64"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder with ``config.json`` and safetensors.

    Attributes:
        folder: where it lies.
        config: its ``config.json``.
        similarity: the head of a bi-encoder, or None for a cross-encoder with a head of its own.
    """

    folder: Path
    config: dict[str, Any]
    similarity: SimilarityHead | None = None

    @classmethod
    def open(cls, folder: Path, similarity: SimilarityHead | None = None) -> Checkpoint:
        """Read the config; refuse what is not a whole checkpoint."""
        _refuse_adapters(folder)
        config = read_json(folder / "config.json")
        if not isinstance(config, dict):
            raise InputError(Fault(source=folder / "config.json", found="a JSON list or value", allowed="an object"))
        return cls(folder=folder, config=config, similarity=similarity)

    def spec(self) -> RankerSpec:
        """Describe it from the config, and from the tensors' names and shapes where they lie in the folder.

        Raises:
            InputError: it is of a kind that is not supported, or its tensors are not what the config says.
        """
        source = self.folder / "config.json"
        spec = spec_of_config(self.config, source, is_encoder=self.similarity is not None)
        if self.similarity:
            spec = spec.changed(head=self.similarity)
        if (self.folder / SINGLE).is_file() or (self.folder / INDEX).is_file():
            faults = shape_faults(FAMILIES[spec.family], spec, self._shapes(), self.folder)
            if faults:
                raise InputError(faults)
        return spec

    def weights(self, spec: RankerSpec) -> dict[str, Tensor]:
        """Return the canonical weights, fp32 from whatever floating type the file holds.

        Raises:
            InputError: a weight is not a plain floating-point number.
        """
        family = FAMILIES[spec.family]
        tensors: dict[str, Tensor] = {}
        files = weight_files(self.folder)
        with progress("Reading weights", len(files)) as advance:
            for path in files:
                with opened(path) as file:
                    tensors |= {_modern(name): aligned(file, name) for name in file.keys()}  # noqa: SIM118
                advance()
        expected = stock_shapes(family, spec, prefixed=is_prefixed(family, tensors))
        foreign = {name: tensors[name].dtype for name in expected if tensors[name].dtype not in FLOATS}
        if foreign:
            name, dtype = next(iter(foreign.items()))
            fix = "give the checkpoint from before quantization"
            found = f"{len(foreign)} weights of type {dtype}"
            raise InputError(Fault(source=self.folder, where=name, found=found, allowed=FLOAT_NAMES, fix=fix))
        return to_canonical(family, spec, tensors)

    def head_weights(self, spec: RankerSpec) -> dict[str, Tensor]:
        """Return what there is of a scoring head, canonical and fp32: for an encoder perhaps a pooler, or nothing.

        Args:
            spec: with the head that is wanted; tensors of other shapes, such as a head of three logits, are left out.
        """
        family, shapes = FAMILIES[spec.family], self._shapes()
        expected = expected_shapes(spec)
        names = {
            stock: parts[0]
            for stock, parts in stock_names(family, spec, prefixed=is_prefixed(family, shapes)).items()
            if parts[0].startswith("head.") and shapes.get(stock) == expected[parts[0]]
        }
        found: dict[str, Tensor] = {}
        for path in weight_files(self.folder):
            with opened(path) as file:
                stored = {_modern(name): name for name in file.keys()}  # noqa: SIM118
                there = names.keys() & stored.keys()
                found |= {names[stock]: aligned(file, stored[stock]).float() for stock in there}
        return found

    def _shapes(self) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        for path in weight_files(self.folder):
            with opened(path) as file:
                names = file.keys()
                shapes |= {_modern(name): tuple(file.get_slice(name).get_shape()) for name in names}
        return shapes


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, of one or of many shards.

    Raises:
        InputError: there are none, or shards are missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        names = sorted(set(index.get("weight_map", {}).values())) if isinstance(index, dict) else []
        paths = [inside(folder, str(name)) for name in names]
        missing = [path.name for path in paths if not path.is_file()]
        if missing or not paths:
            found = f"an index whose files are missing: {', '.join(missing)}" if missing else "an empty index"
            raise InputError(Fault(source=folder / INDEX, found=found, fix="download the checkpoint again"))
        return paths
    found, fix = "no model.safetensors", "give the folder of a whole checkpoint"
    if list(folder.glob("*.bin")) or list(folder.glob("*.pt")):
        found += ", only a pickled checkpoint, which may run code when it is read"
        fix = "convert it once where you trust it: AutoModelForSequenceClassification.from_pretrained(FOLDER)"
        fix += ".save_pretrained(NEW_FOLDER)"
    raise InputError(Fault(source=folder, found=found, allowed="safetensors", fix=fix))


def refuse_pickles(folder: Path, load: str, new: str = "NEW_FOLDER", more: str = "") -> None:
    """Refuse a Hugging Face model without safetensors, and say how its owner converts it.

    Args:
        folder: the checkpoint.
        load: what reads it there, to be called with the folder.
        new: what the converted one is called.
        more: what else may be said to do.

    Raises:
        InputError: there are no safetensors, or shards are missing.
    """
    try:
        weight_files(folder)
    except InputError as error:
        fix = f"convert it once where you trust it: {load}.from_pretrained({folder}).save_pretrained({new}){more}"
        raise InputError([replace(one, fix=fix) for one in error.faults]) from None


def _refuse_adapters(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        fix = "give its base, and name this folder in the pass merge_adapters"
        found = "an adapter (LoRA or other PEFT weights), not a whole checkpoint"
        raise InputError(Fault(source=folder / "adapter_config.json", found=found, fix=fix))


def _modern(name: str) -> str:
    """Return today's name of a tensor; TensorFlow-era checkpoints say gamma and beta."""
    stem, _, kind = name.rpartition(".")
    if stem.endswith("LayerNorm") and kind in ("gamma", "beta"):
        return f"{stem}.{'weight' if kind == 'gamma' else 'bias'}"
    return name


def aligned(file: Any, name: str) -> Tensor:
    """Return a copy: a mapped file's tensors start anywhere, and some CPUs' kernels sum unaligned ones otherwise."""
    tensor: Tensor = file.get_tensor(name).clone()
    return tensor


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise InputError(Fault(source=path, found=f"a broken safetensors file ({error})")) from None
        yield file
