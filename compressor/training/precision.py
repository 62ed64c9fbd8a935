"""In which precision a training computes its products."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch


def computes_in_bf16(precision: Literal["auto", "bf16", "fp32"], device: torch.device) -> bool:
    """Return whether products are taken in bfloat16; ``auto`` does so where the hardware has instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    # Private names, so that a torch that drops them costs speed and nothing else.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(check() for name in checks if (check := getattr(torch.cpu, name, None)) is not None)


def autocast(precision: Literal["auto", "bf16", "fp32"], device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a forward pass computes; weights stay fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bf16(precision, device))
