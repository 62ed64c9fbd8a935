"""Laws of all score losses: what cannot matter does not matter, and learning moves students toward their targets."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from compressor.algorithms.loss_options import LOSS_OPTIONS
from compressor.algorithms.ranking_losses import RANKING_LOSSES
from tests.algorithms.drawn_lists import LAW, for_loss, gradient, lists

NAMES = sorted(RANKING_LOSSES)
SHIFT_BLIND = sorted(set(NAMES) - {"mse", "rank_distil", "bce_labels", "gbce_labels"})
OF_ORDER = ["ranknet", "lambda_loss", "adr_mse", "list_mle", "plist_mle"]
REGRESSIONS = ["mse", "centered_mse", "margin_mse", "listwise_kl", "rank_distil"]
VARIANTS: list[tuple[str, dict[str, object]]] = [
    *((name, {}) for name in NAMES),
    ("margin_mse", {"pairs": "first"}),
    ("listwise_kl", {"temperature": 3.0}),
    ("lambda_loss", {"scheme": "ndcg_loss1"}),
    ("lambda_loss", {"scheme": "ndcg_loss2", "relevance": "linear", "top_grade": 3.0}),
    ("lambda_loss", {"scheme": "lambdarank", "k": 2}),
    ("rank_distil", {"k": 2, "margin": 0.5}),
    ("keep_top", {"top": 0.4, "keep": 0.6, "margin": 0.5}),
    ("softmax_labels", {"positives": "separate", "poly1": 1.0}),
]
IDS = [" ".join([name, *(f"{key}={value}" for key, value in options.items())]) for name, options in VARIANTS]
variants = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)


def test_every_loss_has_its_options_and_every_option_its_loss():
    assert set(RANKING_LOSSES) == set(LOSS_OPTIONS)
    for loss in RANKING_LOSSES.values():
        parameters = inspect.signature(loss.function).parameters.values()
        keywords = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
        assert loss.options().keywords() == keywords
        assert (loss.target == "labels") == loss.name.endswith("_labels")
    assert {name for name, loss in RANKING_LOSSES.items() if loss.least == 1} == {"mse", "bce_labels"}


def test_options_are_checked_without_torch():
    with pytest.raises(ValidationError, match="greater than 0"):
        LOSS_OPTIONS["listwise_kl"].model_validate({"temperature": 0})
    with pytest.raises(ValidationError, match="Extra inputs"):
        LOSS_OPTIONS["mse"].model_validate({"temperature": 2})
    with pytest.raises(ValidationError, match="greater than 0"):
        LOSS_OPTIONS["mse"].model_validate({"weight": 0})
    program = "import sys, json, compressor.algorithms.loss_options; print(json.dumps('torch' in sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(result.stdout) is False


def test_a_loss_is_called_with_its_options():
    scores, targets, mask = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool)
    loss = RANKING_LOSSES["listwise_kl"]
    warm = loss.options.model_validate({"temperature": 4, "weight": 9})
    assert loss(scores, targets, mask, warm) == loss.function(scores, targets, mask, temperature=4.0)
    assert loss(scores, targets, mask) == loss.function(scores, targets, mask)


@variants
@LAW
@given(drawn=lists())
def test_invalid_items_have_no_influence_and_no_gradient(name, options, drawn):
    drawn = for_loss(name, drawn)
    values, slopes = gradient(name, drawn, **options)
    invalid = ~drawn.mask | drawn.targets.isnan()
    assert not slopes[invalid].any()
    assert values.isfinite().all()
    assert slopes.isfinite().all()
    for junk in (torch.nan, torch.inf, 1e30):
        targets = drawn.targets.masked_fill(~drawn.mask, junk)  # a missing target stays missing
        changed = drawn._replace(scores=drawn.scores.masked_fill(invalid, junk), targets=targets)
        again, steps = gradient(name, changed, **options)
        assert torch.equal(again, values)
        assert torch.equal(steps, slopes)


@variants
@LAW
@given(drawn=lists(least=1), wider=st.integers(1, 3))
def test_a_list_does_not_depend_on_its_batch(name, options, drawn, wider):
    drawn = for_loss(name, drawn)
    values, _ = gradient(name, drawn, **options)
    for row in range(len(values)):
        alone = [torch.nn.functional.pad(part[row : row + 1], (0, wider)) for part in drawn]
        torch.testing.assert_close(gradient(name, type(drawn)(*alone), **options)[0][0], values[row])


@variants
@LAW
@given(drawn=lists(), data=st.data())
def test_the_order_of_items_does_not_matter(name, options, drawn, data):
    drawn = for_loss(name, drawn)
    rest = data.draw(st.permutations(range(1, drawn.scores.shape[1])))
    order = [0, *rest] if options.get("pairs") == "first" else data.draw(st.permutations([0, *rest]))
    values, slopes = gradient(name, drawn, **options)
    shuffled, steps = gradient(name, type(drawn)(*(part[:, order] for part in drawn)), **options)
    torch.testing.assert_close(shuffled, values)
    torch.testing.assert_close(steps, slopes[:, order])


@pytest.mark.parametrize("name", SHIFT_BLIND)
@LAW
@given(drawn=lists(), shift=st.sampled_from([-20.0, 0.5, 40.0]))
def test_a_shift_of_a_whole_list_does_not_matter(name, drawn, shift):
    drawn = for_loss(name, drawn)
    values, slopes = gradient(name, drawn)
    moved, steps = gradient(name, drawn._replace(scores=drawn.scores + shift))
    torch.testing.assert_close(moved, values)
    torch.testing.assert_close(steps, slopes)
    torch.testing.assert_close(slopes.sum(dim=1), torch.zeros_like(values), rtol=0, atol=1e-12)
    if RANKING_LOSSES[name].target == "teacher":
        torch.testing.assert_close(gradient(name, drawn._replace(targets=drawn.targets + shift))[0], values)


@pytest.mark.parametrize("name", ["mse", "rank_distil", "bce_labels", "gbce_labels"])
def test_the_other_losses_feel_a_shift(name):
    scores, targets = torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    drawn = (torch.ones_like(scores).bool(),)
    loss = RANKING_LOSSES[name].function
    assert not torch.isclose(loss(scores, targets, *drawn), loss(scores + 5, targets, *drawn))


@pytest.mark.parametrize("name", [*OF_ORDER, "keep_top"])
@LAW
@given(drawn=lists())
def test_only_the_teachers_order_counts_where_it_says_so(name, drawn):
    values, slopes = gradient(name, drawn)
    warped, steps = gradient(name, drawn._replace(targets=torch.exp(4 * drawn.targets) - 7))
    torch.testing.assert_close(warped, values)
    torch.testing.assert_close(steps, slopes)


@pytest.mark.parametrize("name", [name for name in NAMES if RANKING_LOSSES[name].least == 2])
@LAW
@given(drawn=lists(), data=st.data())
def test_a_list_with_fewer_than_two_valid_items_is_exactly_zero(name, drawn, data):
    drawn = for_loss(name, drawn)
    left = data.draw(st.integers(-1, drawn.scores.shape[1] - 1))
    mask = drawn.mask & (torch.arange(drawn.scores.shape[1]) == left)
    values, slopes = gradient(name, drawn._replace(mask=mask))
    assert not values.any()
    assert not slopes.any()


@variants
@LAW
@given(drawn=lists(size=50.0))
def test_logits_of_fifty_are_safe_in_single_precision(name, options, drawn):
    drawn = for_loss(name, drawn)
    values, slopes = gradient(name, drawn, **options)
    single, steps = gradient(name, drawn._replace(scores=drawn.scores.float()), **options)
    assert single.dtype == steps.dtype == torch.float32
    # Rounding of sums of up to 49 terms as large as 100^2.
    torch.testing.assert_close(single.double(), values, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(steps.double(), slopes, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_in_single_precision_out(name):
    scores = torch.tensor([[0.5, -1.0, 2.0]])  # numbers that bf16 holds exactly
    targets, mask = torch.tensor([[1.0, 0.0, 2.0]]), torch.ones(1, 3, dtype=torch.bool)
    exact = RANKING_LOSSES[name].function(scores, targets, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = RANKING_LOSSES[name].function(scores.bfloat16(), targets.bfloat16(), mask)
    assert found.dtype == torch.float32
    assert torch.equal(found, exact)


@variants
def test_gradients_are_those_of_the_values(name, options):
    torch.manual_seed(3)
    scores = torch.randn(3, 5, dtype=torch.float64).requires_grad_()
    targets = torch.randn(3, 5, dtype=torch.float64) if RANKING_LOSSES[name].target == "teacher" else None
    targets = torch.tensor([[1.0, 0, 0, 0, 2]] * 3).double() if targets is None else targets
    mask = torch.tensor([[True] * 5, [True] * 4 + [False], [True, False, True, False, True]])

    def loss(scores):
        return RANKING_LOSSES[name].function(scores, targets, mask, **options)

    assert torch.autograd.gradcheck(loss, (scores,))


@pytest.mark.parametrize("name", REGRESSIONS)
@LAW
@given(drawn=lists(least=2), step=lists(least=2))
def test_a_student_that_equals_its_teacher_has_arrived(name, drawn, step):
    equal = drawn._replace(scores=drawn.targets.nan_to_num())
    values, slopes = gradient(name, equal)
    torch.testing.assert_close(values, torch.zeros_like(values), rtol=0, atol=1e-12)
    torch.testing.assert_close(slopes, torch.zeros_like(slopes), rtol=0, atol=1e-12)
    assert (gradient(name, drawn)[0] >= -1e-12).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_falls_as_the_student_moves_to_its_teacher(name):
    torch.manual_seed(5)
    targets = torch.tensor([[2.0, -3.0, 1.0, 0.0, -1.0]])
    if RANKING_LOSSES[name].target == "labels":
        targets = torch.tensor([[2.0, 0.0, 1.0, 0.0, 0.0]])
    mask = torch.ones(1, 5, dtype=torch.bool)
    start, goal = -targets, 2 * targets - 1  # in order, and on either side of 0
    if name in REGRESSIONS:
        goal = targets
    way = [start + share * (goal - start) for share in torch.linspace(0, 1, 9)]
    values = torch.stack([RANKING_LOSSES[name].function(scores, targets, mask)[0] for scores in way])
    assert values[-1] < values[0] / 2
    # The weights of LambdaLoss jump when places change, and the softmax of shared mass can be too sharp.
    if name not in ("lambda_loss", "lambda_labels", "softmax_labels"):
        assert ((values.diff() < 0) | (values[:-1] == 0)).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "keep_top"])  # it asks for no order above its cut
def test_descent_recovers_the_planted_order(name):
    torch.manual_seed(7)
    targets = torch.tensor([[2.0, -3.0, 1.0, 0.0, -1.0], [0.0, 1.0, 2.0, 3.0, 9.0]])
    if RANKING_LOSSES[name].target == "labels":
        targets = torch.tensor([[2.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    mask = torch.tensor([[True] * 5, [True] * 3 + [False, True]])
    scores = torch.randn(2, 5).requires_grad_()
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        RANKING_LOSSES[name].function(scores, targets, mask).sum().backward()
        optimizer.step()
    better = (targets[:, :, None] > targets[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    assert ((scores[:, :, None] > scores[:, None, :]) | ~better).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_student_whose_scores_are_all_equal_learns_from_every_item(name):
    targets = torch.tensor([[2.0, 0.0, 1.0, 0.5]])
    scores = torch.zeros(1, 4, requires_grad=True)
    loss = RANKING_LOSSES[name].function(scores, targets, torch.ones(1, 4, dtype=torch.bool))
    slope = torch.autograd.grad(loss.sum(), scores)[0][0]
    assert slope[0] < 0  # the best item rises
    assert name in REGRESSIONS or slope[1] > 0  # the worst one falls


def test_shapes_that_differ_are_refused():
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"scores \[2, 3\], targets \[2, 1\]"):
        RANKING_LOSSES["mse"].function(torch.zeros(2, 3), torch.zeros(2, 1), mask)
