"""Norms, feed-forwards and whole encoder layers over packed tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from compressor.ranker.attention import Attention
from compressor.ranker.linears import Linear
from compressor.ranker.quantizers import to_float_kind
from compressor.ranker.spec import (
    Activation,
    DropoutSpec,
    FeedForwardSpec,
    FloatKind,
    LayerSpec,
    LinearMapSpec,
    NormSpec,
)
from compressor.ranker.token_rules import build_token_rule
from compressor.ranker.tokens import Seen, TokenLayout


def build_norm(spec: NormSpec | None, width: int) -> nn.Module:
    """Build a norm over the last axis; None gives the identity."""
    if spec is None:
        return nn.Identity()
    if spec.kind == "rms":
        return nn.RMSNorm(width, eps=spec.epsilon)
    return nn.LayerNorm(width, eps=spec.epsilon, bias=spec.bias)


def normed(norm: nn.Module, values: Tensor, kind: FloatKind) -> Tensor:
    """Apply a norm whose gains, bias and result are of a float kind; inside it computes in fp32, as runtimes do."""
    if kind == "fp32":
        return norm(values)
    rounded = {name: to_float_kind(tensor, kind) for name, tensor in norm.named_parameters()}
    return to_float_kind(functional_call(norm, rounded, (values,)), kind)


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
    """``down(act(up(x)))`` or ``down(act(gate(x)) * up(x))`` over ``[T, width]``, its states of a float kind."""

    def __init__(self, spec: FeedForwardSpec, states: FloatKind = "fp32") -> None:
        super().__init__()
        self.spec = spec
        self.states = states
        self.up = Linear(spec.up)
        self.gate = Linear(spec.gate) if spec.gate else None
        self.down = Linear(spec.down)

    def forward(self, values: Tensor, width: int | None = None) -> Tensor:
        """Compute the first ``width`` neurons alone, or all."""
        inner = to_float_kind(self.up(values, outputs=width), self.states)  # [T, neurons]
        if self.gate:
            gate = to_float_kind(self.gate(values, outputs=width), self.states)
            inner = to_float_kind(activate(gate, self.spec.activation), self.states) * inner
        else:
            inner = activate(inner, self.spec.activation)
        return to_float_kind(self.down(to_float_kind(inner, self.states), inputs=width), self.states)


class LinearMap(nn.Module):
    """``down(x)`` over ``[T, width]``, where a feed-forward would stand."""

    def __init__(self, spec: LinearMapSpec, states: FloatKind = "fp32") -> None:
        super().__init__()
        self.spec = spec
        self.states = states
        self.down = Linear(spec.down)

    def forward(self, values: Tensor, width: int | None = None) -> Tensor:
        """Compute the map; it has no neurons of which the first ``width`` could be run alone."""
        return to_float_kind(self.down(values), self.states)


def build_feed_forward(
    spec: FeedForwardSpec | LinearMapSpec | None, states: FloatKind = "fp32"
) -> FeedForward | LinearMap | None:
    """Build the second block of a layer, if it has one."""
    if spec is None:
        return None
    return LinearMap(spec, states) if isinstance(spec, LinearMapSpec) else FeedForward(spec, states)


class Layer(nn.Module):
    """Attention and feed-forward, each with its residual, normed before or after; either may be absent.

    ``exit`` is the head that scores from this layer's states, if there is one, ``token_rule`` what lets tokens go
    behind it; the layer itself runs neither.
    """

    def __init__(self, spec: LayerSpec, width: int, dropout: DropoutSpec, exit_head: nn.Module | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.attention = Attention(spec.attention, dropout.attention, spec.states) if spec.attention else None
        self.attention_norm = build_norm(spec.attention_norm, width)
        self.ffn = build_feed_forward(spec.ffn, spec.states)
        self.ffn_norm = build_norm(spec.ffn_norm, width)
        self.dropout = nn.Dropout(dropout.hidden)
        self.token_rule = build_token_rule(spec.token_rule, width) if spec.token_rule else None
        self.exit = exit_head

    def forward(
        self, values: Tensor, layout: TokenLayout, first_only: bool = False, ffn_width: int | None = None,
        seen: Seen | None = None,
    ) -> Tensor:  # fmt: skip
        """Map packed states ``[T, width]`` to ``[T, width]``, or to ``[B, width]`` with ``first_only``.

        ``ffn_width``: run the first so many neurons alone. ``seen``: what attention makes keys and values of; by
        default the states themselves.
        """
        is_post = self.spec.norm_placement == "post"
        values = self._rounded(values)
        residual = values[layout.first] if first_only else values
        if self.attention:
            read = values if is_post else self._normed(self.attention_norm, values)
            if seen:
                shown = self._rounded(seen.values)
                seen = replace(seen, values=shown if is_post else self._normed(self.attention_norm, shown))
            mixed = self.attention(read, layout, first_only, seen)
            residual = self._rounded(residual + self.dropout(mixed))
        values = residual = self._normed(self.attention_norm, residual) if is_post else residual
        if self.ffn:
            read = values if is_post else self._normed(self.ffn_norm, values)
            residual = self._rounded(values + self.dropout(self.ffn(read, ffn_width)))
        return self._normed(self.ffn_norm, residual) if is_post else residual

    def _normed(self, norm: Any, values: Tensor) -> Tensor:
        return normed(norm, values, self.spec.states)

    def _rounded(self, values: Tensor) -> Tensor:
        return to_float_kind(values, self.spec.states)
