"""A distilled student comes nearer to its teacher, with every loss, alone or mixed, and only where it may change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from compressor.algorithms.loss_options import LOSS_OPTIONS
from compressor.passes import PlanError
from compressor.passes.distill import Distill
from compressor.ranker.sparsity import sparsified
from compressor.ranker.spec import LinearSpec, NormSpec, TableSpec
from tests import tiny
from tests.passes.students import QUICK, cut, distilled, score_rmse, supply_for, unlabelled

ON_TEACHER = sorted(name for name, options in LOSS_OPTIONS.items() if options.target == "teacher")
ON_LABELS = sorted(name for name, options in LOSS_OPTIONS.items() if options.target == "labels")


@pytest.fixture(scope="module")
def teacher(tiny_ranker):
    return tiny_ranker


@pytest.fixture(scope="module")
def student(teacher):
    return cut(teacher, [1])


@pytest.fixture(scope="module")
def data(tiny_data):
    return unlabelled(tiny_data)


def curves_of(student, teacher, data, **settings):
    found = {}
    distilled(student, teacher, data, lambda supply: found.update(supply.curves), **settings)
    return found


def falls(points):
    values = [value for _, value in points]
    size = max(1, len(values) // 8)
    return np.mean(values[-size:]) < 0.7 * np.mean(values[:size])


def test_the_default_mixture_brings_a_cut_near_its_teacher(student, teacher, data):
    notes: dict[str, Any] = {}
    result = distilled(student, teacher, data, lambda supply: notes.update(supply.notes))
    assert score_rmse(result, teacher, data) < score_rmse(student, teacher, data) / 5
    assert result.spec == student.spec
    assert notes["layer_maps"] == {"hidden": {0: 1}}
    assert notes["pairs"] == 15 * 48
    assert notes["steps"] == 15 * 4
    assert notes["pairs_per_s"] > 0
    assert set(notes["last"]) >= {"loss", "loss/mse", "loss/listwise_kl", "loss/hidden"}


@pytest.mark.parametrize("name", ON_TEACHER)
def test_each_loss_on_scores_teaches_alone(name, student, teacher, data):
    result = distilled(student, teacher, data, losses={name: 1}, representations={})
    assert agreement(result, teacher, data) > agreement(student, teacher, data) + 0.1


def agreement(ranker, teacher, data):
    """The mean over queries of the share of pairs of documents that both put in the same order."""
    pairs = data.texts(data.pairs())
    scores, wanted = (one.score(pairs).reshape(len(data.queries), -1) for one in (ranker, teacher))
    same = np.sign(scores[:, :, None] - scores[:, None]) == np.sign(wanted[:, :, None] - wanted[:, None])
    return same.mean()


@pytest.mark.parametrize(
    "representations",
    [
        {"hidden": 1},
        {"hidden": {"measure": "cosine"}},
        {"hidden": {"layers": "last"}},
        {"hidden": {"layers": {0: 0}}},
        {"embeddings": 1},
        {"relations": 1},
        {"relations": {"kind": "attention", "layers": "kept"}},
        {"relations": {"heads": 4}},
    ],
)
def test_each_representation_teaches_alone(representations, student, teacher, data):
    noisy = {name: tensor + 0.05 * torch.sign(tensor) for name, tensor in student.weights.items()}
    curves = curves_of(student.changed(weights=noisy), teacher, data, losses={}, representations=representations)
    assert set(curves) == {"loss", f"loss/{next(iter(representations))}", "learning_rate"}
    assert falls(curves["loss"])


def test_weights_scale_their_losses(student, teacher, data):
    mixtures = ({"mse": 1}, {"mse": 3}), ({"hidden": 1}, {"hidden": 0.5})
    scores = [curves_of(student, teacher, data, losses=m, representations={}, epochs=0.25) for m in mixtures[0]]
    states = [curves_of(student, teacher, data, losses={}, representations=m, epochs=0.25) for m in mixtures[1]]
    assert scores[1]["loss"][0][1] == pytest.approx(3 * scores[0]["loss"][0][1])
    assert states[1]["loss"][0][1] == pytest.approx(states[0]["loss"][0][1] / 2)


def test_live_scores_are_the_stored_ones(student, teacher, data):
    both = [
        distilled(student, teacher, data, losses={"mse": 1}, teacher_scores=how, epochs=5) for how in ("live", "stored")
    ]
    pairs = data.texts(data.pairs())
    np.testing.assert_allclose(both[0].score(pairs), both[1].score(pairs), atol=2e-2)  # Adam widens fp32 rounding


def test_teachers_of_other_scales_are_brought_to_the_first_ones(student, teacher, data, tmp_path):
    pairs = data.pairs()
    scores = teacher.score(data.texts(pairs))
    lines = [f"{q} Q0 {d} 1 {100 * score + 7:.6f} other\n" for (q, d), score in zip(pairs, scores, strict=True)]
    (tmp_path / "other.trec").write_text("".join(lines))
    other = {"scores": str(tmp_path / "other.trec")}
    once = {"losses": {"mse": 1}, "representations": {}, "epochs": 0.25}
    alone = curves_of(student, teacher, data, **once, teacher_scores="stored")["loss"][0][1]
    together = curves_of(student, teacher, data, **once, teachers=["self", other], standardize=True)["loss"][0][1]
    assert together == pytest.approx(alone, rel=1e-3)
    plain = curves_of(student, teacher, data, **once, teachers=["self", other])["loss"][0][1]
    assert plain > 10 * alone
    with pytest.raises(PlanError, match="one teacher alone"):
        Distill(standardize=True).plan(student.spec)


def test_live_scores_work_without_states(student, teacher, data):
    result = distilled(student, teacher, data, losses={"mse": 1}, representations={}, teacher_scores="live")
    assert score_rmse(result, teacher, data) < score_rmse(student, teacher, data) / 5


def test_a_narrow_student_learns_states_through_projections(teacher, data):
    spec = narrow_spec()
    narrow = tiny.build_ranker(spec, seed=3)
    settings: dict[str, Any] = {"representations": {"hidden": 1, "embeddings": 1, "relations": {"heads": 2}}}
    curves = curves_of(narrow, teacher, data, **settings)
    assert falls(curves["loss/mse"])
    for name in ("hidden", "embeddings"):  # projections start from least squares: there is less to learn
        values = [value for _, value in curves[f"loss/{name}"]]
        assert np.mean(values[-8:]) < 0.95 * np.mean(values[:8])
    result = distilled(narrow, teacher, data, **settings)
    assert result.weights.keys() == narrow.weights.keys()  # projections are thrown away
    assert score_rmse(result, teacher, data) < 0.6 * score_rmse(narrow, teacher, data)  # 8 wide, it cannot come nearer


def narrow_spec():
    """A ranker of the tiny one's tokens, 8 wide."""
    spec, layer = tiny.tiny_spec(), tiny.tiny_layer()
    square = LinearSpec(inputs=8, outputs=8)
    assert layer.attention
    assert layer.ffn
    attention = layer.attention.changed(head_width=4, query=square, key=square, value=square, output=square)
    ffn = layer.ffn.changed(up=LinearSpec(inputs=8, outputs=32), down=LinearSpec(inputs=32, outputs=8))
    embeddings = spec.embeddings.changed(
        tokens=TableSpec(rows=spec.embeddings.tokens.rows, width=8),
        positions=TableSpec(rows=tiny.MAX_LENGTH, width=8),
        segments=TableSpec(rows=2, width=8),
        norm=NormSpec(epsilon=1e-12),
    )
    head = spec.head.changed(dense=square, output=LinearSpec(inputs=8, outputs=1))
    layers = (layer.changed(attention=attention, ffn=ffn),) * 2
    return spec.changed(width=8, embeddings=embeddings, layers=layers, head=head)


