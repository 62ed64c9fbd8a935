"""Checkpoints of a training, written whole as safetensors and JSON: a killed run goes on as if it had not been."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from compressor.errors import InputError
from compressor.storage import read_json, whole_folder, write_json

_FOLDER, _TENSORS, _STATE = "checkpoint", "state.safetensors", "state.json"


@dataclass(kw_only=True)
class Checkpoint:
    """All that a training needs to go on.

    Attributes:
        key: hash of what the training depends on; another training's checkpoint is not used.
        step: steps done.
        tensors: weights, the optimizer's moments, averages, best weights and the state of the random numbers, by name.
        values: counters and curves, as JSON.
    """

    key: str
    step: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(scratch: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint in ``scratch``; a kill leaves the old or the new one, never a half."""
    scratch.mkdir(parents=True, exist_ok=True)
    with whole_folder(scratch / _FOLDER) as partial:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()},
            partial / _TENSORS,
        )
        write_json(partial / _STATE, {"key": checkpoint.key, "step": checkpoint.step, "values": checkpoint.values})


def load_checkpoint(scratch: Path, key: str) -> Checkpoint | None:
    """Return the checkpoint of this very training, or None where there is none that can be used."""
    folder = scratch / _FOLDER
    if not (folder / _STATE).is_file():
        return None
    try:
        state = read_json(folder / _STATE)
        if state["key"] != key:
            return None
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / _TENSORS).items()}
    except (InputError, KeyError, OSError, SafetensorError):
        return None  # a checkpoint that cannot be read costs time, not the run
    return Checkpoint(key=key, step=state["step"], tensors=tensors, values=state["values"])


def named_moments(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, Tensor]:
    """Return an optimizer's state as flat tensors; ``names`` gives each parameter's name by its ``id``."""
    return {
        f"optimizer.{names[id(parameter)]}.{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_moments(optimizer: torch.optim.Optimizer, names: dict[int, str], tensors: dict[str, Tensor]) -> None:
    """Put back what `named_moments` returned."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            prefix = f"optimizer.{names[id(parameter)]}."
            state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if state:
                optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
                }
