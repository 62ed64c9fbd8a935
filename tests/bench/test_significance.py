from __future__ import annotations

import math

import numpy as np
import pytest

from compressor.bench.significance import Claim, MeanSample, decide, queries_needed, resample_mean

RNG_SEED = 7


def normal(n: int, mean: float, sd: float) -> np.ndarray:
    """Values of exactly this mean and standard deviation (n − 1)."""
    values = np.random.default_rng(RNG_SEED).normal(size=n)
    values -= values.mean()
    return values / values.std(ddof=1) * sd + mean


# Bounds ---------------------------------------------------------------------------------------------------------------


def test_a_bound_of_normal_values_is_the_t_interval():
    sample = resample_mean(normal(60, 0.02, 0.1))
    assert sample.lower(0.05) == pytest.approx(0.02 - 1.671 * 0.1 / math.sqrt(60), abs=0.0015)
    assert sample.upper(0.05) == pytest.approx(0.02 + 1.671 * 0.1 / math.sqrt(60), abs=0.0015)


def test_the_same_values_give_the_same_bound():
    values = normal(40, 0.0, 0.1)
    assert resample_mean(values).lower(0.05) == resample_mean(values).lower(0.05)


def test_bounds_widen_with_confidence():
    sample = resample_mean(normal(50, 0.0, 0.1))
    lows = [sample.lower(level) for level in (0.2, 0.1, 0.05, 0.01, 0.001)]
    assert lows == sorted(lows, reverse=True)


def test_values_without_spread_have_their_mean_as_bounds():
    sample = resample_mean(np.full(30, -0.1))
    assert (sample.mean, sample.lower(0.05), sample.upper(0.01)) == (-0.1, -0.1, -0.1)


def test_one_value_bounds_nothing():
    sample = resample_mean(np.array([0.3]))
    assert math.isnan(sample.lower(0.05))
    assert math.isnan(sample.upper(0.05))


@pytest.mark.parametrize("values", [[], [math.nan, 1.0], [math.inf]])
def test_no_values_or_infinite_ones_are_refused(values):
    with pytest.raises(ValueError, match="at least one value"):
        resample_mean(np.array(values))


def test_the_level_of_a_limit_is_where_the_bound_meets_it():
    sample = resample_mean(np.random.default_rng(1).exponential(size=80))
    for limit in (0.7, 0.85, 1.0, 1.2):
        assert sample.lower(sample.level_below(limit)) == pytest.approx(limit, abs=0.01)


def skewed(rng: np.random.Generator, n: int) -> tuple[np.ndarray, float]:
    """Losses as a compressed ranker makes them: small noise on most queries, a big loss on one in ten."""
    return rng.normal(0, 0.05, n) - np.where(rng.random(n) < 0.1, 0.3, 0.0), -0.03


def sparse(rng: np.random.Generator, n: int) -> tuple[np.ndarray, float]:
    """RR@10: most queries do not change at all, the others jump."""
    return rng.choice([0, 0, 0, 0, 0.5, -0.5], n), 0.0


def bell(rng: np.random.Generator, n: int) -> tuple[np.ndarray, float]:
    return rng.normal(0.01, 0.1, n), 0.01


@pytest.mark.parametrize("draw", [bell, sparse, skewed])
def test_the_lower_bound_holds_at_its_nominal_rate(draw):
    rng = np.random.default_rng(3)
    held = 0
    n_simulations = 600
    for _ in range(n_simulations):
        values, truth = draw(rng, 53)
        held += resample_mean(values, resamples=1000).lower(0.05) <= truth + 1e-12
    # Three standard errors of a share of 0.95 in 600 are 0.027; a plain percentile bound holds 0.90 on `skewed`.
    assert 0.92 <= held / n_simulations <= 0.98


# Verdicts -------------------------------------------------------------------------------------------------------------


def verdict(values: np.ndarray, margin: float, **settings: int) -> str:
    return decide([Claim(values=values, limit=-margin)], **settings)[0].verdict


def test_a_small_loss_on_many_queries_passes():
    assert verdict(normal(400, -0.001, 0.05), 0.01) == "pass"


def test_a_clear_loss_fails():
    assert verdict(normal(400, -0.03, 0.05), 0.01) == "fail"


def test_a_loss_that_is_significant_but_small_still_passes():
    # Loss 0.004 with a standard error of 0.0005: surely a loss, surely below the margin.
    assert verdict(normal(400, -0.004, 0.01), 0.01) == "pass"


def test_no_significant_difference_is_no_pass():
    # Loss 0.005 ± 0.014: nobody would call it significant, and nobody knows that it is below 0.01.
    assert verdict(normal(50, -0.005, 0.1), 0.01) == "undecided"


