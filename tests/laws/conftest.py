"""Files that settings in the table name by paths; every test runs in a folder of its own."""

from __future__ import annotations

import pytest
import torch

from tests.families.adapter_folders import Drawn, lora_config, write_adapter


@pytest.fixture(autouse=True)
def _adapters(tmp_path):
    """Write two LoRAs for the tiny ranker: one that changes both layers, and one that changes nothing yet."""
    draw = Drawn()
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(2):
        for module, outputs in (("attention.self.query", 16), ("intermediate.dense", 32)):
            own = f"base_model.model.bert.encoder.layer.{layer}.{module}.lora_"
            tensors |= {f"{own}A.weight": draw(2, 16), f"{own}B.weight": draw(outputs, 2)}
    write_adapter(tmp_path / "lora", tensors, lora_config(r=2, lora_alpha=4))
    fresh = {name: torch.zeros_like(tensor) if "lora_B" in name else tensor for name, tensor in tensors.items()}
    write_adapter(tmp_path / "fresh_lora", fresh, lora_config(r=2, lora_alpha=4))
