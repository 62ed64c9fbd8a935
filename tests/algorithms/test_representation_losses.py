"""Losses on inner states: values by hand, no influence of padding or batch mates' layout, right gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from compressor.algorithms import representation_losses
from compressor.algorithms.representation_losses import (
    attention_kl,
    hidden_cosine,
    hidden_mse,
    qkv_relation_kl,
    relation_kl,
)
from compressor.ranker.tokens import TokenLayout
from tests.algorithms.drawn_lists import LAW

LENGTHS = (5, 2, 7, 1, 4)


def layout_of(lengths, width=0):
    columns = torch.arange(max(*lengths, width, 1))
    return TokenLayout.of(columns[None, :] < torch.tensor(lengths)[:, None])


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plain_relation_kl(student, teacher, lengths, heads, *, student_keys=None, teacher_keys=None):
    """Return the loss from its formula, a row, a head and a token at a time."""
    student_keys = student if student_keys is None else student_keys
    teacher_keys = teacher if teacher_keys is None else teacher_keys
    terms, start = [], 0
    for length in lengths:
        row = slice(start, start + length)
        start += length
        for head in range(heads):
            logs = []
            for asking, asked in ((student, student_keys), (teacher, teacher_keys)):
                d = asking.shape[1] // heads
                a, b = (part[row, head * d : (head + 1) * d] for part in (asking, asked))
                logs.append(torch.log_softmax(a @ b.T / math.sqrt(d), dim=1))
            terms += [F.kl_div(s, t, log_target=True, reduction="sum") for s, t in zip(*logs, strict=True)]
    return torch.stack(terms).mean()


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_relation_kl_is_its_formula_at_any_widths(heads):
    student, teacher = normal(19, 8), normal(19, 24, seed=1)
    found = relation_kl(student, teacher, layout_of(LENGTHS), heads)
    torch.testing.assert_close(found, plain_relation_kl(student, teacher, LENGTHS, heads))


def test_attention_kl_relates_queries_to_keys():
    student, teacher = [normal(19, 8, seed=n) for n in (1, 2)], [normal(19, 12, seed=n) for n in (3, 4)]
    expected = plain_relation_kl(student[0], teacher[0], LENGTHS, 4, student_keys=student[1], teacher_keys=teacher[1])
    torch.testing.assert_close(attention_kl(student, teacher, layout_of(LENGTHS), 4), expected)


def test_qkv_relation_kl_is_the_mean_of_three():
    student, teacher = ([normal(19, 8, seed=seed + n) for n in range(3)] for seed in (0, 5))
    layout = layout_of(LENGTHS)
    each = [relation_kl(s, t, layout, 2) for s, t in zip(student, teacher, strict=True)]
    torch.testing.assert_close(qkv_relation_kl(student, teacher, layout, 2), sum(each) / 3)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        qkv_relation_kl(student, teacher[:2], layout, 2)


@LAW
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), wider=st.integers(0, 5), one_by_one=st.booleans())
def test_padding_and_chunks_do_not_matter(lengths, wider, one_by_one):
    student, teacher = (normal(sum(lengths), 8, seed=n, dtype=torch.float32).requires_grad_() for n in (1, 2))
    with pytest.MonkeyPatch.context() as patch:
        if one_by_one:
            patch.setattr(representation_losses, "_CACHED_PRODUCTS", 1)
        wide = relation_kl(student, teacher, layout_of(lengths, max(lengths) + wider), 4)
        slope = torch.autograd.grad(wide, student)[0]
    tight = relation_kl(student, teacher, layout_of(lengths), 4)
    expected = plain_relation_kl(student, teacher, lengths, 4)
    # Rounding of sums that go in another order.
    torch.testing.assert_close(wide, tight, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(slope, torch.autograd.grad(tight, student)[0], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(slope, torch.autograd.grad(expected, student)[0], rtol=1e-4, atol=1e-7)


def test_rows_can_stand_in_any_order_with_any_mates():
    student, teacher = normal(19, 8), normal(19, 8, seed=1)
    whole = relation_kl(student, teacher, layout_of(LENGTHS), 2)
    rows = list(zip(student.split(LENGTHS), teacher.split(LENGTHS), strict=True))
    alone = [relation_kl(s, t, layout_of((len(s),)), 2) * len(s) for s, t in rows]
    torch.testing.assert_close(torch.stack(alone).sum() / 19, whole)
    turned, reference = (torch.cat(part) for part in zip(*reversed(rows), strict=True))
    torch.testing.assert_close(relation_kl(turned, reference, layout_of(LENGTHS[::-1]), 2), whole)


def test_relation_gradients_are_those_of_the_values():
    student, keys, teacher = (normal(19, 4, seed=n).requires_grad_() for n in (1, 2, 3))
    layout = layout_of(LENGTHS)
    assert torch.autograd.gradcheck(lambda s: relation_kl(s, teacher, layout, 2), (student,))
    assert torch.autograd.gradcheck(lambda q, k: attention_kl((q, k), (teacher, teacher), layout, 2), (student, keys))
    (3 * relation_kl(student, teacher, layout, 2)).backward()
    expected = torch.autograd.grad(relation_kl(student, teacher, layout, 2), student)[0]
    torch.testing.assert_close(student.grad, 3 * expected)
    assert teacher.grad is None


def test_relations_that_are_equal_cost_nothing_and_large_ones_do_no_harm():
    layout, states = layout_of(LENGTHS), 30 * normal(19, 8, dtype=torch.float32)
    turn = torch.linalg.qr(normal(4, 4, dtype=torch.float32))[0]
    turned = (states.unflatten(1, (2, 4)) @ turn).flatten(1).requires_grad_()
    loss = relation_kl(turned, states, layout, 2)
    assert 0 <= loss + 1e-6 < 1e-3  # rounding of products near 30^2 * 4
    far = relation_kl(turned, -states.flip(0), layout, 2)
    slope = torch.autograd.grad(far, turned)[0]
    assert far.isfinite()
    assert slope.isfinite().all()
    assert slope.any()


def test_mixed_precision_training_keeps_relations_in_single_precision():
    states, other = normal(19, 8).bfloat16(), normal(19, 8, seed=1).bfloat16()
    exact = relation_kl(other.float(), states.float(), layout_of(LENGTHS), 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = relation_kl(other.requires_grad_(), states, layout_of(LENGTHS), 2)
        hidden = hidden_mse(other, states)
    assert found.dtype == hidden.dtype == torch.float32
    torch.testing.assert_close(found, exact)
    torch.testing.assert_close(hidden, hidden_mse(other.float(), states.float()))
    assert torch.autograd.grad(found, other)[0].dtype == torch.bfloat16


def test_relations_that_cannot_be_cut_are_refused():
    layout = layout_of(LENGTHS)
    with pytest.raises(ValueError, match=r"student \[19, 8\]; must be \[19 tokens, a multiple of 3"):
        relation_kl(normal(19, 8), normal(19, 9), layout, 3)
    with pytest.raises(ValueError, match=r"teacher \[18, 9\]"):
        relation_kl(normal(19, 9), normal(18, 9), layout, 3)


def test_hidden_mse_is_the_share_of_variance_missed():
    teacher = normal(50, 6) * torch.tensor([1.0, 2, 3, 4, 5, 6]) + 10
    student = normal(50, 6, seed=1)
    expected = ((student - teacher) ** 2).sum() / ((teacher - teacher.mean(0)) ** 2).sum()
    torch.testing.assert_close(hidden_mse(student, teacher), expected)
    mean = teacher.mean(0, keepdim=True).expand_as(teacher)
    torch.testing.assert_close(hidden_mse(mean, teacher), torch.tensor(1.0, dtype=torch.float64))
    assert hidden_mse(teacher, teacher) == 0


def test_layers_weigh_alike_however_large_their_states_or_their_constants():
    teacher, error = normal(50, 6), 0.3 * normal(50, 6, seed=1)
    loss = hidden_mse(teacher + error, teacher)
    constant = torch.tensor([0, 0, 500.0, 0, 0, 0], dtype=torch.float64)  # as encoders have them
    # Beyond the floor: the constant's square must not make the variance look like nothing.
    torch.testing.assert_close(hidden_mse(1e4 * (teacher + error), 1e4 * teacher), loss)
    near = constant / 50
    torch.testing.assert_close(hidden_mse(teacher + error + near, teacher + near), loss)
    assert hidden_mse(teacher + error + constant, teacher + constant) < loss


def test_states_that_do_not_vary_do_not_blow_up():
    one = torch.ones(1, 6, requires_grad=True)
    loss = hidden_mse(one, torch.full((1, 6), 2.0))
    assert loss.item() == pytest.approx(1 / (4 * 1e-3))
    assert torch.autograd.grad(loss, one)[0].isfinite().all()
    assert hidden_mse(torch.zeros(3, 6), torch.zeros(3, 6)) == 0


def test_states_of_other_widths_are_refused():
    with pytest.raises(ValueError, match=r"student \[60, 6\], teacher \[60, 12\]; .* need a projection"):
        hidden_mse(normal(60, 6), normal(60, 12))


@pytest.mark.parametrize("loss", [hidden_mse, hidden_cosine])
def test_token_weights_choose_tokens(loss):
    student, teacher = normal(20, 6).requires_grad_(), normal(20, 6, seed=1)
    weights = torch.zeros(20)
    weights[4:9] = 0.5
    found = loss(student, teacher, weights=weights)
    torch.testing.assert_close(found, loss(student[4:9], teacher[4:9]))
    slope = torch.autograd.grad(found, student)[0]
    assert not slope[:4].any()
    assert not slope[9:].any()
    assert slope[4:9].all()


def test_hidden_cosine_looks_at_directions():
    teacher = normal(20, 6)
    scale = normal(20, 1, seed=1).abs() + 0.1
    torch.testing.assert_close(hidden_cosine(teacher * scale, teacher), torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(hidden_cosine(-teacher, teacher), torch.full((), 2.0, dtype=torch.float64))
    student = normal(20, 6, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: hidden_cosine(s, teacher), (student,))
    assert torch.autograd.gradcheck(lambda s: hidden_mse(s, teacher), (student,))


@pytest.mark.parametrize("loss", [hidden_mse, hidden_cosine, lambda s, t: relation_kl(s, t, layout_of(LENGTHS), 2)])
def test_losses_fall_as_the_student_moves_to_its_teacher(loss):
    start, teacher = normal(19, 8), normal(19, 8, seed=1)
    values = torch.stack([loss(start + share * (teacher - start), teacher) for share in torch.linspace(0, 1, 6)])
    assert (values.diff() < 0).all()
    torch.testing.assert_close(values[-1], torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0)
