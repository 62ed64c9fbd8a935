"""Score losses against numbers worked out by hand, in plain Python, from the papers' formulas."""

from __future__ import annotations

import math

import pytest
import torch

from compressor.algorithms.lambda_losses import lambda_arp2
from compressor.algorithms.ranking_losses import RANKING_LOSSES

S, T = [1.0, -0.5, 2.0, 0.0], [3.0, 1.0, 0.5, -2.0]
GRADES = [2.0, 0.0, 1.0, 0.0]


def value(name, targets, scores=S, **options):
    mask = torch.ones(1, len(scores), dtype=torch.bool)
    scores, targets = (torch.tensor([part], dtype=torch.float64) for part in (scores, targets))
    return RANKING_LOSSES[name].function(scores, targets, mask, **options).item()


def softmax(values):
    total = sum(map(math.exp, values))
    return [math.exp(each) / total for each in values]


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def test_mse():
    assert value("mse", T) == pytest.approx((4 + 2.25 + 2.25 + 4) / 4)


def test_centered_mse_takes_means_out():
    error = [s - t for s, t in zip(S, T, strict=True)]  # -2, -1.5, 1.5, 2: mean 0
    assert sum(error) == 0
    assert value("centered_mse", T) == pytest.approx((4 + 2.25 + 2.25 + 4) / 4)
    assert value("centered_mse", [t + 7 for t in T]) == pytest.approx((4 + 2.25 + 2.25 + 4) / 4)


def test_margin_mse_over_all_pairs_and_over_the_first_items():
    error = [s - t for s, t in zip(S, T, strict=True)]
    pairs = [(i, j) for i in range(4) for j in range(i)]
    assert value("margin_mse", T) == pytest.approx(sum((error[i] - error[j]) ** 2 for i, j in pairs) / 6)
    assert value("margin_mse", T) == pytest.approx(2 * 4 / 3 * value("centered_mse", T))
    expected = (0.5**2 + 3.5**2 + 4**2) / 3
    assert value("margin_mse", T, pairs="first") == pytest.approx(expected)
    assert value("margin_mse", [math.nan, *T[1:]], pairs="first") == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_listwise_kl(temperature):
    p = softmax([t / temperature for t in T])
    q = softmax([s / temperature for s in S])
    expected = temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert value("listwise_kl", T, temperature=temperature) == pytest.approx(expected)


def test_a_hot_listwise_kl_becomes_half_the_centered_mse():
    # The limit that the factor temperature^2 gives it (arXiv 1503.02531, section 2.1).
    assert value("listwise_kl", T, temperature=1e4) == pytest.approx(value("centered_mse", T) / 2, rel=1e-3)


def test_ranknet_counts_ordered_pairs_and_no_ties():
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    expected = [math.log1p(math.exp(-2 * (S[i] - S[j]))) for i, j in pairs]
    assert value("ranknet", T, sigma=2.0) == pytest.approx(sum(expected) / 6)
    labels = [(0, 1), (0, 2), (0, 3), (2, 1), (2, 3)]
    expected = [math.log1p(math.exp(-(S[i] - S[j]))) for i, j in labels]
    assert value("ranknet_labels", GRADES) == pytest.approx(sum(expected) / 5)


def test_hinge():
    pairs = [(0, 1), (0, 2), (0, 3), (2, 1), (2, 3)]
    expected = [max(0, 1.5 - (S[i] - S[j])) for i, j in pairs]
    assert value("hinge_labels", GRADES, margin=1.5) == pytest.approx(sum(expected) / 5)


def test_adr_mse_with_ties_at_their_mean_rank():
    ranks = [1.5, 1.5, 3.0, 4.0]
    smooth = [1 + sum(sigmoid(3 * (S[j] - S[i])) for j in range(4) if j != i) for i in range(4)]
    expected = [(r - a) ** 2 / math.log2(1 + r) for r, a in zip(ranks, smooth, strict=True)]
    assert value("adr_mse", [3.0, 3.0, 0.5, -2.0], sigma=3.0) == pytest.approx(sum(expected) / 4)


def test_rank_distil_matches_the_top_and_pushes_the_rest_below_it():
    # top 2: items 0 and 1, the lowest of them at -0.5; item 2 is at 2, item 3 at 0
    matched = ((1 - 3) ** 2 + (-0.5 - 1) ** 2) / 2
    pushed = ((2 + 0.5 + 0.25) + (0 + 0.5 + 0.25)) / 2
    assert value("rank_distil", T, k=2, gamma=3.0, margin=0.25) == pytest.approx(matched + 3 * pushed)
    assert value("rank_distil", T, k=4) == pytest.approx(value("mse", T))
    assert value("rank_distil", [3.0, 1.0, 1.0, 0.0], k=2) == pytest.approx(
        ((1 - 3) ** 2 + (-0.5 - 1) ** 2 + (2 - 1) ** 2) / 3 + 0.5  # a tie at the border: both are in
    )


