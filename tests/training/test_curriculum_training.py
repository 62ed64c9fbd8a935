"""A curriculum in training: progress by steps, weights of lists and not of batches, the same after a kill."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compressor.algorithms.curriculum import curriculum_weights
from compressor.algorithms.loss_options import LOSS_OPTIONS
from compressor.training.batches import ListSource
from compressor.training.loop import train
from compressor.training.objective import Objective
from compressor.training.steps import StepPlan
from tests.tiny import build_data, build_ranker
from tests.training.test_loop import SETTINGS, KilledError, equal

RUNS = {
    "bm25": {query: found[:5] for query, found in build_data().candidates.items()},
    "dense.trec": {query: found[3:] for query, found in build_data().candidates.items()},
}
LISTS = {
    "list_size": 4, "sources": {"bm25": 2, "dense.trec": 1, "random": 1}, "curriculum": "reciprocal_rank",
    "curriculum_share": 0.5,
}  # fmt: skip
EASY = SETTINGS.changed(lists=LISTS, evaluate_every=None)
OBJECTIVE = Objective(scores=[("mse", LOSS_OPTIONS["mse"]())])


def source_of(settings, teacher, ranker, **changes):
    data = replace(build_data(), qrels={}, runs=RUNS)
    return ListSource(
        data=data, tokenizer=ranker.tokenizer, settings=settings.lists, seed=1,
        targets=lambda pairs: teacher.score(data.texts(pairs)), **changes,
    )  # fmt: skip


@pytest.fixture
def parts():
    return build_ranker(seed=5), build_ranker(seed=0)


def run(folder, parts, settings=EASY, loss=OBJECTIVE):
    teacher, ranker = parts
    return train(ranker.trainable(), source_of(settings, teacher, ranker), loss, settings, scratch=folder, seed=7)


def test_progress_grows_with_the_steps_to_its_share_of_the_training(parts):
    plan = StepPlan(source=source_of(EASY, *parts), settings=EASY, seed=7)
    n_steps = plan.count()
    steps = list(plan.after(0, n_steps))
    found = [{one.progress for one in lists} for lists in steps]
    assert n_steps >= 6
    assert found[0] == {0.0}
    assert found == [{min(1.0, step / (n_steps / 2))} for step in range(n_steps)]
    assert list(plan.after(3, n_steps)) == steps[3:], "a resumed training sees what an unbroken one does"
    plain = EASY.changed(lists={**LISTS, "curriculum": None})
    plan = StepPlan(source=source_of(plain, *parts), settings=plain, seed=7)
    assert {one.progress for lists in plan.after(0, n_steps) for one in lists} == {1.0}


def test_each_list_of_a_batch_is_weighed_by_itself(parts):
    teacher, ranker = parts
    source = source_of(EASY, teacher, ranker)
    lists = [replace(one, progress=0.0) for one in source.lists(0)[:6]]
    encoded = source.encode(lists)
    batch = source.batch(lists, encoded, torch.arange(sum(len(one.documents) for one in lists)).numpy())
    assert batch.targets is not None
    assert batch.closeness is not None
    weights = curriculum_weights(batch.targets, batch.closeness, batch.mask, batch.progress)
    assert weights.unique().numel() > 2
    assert ((weights > 0) & (weights < 1)).all()
    module = ranker.trainable().eval()
    weighed = OBJECTIVE(module, batch)["mse"]
    each = [
        OBJECTIVE(module, source.batch([one], source.encode([one]), torch.arange(len(one.documents)).numpy()))["mse"]
        for one in lists
    ]
    torch.testing.assert_close(weighed, torch.stack(each).mean(), rtol=1e-4, atol=1e-6)
    over = replace(batch, progress=torch.ones(len(lists)))
    plain = replace(batch, closeness=None)
    torch.testing.assert_close(OBJECTIVE(module, over)["mse"], OBJECTIVE(module, plain)["mse"])
    assert weighed < OBJECTIVE(module, plain)["mse"]


def test_labels_order_lists_where_no_teacher_is_asked(parts):
    _, ranker = parts
    data = replace(build_data(), runs=RUNS)
    source = ListSource(data=data, tokenizer=ranker.tokenizer, settings=EASY.lists, seed=1, by_positive=True)
    lists = [replace(one, progress=0.0) for one in source.lists(0)]
    batch = source.batch(lists, source.encode(lists), torch.arange(sum(len(one.documents) for one in lists)).numpy())
    objective = Objective(labels=[("softmax_labels", LOSS_OPTIONS["softmax_labels"]())])
    module = ranker.trainable().eval()
    plain = objective(module, replace(batch, closeness=None))["softmax_labels"]
    assert objective(module, batch)["softmax_labels"] < plain


@pytest.mark.parametrize("last_step", [1, 3, 5])
def test_a_killed_training_goes_on_to_the_same_bits(parts, tmp_path, last_step):
    whole = run(tmp_path / "whole", parts)
    calls = 0

    def killing(module, batch):
        nonlocal calls
        calls += 1
        if calls > last_step:
            raise KilledError
        return OBJECTIVE(module, batch)

    with pytest.raises(KilledError):
        run(tmp_path / "cut", parts, loss=killing)
    resumed = run(tmp_path / "cut", parts)
    assert equal(resumed.weights, whole.weights)
    assert resumed.curves == whole.curves
    plain = run(tmp_path / "plain", parts, EASY.changed(lists={**LISTS, "curriculum": None}))
    assert not equal(plain.weights, whole.weights)
