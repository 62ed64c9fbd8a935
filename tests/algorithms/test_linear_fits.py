"""Predictions out of running sums: exact where one part determines the other, careful where samples are few."""

from __future__ import annotations

import pytest
import torch

from compressor.algorithms.linear_fits import Moments, most_telling, prediction

KNOWN = torch.tensor([0, 2, 3])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moments_of(*batches):
    moments = Moments()
    for batch in batches:
        moments.add(batch)
    return moments


def dependent(n=4000, noise=0.0):
    """Five entries, of which 1 and 4 follow from the others, but for noise."""
    values = normal(n, 5)
    values[:, 1] = 2 * values[:, 0] - values[:, 3] + 3
    values[:, 4] = values[:, 2] + 0.5 * values[:, 3] - 1
    return values + noise * normal(n, 5, seed=1)


@pytest.mark.parametrize("centered", [True, False])
def test_moments_are_those_of_all_samples_at_once(centered):
    values = normal(50, 4) + 1
    found = moments_of(values[:7], values[7:]).second(centered=centered)
    expected = torch.cov(values.T, correction=0) if centered else values.T @ values / 50
    torch.testing.assert_close(found.float(), expected, atol=1e-5, rtol=1e-5)


def test_what_follows_from_the_rest_is_predicted():
    values = dependent()
    factors, constants = prediction(moments_of(values), KNOWN, centered=True)
    torch.testing.assert_close(values[:, KNOWN] @ factors.T + constants, values, atol=5e-3, rtol=0)
    assert torch.equal(factors[KNOWN], torch.eye(3))
    assert not constants[KNOWN].any()


def test_without_a_constant_there_is_none():
    factors, constants = prediction(moments_of(dependent()), KNOWN, centered=False)
    assert not constants.any()
    assert torch.equal(factors[KNOWN], torch.eye(3))


def test_few_samples_are_not_believed():
    many, known = normal(10_000, 40), torch.arange(30)
    few = many[:12]
    error = {}
    for name, seen in (("few", few), ("many", many)):
        factors, constants = prediction(moments_of(seen), known, centered=True)
        error[name] = float((many[:, known] @ factors.T + constants - many)[:, 30:].square().mean())
    assert error["many"] == pytest.approx(1, abs=0.05)  # there is nothing to be known
    assert error["few"] < 3


def test_entries_that_tell_the_rest_are_chosen_first():
    second = moments_of(dependent(noise=0.05)).second(centered=True)
    chosen = most_telling([second], [torch.eye(5)], 3).tolist()
    left = 5 - len(chosen)
    values = dependent(noise=0.05)
    factors, constants = prediction(moments_of(values), torch.tensor(chosen), centered=True)
    assert (values[:, chosen] @ factors.T + constants - values).square().mean() < 0.03 * left


def test_what_no_map_reads_is_left_out():
    second = torch.diag(torch.tensor([9.0, 1.0, 4.0, 100.0]))
    reader = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert most_telling([second], [reader], 2).tolist() == [0, 2]


def test_each_site_weighs_alike():
    large, small = torch.diag(torch.tensor([100.0, 90.0, 1.0])), torch.diag(torch.tensor([0.01, 0.001, 0.09]))
    assert most_telling([large, small], [torch.eye(3)] * 2, 1).tolist() == [2]


def test_entries_are_chosen_in_groups():
    values = normal(3000, 6)
    values[:, 2:4] = values[:, 0:2] + 0.01 * values[:, 2:4]  # the second group repeats the first
    second = moments_of(values).second(centered=True)
    assert most_telling([second], [torch.eye(6)], 2, group=2).tolist() in ([0, 2], [1, 2])


def test_a_site_where_nothing_varies_has_no_say():
    constant = moments_of(torch.full((100, 3), 0.1) * torch.tensor([1.0, 20.0, 3.0])).second(centered=True)
    assert not constant.any()
    assert most_telling([constant, torch.diag(torch.tensor([1.0, 0.1, 5.0]))], [torch.eye(3)] * 2, 2).tolist() == [0, 2]
