"""The canonical encoder: one torch module for every ranker that a spec can describe."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from compressor.errors import RunError
from compressor.ranker.heads import build_head
from compressor.ranker.layers import Layer, build_norm
from compressor.ranker.linears import Linear, Table
from compressor.ranker.reductions import Reduction
from compressor.ranker.spec import EmbeddingsSpec, RankerSpec, TokenRule
from compressor.ranker.sub_network import WHOLE, SubNetwork
from compressor.ranker.token_rule_spec import ask_for_query_terms, shows_tokens
from compressor.ranker.token_scores import Reached
from compressor.ranker.tokens import RowParts, Seen, TokenLayout, query_ends
from compressor.ranker.trace import Trace, watched_relations


class Embeddings(nn.Module):
    """Token, position and segment embeddings of packed tokens, ``[T] -> [T, width]``."""

    def __init__(self, spec: EmbeddingsSpec, dropout: float) -> None:
        super().__init__()
        self.spec = spec
        self.tokens = Table(spec.tokens)
        self.positions = Table(spec.positions) if spec.positions else None
        self.segments = Table(spec.segments) if spec.segments else None
        self.norm = build_norm(spec.norm, spec.tokens.width)
        self.project = Linear(spec.project) if spec.project else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor, segments: Tensor, positions: Tensor) -> Tensor:
        values = self.tokens(ids)
        if self.positions:
            values = values + self.positions(positions + self.spec.position_offset)
        if self.segments:
            values = values + self.segments(segments)
        values = self.dropout(self.norm(values))
        return self.project(values) if self.project else values


class Encoder(nn.Module):
    """Scores padded batches of token rows; inside, only real tokens are computed.

    ``gradient_checkpointing`` trades a second forward pass per layer for memory while training. ``part``: what of it is
    run, the whole but where training sets another (`compressor.ranker.sub_network.running`).

    Raises:
        RunError: token rules or isolated queries without the id that query and document are told apart by.
    """

    def __init__(self, spec: RankerSpec) -> None:
        super().__init__()
        if spec.rule_layers and spec.separator_id is None:
            raise RunError("the spec has token rules and no separator_id, which tells query and document apart")
        if spec.isolates_query and spec.separator_id is None:
            raise RunError("the spec isolates queries and has no separator_id, which tells where they end")
        self.spec = spec
        self.gradient_checkpointing = False
        self.part: SubNetwork = WHOLE
        self.embeddings = Embeddings(spec.embeddings, spec.dropout.hidden)
        self.layers = nn.ModuleList(
            Layer(layer, spec.width, spec.dropout, build_head(layer.exit, spec.dropout.head) if layer.exit else None)
            for layer in spec.layers
        )
        self.final_norm = build_norm(spec.final_norm, spec.width)
        self.head = build_head(spec.head, spec.dropout.head)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Return raw logits ``[B, 1]``, or unit vectors ``[B, width]`` for a bi-encoder; exits are not computed.

        Args:
            input_ids: int64 ``[B, S]``, padded on the right.
            attention_mask: ``[B, S]``, 1 on real tokens.
            token_type_ids: int64 ``[B, S]``; zeros where absent.
        """
        layout = self.lay_out(input_ids, attention_mask)
        values = self.embed(layout, input_ids, token_type_ids)
        first_only = self.spec.reads_first_token_only and self._runs_last
        for _, state, its_layout, _ in self._states(values, layout, self._parts(layout, input_ids), first_only):
            values, layout = state, its_layout
        return self.head(self.pool(values, layout, first_only))

    def trace(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        *,
        relations: Collection[int] = (),
    ) -> Trace:
        """Return what `forward` does, with the state of every token after every layer, and what exits score.

        The last layer is computed for first tokens alone where the head reads nothing else, unless its relations are
        wanted: the other states reach no score.

        Args:
            input_ids, attention_mask, token_type_ids: as in `forward`.
            relations: layers whose queries, keys and values are wanted.
        """
        layout = self.lay_out(input_ids, attention_mask)
        states, layouts = [self.embed(layout, input_ids, token_type_ids)], [layout]
        reductions, shown = {}, {}
        parts = self._parts(layout, input_ids)
        skipped = self.part.skipped
        first_only = self.spec.reads_first_token_only and self._runs_last and len(self.layers) - 1 not in relations
        with watched_relations(self, [layer for layer in relations if layer not in skipped]) as found:
            for index, state, its_layout, reduction in self._states(states[0], layout, parts, first_only):
                states.append(state)
                layouts.append(its_layout)
                if reduction:
                    reductions[index] = reduction
                    if shows_tokens(self._rule(index)):
                        shown[min(set(range(index + 1, len(self.layers))) - skipped)] = reduction
        for index in found.keys() & shown.keys():  # where windows see tokens: the means of a window's keys and values
            query, key, value = found[index]
            found[index] = query, shown[index].states(key), shown[index].states(value)
        logits = self.head(self.pool(states[-1], layouts[-1], first_only))
        exits = {
            index: self.exit_logits(index, states[index + 1], layouts[index + 1])
            for index in self.spec.exit_layers
            if index not in skipped
        }
        return Trace(
            logits=logits, states=states, layouts=layouts, reductions=reductions, relations=found, exits=exits,
            skipped=skipped,
        )  # fmt: skip

    def lay_out(self, input_ids: Tensor, attention_mask: Tensor) -> TokenLayout:
        """Return where the tokens of a padded batch ``[B, S]`` stand, and where queries end if they are isolated."""
        separator = self.spec.separator_id
        if not self.spec.isolates_query or separator is None:
            return TokenLayout.of(attention_mask)
        return TokenLayout.of(attention_mask, query_ends=query_ends(input_ids, attention_mask, separator))

    def embed(self, layout: TokenLayout, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Return the packed embeddings ``[T, width]``."""
        segments = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        return self.embeddings(layout.pack(input_ids), layout.pack(segments), layout.positions)

    def pool(self, values: Tensor, layout: TokenLayout, first_only: bool) -> Tensor:
        """Return what the head reads: ``[B, width]`` from packed states, or from first tokens when ``first_only``."""
        values = self.final_norm(values)
        if first_only:
            return values
        return values[layout.first] if self.spec.head.pool == "first" else layout.row_means(values)

    def exit_logits(self, layer: int, values: Tensor, layout: TokenLayout) -> Tensor:
        """Return what the exit of a layer scores, ``[B, 1]``, from the packed states behind it, ``[T, width]``.

        The final norm is the ranker's own: an exit is a head and nothing else. So the ranker that is cut there computes
        the same, and is still a model of its family, which has one final norm or none.
        """
        head: Any = self.layers[layer].exit
        if head.spec.pool == "first":
            return head(self.final_norm(values[layout.first]))
        return head(layout.row_means(self.final_norm(values)))

    @property
    def _runs_last(self) -> bool:
        return len(self.layers) - 1 not in self.part.skipped

    def _parts(self, layout: TokenLayout, input_ids: Tensor) -> RowParts | None:
        """Return the parts of rows, where token rules ask for them."""
        if not self.spec.rule_layers or self.spec.separator_id is None:
            return None
        marks_query_terms = ask_for_query_terms(layer.token_rule for layer in self.spec.layers)
        return RowParts.of(layout, input_ids, self.spec.separator_id, marks_query_terms)

    def _states(
        self, values: Tensor, layout: TokenLayout, parts: RowParts | None, first_only: bool
    ) -> Iterator[tuple[int, Tensor, TokenLayout, Reduction | None]]:
        """Yield each layer's number, the state behind it, where it stands, and what a rule makes of it.

        The state is of first tokens alone behind the last layer with ``first_only``.
        """
        layers: Iterable[Any] = self.layers
        seen: Seen | None = None
        for index, layer in enumerate(layers):
            read, reduction = values, None
            if index not in self.part.skipped:
                is_last = index == len(self.layers) - 1
                values = self._run(layer, values, layout, first_only and is_last, self.part.ffn_width(index), seen)
                seen = None
            rule = self._rule(index)
            if parts and rule:
                reached = Reached(layer=layer, read=read, given=values, layout=layout, parts=parts)
                reduction = layer.token_rule(reached, rule)
            yield index, values, layout, reduction
            if parts and reduction:
                if shows_tokens(rule):
                    seen = Seen(values=values, layout=layout)
                values, layout, parts = reduction.states(values), reduction.layout, parts.of_kept(reduction.kept)

    def _rule(self, index: int) -> TokenRule | None:
        """Return the rule that acts behind a layer; none does behind the last one that is run."""
        is_read = not self.part.skipped.issuperset(range(index + 1, len(self.layers)))
        return self.part.token_rule(index, self.spec.layers[index].token_rule) if is_read else None

    def _run(
        self, layer: nn.Module, values: Tensor, layout: TokenLayout, first_only: bool, ffn_width: int | None,
        seen: Seen | None,
    ) -> Tensor:  # fmt: skip
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, values, layout, first_only, ffn_width, seen, use_reentrant=False)
        return layer(values, layout, first_only, ffn_width, seen)


def expected_tensors(spec: RankerSpec) -> dict[str, Tensor]:
    """Return every tensor that a ranker of this spec has, by name, without content."""
    with torch.device("meta"):
        return dict(Encoder(spec).state_dict())


def expected_shapes(spec: RankerSpec) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor that a ranker of this spec has."""
    return {name: tuple(tensor.shape) for name, tensor in expected_tensors(spec).items()}


def random_weights(spec: RankerSpec, seed: int, scale: float = 0.02) -> dict[str, Tensor]:
    """Return weights for a new ranker: normal matrices, unit norms, zero biases.

    Ranges are those of activations near 1; codes name atoms at random.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    expected = expected_tensors(spec)
    for name, tensor in expected.items():
        shape = tuple(tensor.shape)
        if name.endswith(".input_ranges"):
            weights[name] = torch.tensor([-4.0, 4.0]).expand(shape).clone()
        elif not tensor.is_floating_point():
            drawn = torch.rand(
                *shape[:2], expected[f"{name.removesuffix('indices')}atoms"].shape[1], generator=generator
            )
            weights[name] = drawn.argsort(dim=2)[..., : shape[2]].sort(dim=2).values.to(tensor.dtype)
        elif len(shape) > 1:
            weights[name] = torch.randn(shape, generator=generator) * scale
        else:
            weights[name] = torch.ones(shape) if "norm." in name and name.endswith("weight") else torch.zeros(shape)
    return weights
