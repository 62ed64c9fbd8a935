"""GPTQ and AWQ on single matrices: outputs err less, and what is rounded stays as it is when it is rounded again."""

from __future__ import annotations

import pytest
import torch

from compressor.algorithms.activation_aware import activation_aware, best_factors, clipped
from compressor.algorithms.layer_by_layer import Read
from compressor.algorithms.weight_rounding import Grid, gptq, output_error, relative_error
from compressor.ranker.channel_links import ChannelLink
from compressor.ranker.quantizers import int8_rows, rounded_weight, weight_blocks
from compressor.ranker.spec import Int4Blocks, Int8Blocks, Int8Dynamic, Int8Static

PRECISIONS = [Int4Blocks(), Int4Blocks(block_size=128), Int8Blocks(block_size=64), Int8Dynamic(),
              Int8Static(reduce_range=True)]  # fmt: skip


def kind(precision):
    return precision.kind


def correlated(n_inputs: int = 100, n_outputs: int = 24, seed: int = 0) -> tuple[torch.Tensor, Read]:
    """Return a matrix, and inputs that mostly lie in a few directions; some blocks and a row of it are zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(n_inputs, n_inputs, generator=generator) * torch.linspace(1, 0.02, n_inputs)[:, None] ** 2
    read = Read()
    read.add(torch.randn(2000, n_inputs, generator=generator) @ mixing)
    weight = torch.randn(n_outputs, n_inputs, generator=generator)
    weight[3] = 0
    weight[5, :70] = 0
    return weight, read


@pytest.mark.parametrize("precision", PRECISIONS, ids=kind)
def test_gptq_moves_outputs_less_than_the_nearest(precision):
    weight, read = correlated()
    second = read.second(centered=False)
    found = relative_error(weight, gptq(weight, read, precision), second)
    assert found < 0.7 * relative_error(weight, rounded_weight(weight, precision), second)


@pytest.mark.parametrize("precision", PRECISIONS, ids=kind)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_rounded_stays_as_it_is_to_the_bit(precision, seed):
    """The exporter makes scales and codes of the matrix alone: they must be those that were chosen."""
    weight, read = correlated(seed=seed)
    grid, found = Grid.of(weight, precision), gptq(weight, read, precision)
    assert not torch.equal(found, rounded_weight(weight, precision))
    assert torch.equal(rounded_weight(found, precision), found)
    assert torch.equal(Grid.of(found, precision).scales, grid.scales)
    codes = found.double() / grid.scales
    assert torch.equal(codes.round(), Grid.of(found, precision).nearest.double())
    nearest = rounded_weight(weight, precision)
    assert torch.equal(rounded_weight(nearest, precision), nearest)


def alike(n_inputs: int = 32) -> Read:
    read = Read()
    read.add(torch.randn(500, 1, generator=torch.Generator().manual_seed(0)).expand(500, n_inputs))
    return read


def test_the_largest_magnitude_keeps_the_lowest_level_whatever_its_neighbors_ask_of_it():
    """What 31 weights of 7.4 lack at the highest level, 7, would pull the last from -8 to 4, and all scales with it."""
    found = gptq(torch.tensor([[*[7.4] * 31, -8.0]]), alike(), Int4Blocks())
    assert found.tolist() == [[*[7.0] * 31, -8.0]]
    codes, scales = weight_blocks(found, 4, 32)
    assert scales.tolist() == [[1.0]]
    assert codes.flatten().tolist() == found.flatten().tolist()


def test_weights_of_inputs_that_are_alike_make_up_for_each_other():
    """What comes out is the input times the sum of the weights: 5.95, of which the nearest leaves -8."""
    weight = torch.tensor([[-8.0, *[0.45] * 31]])
    assert float(rounded_weight(weight, Int4Blocks()).sum()) == -8
    found = gptq(weight, alike(), Int4Blocks())
    assert abs(float(found.sum()) - 5.95) < 1
    assert set(found.flatten().tolist()) == {-8.0, 0.0, 1.0}


def test_what_is_zero_stays_zero_where_it_must():
    weight, read = correlated()
    weight = weight * (weight.abs() > 0.5)
    found = gptq(weight, read, Int8Dynamic(), keeps_zeros=True)
    assert (found[weight == 0] == 0).all()
    assert (gptq(weight, read, Int8Dynamic())[weight == 0] != 0).any()
    second = read.second(centered=False)
    assert relative_error(weight, found, second) < relative_error(weight, rounded_weight(weight, Int8Dynamic()), second)


def test_inputs_that_are_always_zero_are_rounded_to_the_nearest():
    weight, _ = correlated()
    still = Read()
    values = torch.randn(300, 100, generator=torch.Generator().manual_seed(1))
    values[:, 40:] = 0
    still.add(values)
    found = gptq(weight, still, Int4Blocks())
    assert torch.isfinite(found).all()
    assert torch.equal(found[:, 64:], rounded_weight(weight, Int4Blocks())[:, 64:])


def test_means_of_magnitudes_are_those_of_all_samples():
    read = Read()
    read.add(torch.tensor([[1.0, -2.0]]))
    read.add(torch.tensor([[-3.0, 0.0], [2.0, 4.0]]))
    assert read.mean_size.tolist() == [2.0, 2.0]
    torch.testing.assert_close(read.second(centered=False).diagonal(), torch.tensor([14 / 3, 20 / 3]).double())


def loud(channel: int = 7) -> tuple[torch.Tensor, Read]:
    """Return a matrix without structure, and inputs of which one channel is 30 times as large as the others."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(1000, 64, generator=generator)
    values[:, channel] *= 30
    read = Read()
    read.add(values)
    return torch.randn(16, 64, generator=generator), read


