"""A ranker with rules that keep shares, and masks that stand in for them."""

from __future__ import annotations

from compressor.ranker.forms import with_token_rules
from compressor.ranker.spec import AttentionScorer, KeepShareRule
from compressor.ranker.tokens import RowParts, TokenLayout
from compressor.training.mask_settings import ShareGateSettings
from compressor.training.share_gates import ShareGates
from tests import tiny

SEPARATOR = tiny.vocabulary().index("[SEP]")


def four_layers():
    """Return a cross-encoder of four layers."""
    return tiny.build_ranker(tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 4), seed=3)


def with_shares(ranker, shares, scorer=None):
    rules = {place: KeepShareRule(share=share, scorer=scorer or AttentionScorer()) for place, share in shares.items()}
    return ranker.changed(spec=with_token_rules(ranker.spec.changed(separator_id=SEPARATOR), rules))


def rows_of(batch):
    layout = TokenLayout.of(batch["attention_mask"])
    return layout, RowParts.of(layout, batch["input_ids"], SEPARATOR)


def gates_of(ranker, places=(0, 2), budget=0.6, n_steps=100, **settings):
    ready = with_shares(ranker, dict.fromkeys(places, 0.5))
    gates = ShareGates(ready.spec, budget, ShareGateSettings.model_validate(settings), seed=5)
    gates.n_steps = n_steps
    return gates
