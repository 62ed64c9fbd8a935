"""Ranges of fixed activation scales on planted distributions, and what they are taken from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compressor.algorithms.calibration import calibration_inputs
from compressor.algorithms.observers import N_BINS, Entropy, Histogram, MinMax, Percentile, histogram_counts
from compressor.algorithms.quantization import observed_ranges
from compressor.ranker.quantizers import uint8_activations
from compressor.ranker.spec import LinearSpec, LowRankForm
from tests.tiny import FFN_WIDTH, WIDTH, build_ranker, tiny_layer, tiny_spec


def seen(values: torch.Tensor) -> Histogram:
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    return Histogram(low=low, high=high, counts=histogram_counts(values, low, high))


def normal(n: int = 200_000, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def rounding_error(values: torch.Tensor, ends: tuple[float, float]) -> float:
    return float((uint8_activations(values, *map(torch.tensor, ends)) - values).square().mean())


def test_min_max_is_all_that_was_seen():
    values = normal(1000)
    assert MinMax().range_of(seen(values)) == (float(values.min()), float(values.max()))
    assert MinMax().range_of(seen(values.abs() + 1)) == (0.0, float(values.abs().max()) + 1), "zero is always in it"


@pytest.mark.parametrize("percentile", [99.0, 99.9])
def test_percentile_is_that_of_the_sorted_values_within_a_bin(percentile):
    values = normal() * 3 + 1
    histogram = seen(values)
    width = (histogram.high - histogram.low) / N_BINS
    tail = (100 - percentile) / 2
    wanted = np.percentile(values.numpy(), [tail, 100 - tail])
    np.testing.assert_allclose(
        Percentile(percentile).range_of(histogram), wanted, atol=5 * width
    )  # bins in the tails may be empty


def test_all_percent_are_all_that_was_seen():
    histogram = seen(normal())
    assert Percentile(100).range_of(histogram) == pytest.approx((histogram.low, histogram.high))


def test_entropy_keeps_the_whole_of_a_flat_distribution():
    values = torch.linspace(-1, 1, 100_001)
    assert Entropy().range_of(seen(values)) == pytest.approx((-1, 1), abs=0.03)


def test_entropy_cuts_rare_outliers_off():
    values = torch.cat([normal(), torch.tensor([-60.0, 60.0])])
    low, high = Entropy().range_of(seen(values))
    assert -12 < low < -3
    assert 3 < high < 12
    bulk = values[:-2]
    assert rounding_error(bulk, (low, high)) < rounding_error(bulk, (-60.0, 60.0)) / 20


def test_entropy_leaves_the_short_side_of_a_gelu_alone():
    values = torch.nn.functional.gelu(torch.cat([normal() * 1.5, torch.full((3,), 50.0)]))
    low, high = Entropy().range_of(seen(values))
    assert low == pytest.approx(float(values.min()), abs=0.01)
    assert high < 15


@pytest.mark.parametrize("observer", [MinMax(), Percentile(99.9), Entropy()], ids=lambda one: type(one).__name__)
def test_nothing_but_zeros_is_no_fault(observer):
    assert observer.range_of(seen(torch.zeros(9))) == (0.0, 0.0)


NAMES = ["layers.0.ffn.down", "layers.1.attention.query"]


@pytest.mark.parametrize("observer", [MinMax(), Percentile(99.0), Entropy()], ids=lambda one: type(one).__name__)
def test_ranges_do_not_depend_on_padding_or_on_batches(observer, tiny_ranker, tiny_pairs):
    whole = calibration_inputs(tiny_ranker, tiny_pairs)
    (batch,) = whole
    wide = {name: torch.nn.functional.pad(tensor, (0, 9)) for name, tensor in batch.items()}
    alone = [one for pair in tiny_pairs for one in calibration_inputs(tiny_ranker, [pair])]
    expected = observed_ranges(tiny_ranker.module, whole, NAMES, observer)
    for other in ([wide], alone):
        found = observed_ranges(tiny_ranker.module, other, NAMES, observer)
        for name in NAMES:
            torch.testing.assert_close(
                found[name], expected[name], rtol=0, atol=0.02 if observer.needs_histogram else 1e-5
            )


def test_ranges_are_those_of_what_linears_read(tiny_ranker, tiny_pairs):
    read = []
    hook = tiny_ranker.module.layers[0].ffn.down.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    tiny_ranker.score(tiny_pairs)
    hook.remove()
    found = observed_ranges(tiny_ranker.module, calibration_inputs(tiny_ranker, tiny_pairs), NAMES, MinMax())
    wanted = [min(float(one.min()) for one in read), max(float(one.max()) for one in read)]
    np.testing.assert_allclose(found["layers.0.ffn.down"], [wanted], atol=1e-5)


def test_a_linear_of_two_matrices_has_two_ranges(tiny_pairs):
    layer = tiny_layer()
    assert layer.ffn
    up = LinearSpec(inputs=WIDTH, outputs=FFN_WIDTH, form=LowRankForm(rank=3))
    ranker = build_ranker(tiny_spec(layers=(layer.changed(ffn=layer.ffn.changed(up=up)),)))
    batches = calibration_inputs(ranker, tiny_pairs)
    found = observed_ranges(ranker.module, batches, ["layers.0.ffn.up"], MinMax())["layers.0.ffn.up"]
    assert found.shape == (2, 2)
    read = []
    part = ranker.module.get_submodule("layers.0.ffn.up")
    hook = part.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    ranker.score(tiny_pairs)
    hook.remove()
    thin = torch.cat(read) @ ranker.weights["layers.0.ffn.up.down"].T
    torch.testing.assert_close(found[1], torch.stack([thin.min(), thin.max()]), rtol=1e-5, atol=1e-5)