@pytest.mark.parametrize("name", ON_LABELS)
def test_labels_are_mixed_in(name, student, teacher, tiny_data):
    curves = curves_of(student, teacher, tiny_data, labels={name: 5})
    assert {"loss/mse", "loss/hidden", f"loss/{name}"} <= set(curves)
    # Random judgments contradict the teacher, so in the mixture neither need win; alone they are learned.
    alone = curves_of(student, teacher, tiny_data, losses={}, representations={}, labels={name: 1})
    values = [value for _, value in alone[f"loss/{name}"]]
    assert np.mean(values[-15:]) < 0.95 * np.mean(values[:5])


def test_queries_without_judgments_have_no_loss_on_labels(student, teacher, tiny_data):
    judged = replace(tiny_data, qrels={"q1": tiny_data.qrels["q1"]})
    few, all_of_them = (
        curves_of(student, teacher, data, losses={}, representations={}, labels={"softmax_labels": 1}, epochs=1)
        for data in (judged, tiny_data)
    )
    assert 0 < few["loss"][0][1] < all_of_them["loss"][0][1] / 2 or few["loss"][0][1] == 0


def test_phase_two_reads_the_in_domain_collection_alone(student, teacher, data):
    asked = []

    def load(need):
        asked.append(need)
        return data

    step = Distill.model_validate({**QUICK, "epochs": 1, "data": "in_domain"})
    assert step.needs() == {"in_domain", "teacher"}
    step.apply(student, supply_for(step, data, teacher, load=load))
    assert set(asked) == {"in_domain"}


