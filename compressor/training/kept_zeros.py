"""Zeros of sparse matrices, which training leaves alone."""

from __future__ import annotations

from compressor.ranker.encoder import Encoder
from compressor.ranker.sparsity import sparse_linears


class KeptZeros:
    """Which weights of a module's sparse matrices are zero, as it is when training begins.

    A weight without gradients has no moments in AdamW and no decay from zero: it stays zero to the bit, in moving
    averages too. Gradients are masked before they are clipped, so that what is not there does not count in their norm.
    """

    def __init__(self, module: Encoder) -> None:
        weights = [module.get_parameter(f"{name}.weight") for name in sparse_linears(module.spec)]
        self._kept = [(weight, weight.detach() != 0) for weight in weights]

    def mask_gradients(self) -> None:
        """Take the gradients of zeros away."""
        for weight, kept in self._kept:
            if weight.grad is not None:
                weight.grad.mul_(kept)