def test_keep_top_holds_the_best_above_the_cut():
    # The best are items 0 and 1 (at 1 and -0.5), and three of four are kept: one other may stand above them, so that
    # the lower of the others (0) is the score to beat.
    held = (max(0, 0.75 + 0 - 1) + max(0, 0.75 + 0 + 0.5)) / 2
    assert value("keep_top", T, top=0.5, keep=0.75, margin=0.75) == pytest.approx(held)
    held = (max(0, 0.75 + 2 - 1) + max(0, 0.75 + 2 + 0.5)) / 2  # both places are theirs
    assert value("keep_top", T, top=0.5, keep=0.5, margin=0.75) == pytest.approx(held)
    assert value("keep_top", T, top=0.5, keep=0.25, margin=0.75) == pytest.approx(held)  # no fewer than the best
    assert value("keep_top", T, top=0.25, keep=0.5, margin=0.25) == pytest.approx(0)  # 1 is above 0 by far enough
    assert value("keep_top", T, top=0.5, keep=1.0) == 0
    assert value("keep_top", T, top=0.5, keep=0.76) == 0  # 3.04 of 4 are 4
    tied = [3.0, 1.0, 1.0, 0.0]  # a tie at the border: both are in
    assert value("keep_top", tied, top=0.5, keep=0.75, margin=0.0) == pytest.approx((0 + 0.5 + 0) / 3)


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.7])
def test_keep_top_without_margin_is_zero_exactly_where_all_of_the_best_are_kept(keep):
    generator = torch.Generator().manual_seed(5)
    outcomes = set()
    for _ in range(200):
        scores, targets = torch.randn(2, 10, generator=generator).tolist()
        kept = sorted(zip(scores, range(10), strict=True), reverse=True)[: round(10 * keep)]
        best = sorted(zip(targets, range(10), strict=True), reverse=True)[:3]
        lost = not {item for _, item in best} <= {item for _, item in kept}
        assert (value("keep_top", targets, scores, top=0.3, keep=keep, margin=0.0) > 0) == lost
        outcomes.add(lost)
    assert outcomes == {True, False}


def test_list_mle_is_the_likelihood_of_the_order():
    expected = sum(math.log(sum(map(math.exp, S[rank:]))) - S[rank] for rank in range(4))
    assert value("list_mle", T) == pytest.approx(expected / 4)


def test_list_mle_chooses_ties_from_all_that_are_left_and_never_the_tail():
    everything, later = sum(map(math.exp, S)), math.exp(S[1]) + math.exp(S[3])
    tied = [1.0, 0.0, 1.0, 0.0]
    expected = 2 * math.log(everything) - S[0] - S[2]
    assert value("list_mle_labels", tied) == pytest.approx(expected / 4)
    expected = math.log(everything) - S[0] + math.log(later + math.exp(S[2])) - S[2]
    assert value("list_mle_labels", GRADES) == pytest.approx(expected / 4)


def test_plist_mle_weighs_early_choices():
    weights = [7, 3, 1, 0]
    terms = [math.log(sum(map(math.exp, S[rank:]))) - S[rank] for rank in range(4)]
    expected = sum(w * term for w, term in zip(weights, terms, strict=True)) / 11
    assert value("plist_mle", T) == pytest.approx(expected)
    many = [float(-i) for i in range(300)]
    assert 0 < value("plist_mle", many, scores=many) < 1  # 2^300 would be beyond single precision


def test_softmax_labels():
    p = softmax(S)
    expected = -(2 * math.log(p[0]) + math.log(p[2])) / 3
    assert value("softmax_labels", GRADES) == pytest.approx(expected)
    expected += 0.5 * (1 - (2 * p[0] + p[2]) / 3)
    assert value("softmax_labels", GRADES, poly1=0.5) == pytest.approx(expected)
    negatives = math.exp(S[1]) + math.exp(S[3])
    alone = [math.exp(s) / (math.exp(s) + negatives) for s in (S[0], S[2])]
    expected = -(2 * math.log(alone[0]) + math.log(alone[1])) / 3
    assert value("softmax_labels", GRADES, positives="separate") == pytest.approx(expected)
    assert value("softmax_labels", [0.0] * 4) == 0
    assert value("softmax_labels", [1.0] * 4, positives="separate") == 0


def test_separate_positives_do_not_compete():
    crowded, labels = [3.0, 9.0, 0.0], [1.0, 1.0, 0.0]
    assert value("softmax_labels", labels, scores=crowded) > 3
    assert value("softmax_labels", labels, scores=crowded, positives="separate") < 0.05