def test_bf16_learns_as_well(student, teacher, data):
    result = distilled(student, teacher, data, precision="bf16")
    assert score_rmse(result, teacher, data) < score_rmse(student, teacher, data) / 4
    assert {tensor.dtype for tensor in result.weights.values()} == {torch.float32}


def test_frozen_embeddings_stay_and_all_else_moves(student, teacher, data):
    result = distilled(student, teacher, data, freeze_embeddings=True, epochs=2)
    moved = {name for name, tensor in result.weights.items() if not torch.equal(tensor, student.weights[name])}
    assert moved == {name for name in student.weights if not name.startswith("embeddings.")}


def test_zeros_of_sparse_matrices_stay_zero(student, teacher, data):
    name = "layers.0.ffn.up.weight"
    holes = torch.rand(student.weights[name].shape, generator=torch.Generator().manual_seed(1)) < 0.5
    loose = student.changed(weights={**student.weights, name: student.weights[name].masked_fill(holes, 0)})
    sparse = loose.changed(spec=sparsified(loose.spec))
    step = Distill.model_validate({**QUICK, "evaluate_every": 4, "dev_measure": "kendall_tau", "ema": 0.9})
    result = step.apply(sparse, supply_for(step, data, teacher))
    assert (result.weights[name][holes] == 0).all()
    assert (result.weights[name][~holes] != sparse.weights[name][~holes]).any()
    assert (step.apply(loose, supply_for(step, data, teacher)).weights[name][holes] != 0).any()


def test_the_seed_decides(student, teacher, data):
    step = Distill.model_validate({**QUICK, "epochs": 2})
    first, same, other = (
        step.apply(student, supply_for(step, data, teacher, seed=seed)).fingerprint for seed in (1, 1, 2)
    )
    assert first == same != other


def test_dev_data_choose_the_weights(student, teacher, tiny_data):
    found: dict[str, Any] = {}
    distilled(
        student, teacher, tiny_data, lambda supply: found.update(supply.curves, notes=supply.notes),
        evaluate_every=3, dev_measure="RR@10", patience=2, learning_rate=0.3,
    )  # fmt: skip
    notes = found["notes"]
    assert notes["best_dev"] == pytest.approx(max(value for _, value in found["dev/RR@10"]), abs=1e-5)
    assert notes["stopped_early"]
    assert notes["steps"] < 60
