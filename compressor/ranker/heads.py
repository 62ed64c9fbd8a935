"""Scoring heads: a pooled state becomes one logit, or a unit vector."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from compressor.ranker.layers import activate, build_norm
from compressor.ranker.linears import Linear
from compressor.ranker.spec import ClassifierHead, SimilarityHead


class ClassifierModule(nn.Module):
    """``[B, width] -> [B, 1]``: dense, activation, norm (each optional), output."""

    def __init__(self, spec: ClassifierHead, dropout: float) -> None:
        super().__init__()
        self.spec = spec
        self.dropout = nn.Dropout(dropout)
        self.dense = Linear(spec.dense) if spec.dense else None
        self.norm = build_norm(spec.norm, spec.output.inputs)
        self.output = Linear(spec.output)

    def forward(self, pooled: Tensor) -> Tensor:
        if self.dense:
            pooled = self.dense(pooled)
        if self.spec.activation:
            pooled = activate(pooled, self.spec.activation)
        return self.output(self.dropout(self.norm(pooled)))


class SimilarityModule(nn.Module):
    """``[B, width] -> [B, width]``, scaled to unit length."""

    def forward(self, pooled: Tensor) -> Tensor:
        return F.normalize(pooled.float(), dim=-1)


def build_head(spec: ClassifierHead | SimilarityHead, dropout: float) -> nn.Module:
    """Build the module of a head's spec."""
    return ClassifierModule(spec, dropout) if isinstance(spec, ClassifierHead) else SimilarityModule()