def test_a_mean_gain_with_wide_spread_is_undecided():
    assert verdict(normal(30, 0.002, 0.15), 0.01) == "undecided"


def test_identical_rankings_pass_any_margin():
    assert verdict(np.zeros(50), 1e-9) == "pass"


def test_a_constant_loss_equal_to_the_margin_is_not_above_it():
    found = decide([Claim(values=np.full(50, -0.01), limit=-0.01)])[0]
    assert (found.verdict, found.n_needed) == ("undecided", None)


def test_an_inclusive_limit_is_met_by_equality_and_broken_by_one_value():
    ones = np.ones(50)
    assert decide([Claim(values=ones, limit=1.0, or_equal=True, highest=1.0)])[0].verdict == "pass"
    ones[7] = 0.99
    assert decide([Claim(values=ones, limit=1.0, or_equal=True, highest=1.0)])[0].verdict == "fail"


@pytest.mark.parametrize("n", [1, 2, 19])
def test_too_few_queries_never_decide(n):
    for values in (np.zeros(n), np.full(n, -0.5)):
        found = decide([Claim(values=values, limit=-0.01)])[0]
        assert found.verdict == "undecided"
        assert found.n == n
    assert verdict(np.zeros(19), 0.01, min_queries=2) == "pass"


# How many queries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sd", "margin", "expected"), [(0.05, 0.01, 155), (0.10, 0.01, 619), (0.15, 0.005, 5565)])
def test_queries_needed_equals_the_textbook(sd, margin, expected):
    # ((1.6449 + 0.8416) · sd / margin)²
    sample = MeanSample(n=50, mean=0.0, sd=sd, resampled=np.zeros(1), bias=0.0, acceleration=0.0)
    assert queries_needed(sample, -margin, level=0.05) == pytest.approx(expected, abs=1)


def test_an_undecided_claim_needs_more_queries_than_it_has():
    found = decide([Claim(values=normal(50, -0.002, 0.1), limit=-0.01)])[0]
    assert found.verdict == "undecided"
    assert found.n_needed is not None
    assert found.n_needed > 50


def test_with_the_queries_needed_four_of_five_samples_pass():
    rng = np.random.default_rng(5)
    needed = 155  # sd 0.05, margin 0.01, no true loss
    passed = sum(
        resample_mean(rng.normal(0, 0.05, needed), resamples=1000).lower(0.05) > -0.01 for _ in range(400)
    )  # fmt: skip
    assert 0.73 <= passed / 400 <= 0.87


# Holm -----------------------------------------------------------------------------------------------------------------


def shifted(p_like: float, n: int = 100) -> Claim:
    """A claim whose level is about ``p_like``: the limit stands where the bound of that level stands."""
    values = normal(n, 0.0, 0.1)
    return Claim(values=values, limit=resample_mean(values).lower(p_like))


def test_one_claim_needs_no_correction():
    assert [one.verdict for one in decide([shifted(0.04)])] == ["pass"]
    assert [one.verdict for one in decide([shifted(0.06)])] == ["undecided"]


def test_holm_steps_down_from_the_clearest():
    # Textbook: 0.01 ≤ 0.05/3, 0.02 ≤ 0.05/2, 0.045 ≤ 0.05: all pass, though 0.045 > 0.05/3 (Bonferroni would refuse).
    found = decide([shifted(0.045), shifted(0.01), shifted(0.02)])
    assert [one.verdict for one in found] == ["pass", "pass", "pass"]
    assert [one.level_lower for one in found] == pytest.approx([0.05, 0.05 / 3, 0.05 / 2])


def test_holm_stops_at_the_first_that_is_not_shown():
    # 0.01 passes at 0.05/3; 0.03 > 0.05/2 stops; 0.04 would pass alone, and now may not.
    found = decide([shifted(0.04), shifted(0.03), shifted(0.01)])
    assert [one.verdict for one in found] == ["undecided", "undecided", "pass"]
    assert [one.level_lower for one in found] == pytest.approx([0.05 / 2, 0.05 / 2, 0.05 / 3])


def test_failures_are_corrected_too():
    # A true loss equal to the margin on each of 10 sets: without correction two in five gates would fail by chance.
    rng = np.random.default_rng(11)
    failures = 0
    for _ in range(60):
        claims = [Claim(values=rng.normal(-0.01, 0.05, 60), limit=-0.01) for _ in range(10)]
        failures += any(one.verdict == "fail" for one in decide(claims))
    assert failures <= 9


def test_no_claims_no_decisions():
    assert decide([]) == []