def test_loud_channels_get_finer_steps():
    weight, read = loud()
    factors = best_factors({"reader": (weight, read)}, Int4Blocks())
    assert factors[7] > 1.5 * factors.median()
    assert float(factors.log().mean()) == pytest.approx(0, abs=1e-9)
    second = read.second(centered=False)
    moved = weight - rounded_weight((weight * factors).float(), Int4Blocks()) / factors
    nearest = weight - rounded_weight(weight, Int4Blocks())
    assert output_error(moved, second).sum() < 0.7 * output_error(nearest, second).sum()


def test_channels_alike_stay_as_they_are():
    read = Read()
    read.add(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 32))
    assert torch.equal(best_factors({"reader": (torch.randn(4, 64), read)}, Int4Blocks()), torch.ones(64).double())


def test_a_block_is_cut_off_where_its_largest_weight_is_hardly_read():
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(8, 64, generator=generator)
    weight[:, 0] = 9
    second = torch.eye(64).double()
    second[0, 0] = 1e-6
    found = clipped(weight, second, Int4Blocks())
    assert ((found[:, 0] >= 4.5) & (found[:, 0] < 7)).all(), "half of the largest is the least that stays"
    assert torch.equal(found[:, 1:32], weight[:, 1:32])
    second[0, 0] = 1000
    assert torch.equal(clipped(weight, second, Int4Blocks())[:, 0], weight[:, 0])


@pytest.mark.parametrize("precision", [Int4Blocks(), Int8Blocks(block_size=128)], ids=kind)
def test_a_layer_rounded_by_awq_is_on_its_grid_and_errs_less(precision):
    generator = torch.Generator().manual_seed(2)
    output, read = loud()
    names = ("layers.0.attention.value", "layers.0.attention.output")
    weights = {f"{names[0]}.weight": torch.randn(64, 20, generator=generator), f"{names[0]}.bias": torch.ones(64)}
    weights[f"{names[1]}.weight"] = output
    link = ChannelLink("values", names[0], (names[1],))
    changed, errors = activation_aware(weights, {f"{names[1]}.weight": read}, [link], precision)
    assert set(changed) == set(weights)
    second = read.second(centered=False)
    nearest = relative_error(output, rounded_weight(output, precision), second)
    assert errors[f"{names[1]}.weight"] < 0.8 * nearest
    rounded = changed[f"{names[1]}.weight"]
    assert torch.equal(rounded_weight(rounded, precision), rounded)
    # The giver gives smaller by what the reader reads larger.
    factors = 1 / changed[f"{names[0]}.bias"]
    torch.testing.assert_close(relative_error(output, rounded / factors, second), errors[f"{names[1]}.weight"])
    torch.testing.assert_close(changed[f"{names[0]}.weight"] * factors[:, None], weights[f"{names[0]}.weight"])


def test_rows_of_all_zeros_have_a_grid_of_their_own():
    grid = Grid.of(torch.zeros(2, 40), Int4Blocks())
    assert grid.is_fixed.all()
    assert int8_rows(torch.zeros(2, 40))[1].tolist() == [1.0, 1.0]
    assert not grid.codes(torch.full((2,), 3.0).double(), 0).any()
