"""Adapters for stock models as PEFT writes them, and the same models computing with their adapters beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

PEFT_PREFIX = "base_model.model."
Forward = Callable[[Any, Tensor, Tensor], Tensor]  # module, its input, its output: the adapted output


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Path:
    """Write an adapter's folder; without a config as AdapterBias and sparse differences come."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


class Drawn:
    """Random tensors that show, one after the other."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 0.3) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * scale


def linears(model: nn.Module, *names: str) -> dict[str, nn.Linear]:
    """Return a model's linear layers outside its classifier, or those whose names end so."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if names:
        return {name: module for name, module in found.items() if name.split(".")[-1] in names}
    return {name: module for name, module in found.items() if "classifier" not in name and not name.startswith("head")}


def lora_config(**changes: Any) -> dict[str, Any]:
    """Return what PEFT writes for LoRA, as far as it says something."""
    config = {
        "peft_type": "LORA", "base_model_name_or_path": "some/folder", "bias": "none", "fan_in_fan_out": False,
        "init_lora_weights": True, "layer_replication": None, "lora_alpha": 6, "lora_dropout": 0.1, "r": 3,
        "alpha_pattern": {}, "rank_pattern": {}, "use_dora": False, "use_rslora": False, "lora_bias": False,
        "modules_to_save": None, "target_modules": None, "task_type": "SEQ_CLS", "inference_mode": True,
    }  # fmt: skip
    return {**config, **changes}


def low_rank(down: Tensor, up: Tensor, scaling: float) -> Forward:
    return lambda module, x, y: y + scaling * functional.linear(functional.linear(x, down), up)


def with_magnitudes(down: Tensor, up: Tensor, scaling: float, magnitude: Tensor) -> Forward:
    """PEFT's forward of DoRA: what the base gives without its bias is rescaled, and the update added."""

    def forward(module: Any, x: Tensor, y: Tensor) -> Tensor:
        scale = magnitude / torch.linalg.norm(module.weight + scaling * up @ down, dim=1)
        update = functional.linear(functional.linear(x, down), up)
        return y + (scale - 1) * functional.linear(x, module.weight) + scale * update * scaling

    return forward


def random_bases(a: Tensor, b: Tensor, lambdas: Tensor, gamma: Tensor, scaling: float) -> Forward:
    """PEFT's forward of RandLoRA: both factors are cut to the layer, and the smaller side's is scaled."""

    def forward(module: Any, x: Tensor, y: Tensor) -> Tensor:
        outputs, inputs = module.weight.shape
        n_bases = gamma.shape[0]
        rows = torch.stack([
            lambdas[rank, base] * a[rank, 0, : gamma.shape[1]] * gamma[base]
            for rank in range(len(lambdas)) for base in range(n_bases)
        ])  # fmt: skip
        columns = b[: max(outputs, inputs), :n_bases].reshape(max(outputs, inputs), -1)
        first, second = (rows, columns) if inputs <= outputs else (columns.T, rows.T)
        return y + scaling * functional.linear(functional.linear(x, first), second)

    return forward


@contextmanager
def adapted(model: nn.Module, forwards: Mapping[str, Forward]) -> Iterator[None]:
    """Have modules compute with their adapters beside them."""

    def hook(forward: Forward) -> Any:
        return lambda module, inputs, output: forward(module, inputs[0], output)

    handles = [model.get_submodule(name).register_forward_hook(hook(forward)) for name, forward in forwards.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def with_parameters(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Have a model compute with other values of some parameters."""
    before = {name: model.get_parameter(name).data for name in values}
    for name, value in values.items():
        model.get_parameter(name).data = value
    try:
        yield
    finally:
        for name, value in before.items():
            model.get_parameter(name).data = value


def n_bases(module: nn.Linear, rank: int) -> int:
    return math.ceil(min(module.weight.shape) / rank)
