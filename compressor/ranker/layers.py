"""Norms, feed-forwards and whole encoder layers over packed tokens."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from compressor.ranker.attention import Attention
from compressor.ranker.linears import Linear
from compressor.ranker.spec import Activation, DropoutSpec, FeedForwardSpec, LayerSpec, LinearMapSpec, NormSpec
from compressor.ranker.token_rules import build_token_rule
from compressor.ranker.tokens import TokenLayout


def build_norm(spec: NormSpec | None, width: int) -> nn.Module:
    """Build a norm over the last axis; None gives the identity."""
    if spec is None:
        return nn.Identity()
    if spec.kind == "rms":
        return nn.RMSNorm(width, eps=spec.epsilon)
    return nn.LayerNorm(width, eps=spec.epsilon, bias=spec.bias)


def activate(values: Tensor, name: Activation) -> Tensor:
    """Apply a named activation; ``gelu`` is the exact one with the error function."""
    match name:
        case "gelu":
            return F.gelu(values)
        case "gelu_tanh":
            return F.gelu(values, approximate="tanh")
        case "relu":
            return F.relu(values)
        case "silu":
            return F.silu(values)
        case "tanh":
            return values.tanh()


class FeedForward(nn.Module):
    """``down(act(up(x)))`` or ``down(act(gate(x)) * up(x))`` over ``[T, width]``."""

    def __init__(self, spec: FeedForwardSpec) -> None:
        super().__init__()
        self.spec = spec
        self.up = Linear(spec.up)
        self.gate = Linear(spec.gate) if spec.gate else None
        self.down = Linear(spec.down)

    def forward(self, values: Tensor, width: int | None = None) -> Tensor:
        """Compute the first ``width`` neurons alone, or all."""
        inner = self.up(values, outputs=width)  # [T, neurons]
        if self.gate:
            inner = activate(self.gate(values, outputs=width), self.spec.activation) * inner
        else:
            inner = activate(inner, self.spec.activation)
        return self.down(inner, inputs=width)


class LinearMap(nn.Module):
    """``down(x)`` over ``[T, width]``, where a feed-forward would stand."""

    def __init__(self, spec: LinearMapSpec) -> None:
        super().__init__()
        self.spec = spec
        self.down = Linear(spec.down)

    def forward(self, values: Tensor, width: int | None = None) -> Tensor:
        """Compute the map; it has no neurons of which the first ``width`` could be run alone."""
        return self.down(values)


def build_feed_forward(spec: FeedForwardSpec | LinearMapSpec | None) -> FeedForward | LinearMap | None:
    """Build the second block of a layer, if it has one."""
    if spec is None:
        return None
    return LinearMap(spec) if isinstance(spec, LinearMapSpec) else FeedForward(spec)


class Layer(nn.Module):
    """Attention and feed-forward, each with its residual, normed before or after; either may be absent.

    ``exit`` is the head that scores from this layer's states, if there is one, ``token_rule`` what lets tokens go
    behind it; the layer itself runs neither.
    """

    def __init__(self, spec: LayerSpec, width: int, dropout: DropoutSpec, exit_head: nn.Module | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.attention = Attention(spec.attention, dropout.attention) if spec.attention else None
        self.attention_norm = build_norm(spec.attention_norm, width)
        self.ffn = build_feed_forward(spec.ffn)
        self.ffn_norm = build_norm(spec.ffn_norm, width)
        self.dropout = nn.Dropout(dropout.hidden)
        self.token_rule = build_token_rule(spec.token_rule) if spec.token_rule else None
        self.exit = exit_head

    def forward(
        self, values: Tensor, layout: TokenLayout, first_only: bool = False, ffn_width: int | None = None
    ) -> Tensor:
        """Map packed states ``[T, width]`` to ``[T, width]``, or to ``[B, width]`` with ``first_only``.

        ``ffn_width``: run the first so many neurons alone.
        """
        is_post = self.spec.norm_placement == "post"
        residual = values[layout.first] if first_only else values
        if self.attention:
            mixed = self.attention(values if is_post else self.attention_norm(values), layout, first_only)
            residual = residual + self.dropout(mixed)
        values = residual = self.attention_norm(residual) if is_post else residual
        if self.ffn:
            residual = values + self.dropout(self.ffn(values if is_post else self.ffn_norm(values), ffn_width))
        return self.ffn_norm(residual) if is_post else residual
