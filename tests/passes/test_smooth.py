"""smooth: scores stay, loud channels get quieter, and shapes in which scores would not stay are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compressor.passes import PlanError
from compressor.passes.quantize import Quantize
from compressor.passes.smooth import Smooth
from compressor.ranker.channel_links import channel_links
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import DenseSparseForm, RankerSpec
from tests import tiny
from tests.passes.students import applied
from tests.ranker.cases import SPECS, of_layers

# Of each, which links it has; of the first and the last, norms before blocks are not all there are.
SMOOTHED: dict[str, dict[str, int]] = {
    "uneven_layers": {"values": 3, "norms": 2, "neurons": 1},
    "modernbert": {"values": 3, "norms": 5, "neurons": 3},
    "pre_norm": {"values": 2, "norms": 4},
    "rms_norm": {"values": 2, "norms": 4},
    "bert": {"values": 2},
    "relu": {"values": 1, "neurons": 1},
    "low_rank": {"values": 2, "neurons": 2},
    "linear_maps": {"values": 3, "norms": 2},
    "exits_modernbert": {"values": 3, "norms": 5, "neurons": 3},
    "similarity_mean": {"values": 2},
}


def with_loud_channels(spec: RankerSpec, factor: float = 60.0) -> Ranker:
    """Return a ranker in which the first channel of each link is given larger and read smaller, which cancels."""
    from compressor.algorithms.channel_scaling import scaled_channels

    ranker = tiny.build_ranker(spec)
    weights = dict(ranker.weights)
    for link in channel_links(spec):
        given = weights.get(f"{link.giver}.up", weights.get(f"{link.giver}.weight"))
        assert given is not None
        factors = torch.ones(len(given))
        factors[0] = 1 / factor
        weights |= scaled_channels(weights, link, factors)
    return ranker.changed(weights=weights)


@pytest.mark.parametrize("name", SMOOTHED)
def test_scores_stay_wherever_channels_are_smoothed(name, tiny_data, tiny_pairs):
    ranker = with_loud_channels(SPECS[name])
    notes: dict[str, Any] = {}
    result = applied(Smooth(n_pairs=16), ranker, tiny_data, notes)
    assert notes["smoothed"] == SMOOTHED[name]
    assert set(notes["left_out"]) == {"norms", "values", "neurons"} - set(SMOOTHED[name])
    np.testing.assert_allclose(result.score(tiny_pairs), ranker.score(tiny_pairs), atol=1e-4, rtol=0)
    assert result.spec == ranker.spec
    for link in channel_links(ranker.spec):
        giver = f"{link.giver}.up" if f"{link.giver}.up" in ranker.weights else f"{link.giver}.weight"
        assert float(result.weights[giver][0].abs().max()) < 0.3 * float(ranker.weights[giver][0].abs().max())


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_fixed_ranges_lose_less_behind_smooth(name, tiny_data, tiny_pairs):
    ranker = with_loud_channels(SPECS[name], factor=200)
    exact = ranker.score(tiny_pairs)
    quantize = Quantize(scheme="int8_static", n_pairs=16, embeddings=False)

    def error(of: Ranker) -> float:
        return float(np.square(applied(quantize, of, tiny_data).score(tiny_pairs) - exact).mean() ** 0.5)

    assert error(applied(Smooth(n_pairs=16), ranker, tiny_data)) < 0.3 * error(ranker)


def test_alpha_says_which_side_gets_even(tiny_data):
    ranker = with_loud_channels(SPECS["relu"])
    name = "layers.0.attention.output.weight"
    even = applied(Smooth(alpha=0, n_pairs=16), ranker, tiny_data).weights[name].abs().amax(dim=0)
    torch.testing.assert_close(even, even.mean().expand(len(even)))
    loud = applied(Smooth(alpha=1, n_pairs=16), ranker, tiny_data).weights[name].abs().amax(dim=0)
    assert loud.max() / loud.min() > 2


def test_links_that_are_named_are_the_only_ones(tiny_data):
    ranker = with_loud_channels(SPECS["modernbert"])
    result = applied(Smooth(links=("values",), n_pairs=16), ranker, tiny_data)
    changed = {name for name, one in ranker.weights.items() if not torch.equal(one, result.weights[name])}
    assert {name.split(".", 2)[2] for name in changed} == {"attention.value.weight", "attention.output.weight"}


def test_channels_that_are_never_given_stay_as_they_are(tiny_data, tiny_pairs):
    ranker = tiny.build_ranker()
    weights = {name: one.clone() for name, one in ranker.weights.items()}
    for part in ("weight", "bias"):
        weights[f"layers.0.attention.value.{part}"][2] = 0
    ranker = ranker.changed(weights=weights)
    result = applied(Smooth(n_pairs=16), ranker, tiny_data)
    column = "layers.0.attention.output.weight"
    assert torch.equal(result.weights[column][:, 2], ranker.weights[column][:, 2])
    np.testing.assert_allclose(result.score(tiny_pairs), ranker.score(tiny_pairs), atol=1e-4, rtol=0)


_ATOMS = tiny.tiny_layer()
assert _ATOMS.attention
_CODES = _ATOMS.attention.value.changed(form=DenseSparseForm(codes="rows", atoms=8, nonzeros=2))


@pytest.mark.parametrize(
    ("spec", "settings", "found"),
    [
        (SPECS["bert"], {"links": ["norms"]}, "is the residual stream itself, which the next sum reads too"),
        (SPECS["bert"], {"links": ["values", "neurons"]}, "a GELU of something smaller is not a smaller GELU"),
        (of_layers(tiny.tiny_layer(attention=None)), {"links": ["values"]}, "no attention whose values"),
        (of_layers(tiny.tiny_layer(attention=None)), {}, "nothing to smooth"),
        (SPECS["pooled"], {}, "lets tokens go behind layer 0"),
        (
            of_layers(_ATOMS.changed(attention=_ATOMS.attention.changed(value=_CODES))),
            {},
            r"layers\.0\.attention\.value, stored as atoms",
        ),
        (Quantize(scheme="int8_dynamic").plan(SPECS["bert"]), {}, "a quantized ranker"),
    ],
)
def test_what_cannot_be_smoothed_is_refused(spec, settings, found):
    with pytest.raises(PlanError, match=found):
        Smooth.model_validate(settings).plan(spec)