def test_bce_labels_reads_lower_grades_in_proportion():
    wanted = [1.0, 0.0, 0.5, 0.0]
    terms = [-w * math.log(sigmoid(s)) - (1 - w) * math.log(1 - sigmoid(s)) for s, w in zip(S, wanted, strict=True)]
    assert value("bce_labels", GRADES, relevant_from=2.0) == pytest.approx(sum(terms) / 4)


def test_gbce_labels_is_the_papers_formula():
    a, t = 2 / 50, 0.9
    beta = a * (t * (1 - 1 / a) + 1 / a)
    positives = sum(-beta * math.log(sigmoid(S[i])) for i in (0, 2))
    negatives = sum(-math.log(1 - sigmoid(S[i])) for i in (1, 3))
    assert value("gbce_labels", GRADES, calibration=t, pool=50) == pytest.approx((positives + negatives) / 4)
    plain = [min(grade, 1.0) for grade in GRADES]
    assert value("gbce_labels", GRADES, calibration=0.0) == pytest.approx(value("bce_labels", plain))


@pytest.mark.parametrize("scheme", ["ndcg_loss1", "ndcg_loss2", "lambdarank", "ndcg_loss2pp"])
@pytest.mark.parametrize("k", [None, 2])
def test_lambda_loss_from_its_formulas(scheme, k):
    def discount(rank):
        return math.log2(1 + rank)

    places = {0: 2, 1: 4, 2: 1, 3: 3}  # by S
    grades = [1.0, 1 / 2, 1 / 3, 1 / 4]  # one over the rank by T
    gains = [2**grade - 1 for grade in grades]
    best = sum(gain / discount(rank) for rank, gain in enumerate(gains[:k], start=1))
    total, count = 0.0, 0
    for i in range(4):
        for j in range(4):
            if i == j or (scheme != "ndcg_loss1" and T[i] <= T[j]):
                continue
            if k and min(places[i], places[j]) > k:
                continue
            apart = abs(places[i] - places[j])
            gain = abs(gains[i] - gains[j]) / best
            swap = gain * abs(1 / discount(apart) - 1 / discount(apart + 1))
            exact = gain * abs(1 / discount(places[i]) - 1 / discount(places[j]))
            first = gains[i] / best / discount(places[i])
            weight = {"ndcg_loss1": first, "ndcg_loss2": swap, "lambdarank": exact, "ndcg_loss2pp": 10 * swap + exact}
            total += weight[scheme] * math.log2(1 + math.exp(-(S[i] - S[j])))
            count += 1
    assert value("lambda_loss", T, scheme=scheme, k=k) == pytest.approx(total / count)
    graded = value("lambda_labels", grades, scheme=scheme, k=k)
    assert graded == pytest.approx(total / count)


def test_lambda_loss_reads_linear_relevance_off_the_ranks():
    grades = [4.0, 4 * 2 / 3, 4 / 3, 0.0]
    found = value("lambda_loss", T, relevance="linear", top_grade=4.0)
    assert found == pytest.approx(value("lambda_labels", grades))


def arp2(scores, targets, top, mask=None):
    mask = [True] * len(scores) if mask is None else mask
    scores, targets = (torch.tensor([part], dtype=torch.float64) for part in (scores, targets))
    return lambda_arp2(scores, targets, torch.tensor([mask]), top=top).item()


@pytest.mark.parametrize("top", [2, 3, 20])
def test_lambda_arp2_from_its_formula(top):
    best = sorted(range(4), key=lambda item: -T[item])[:top]
    relevance = {item: len(best) - place for place, item in enumerate(best)}
    total = sum(
        (relevance[i] - relevance[j]) * math.log2(1 + math.exp(S[j] - S[i]))
        for i in best
        for j in best
        if relevance[i] > relevance[j]
    )
    assert arp2(S, T, top) == pytest.approx(total / len(best) ** 2)
    assert arp2([*S, 9.0], [*T, 9.0], top, mask=[True] * 4 + [False]) == pytest.approx(total / len(best) ** 2)


def test_lambda_arp2_asks_for_the_order_of_the_best():
    targets = [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    perfect, reverse = arp2(targets, targets, 4), arp2(targets[::-1], targets, 4)
    swapped = arp2([5.0, 4.0, 2.0, 3.0, 1.0, 0.0], targets, 4)
    assert perfect < swapped < reverse
    assert arp2([5.0, 4.0, 3.0, 2.0, 0.0, 1.0], targets, 4) == pytest.approx(perfect)  # the others do not count
    assert arp2([1.0], [1.0], 4) == 0
