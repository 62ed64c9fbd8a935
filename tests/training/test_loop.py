"""The loop learns, splits steps without changing them, resumes to the bit, and stops for stated reasons."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from compressor.errors import RunError
from compressor.training.batches import ListSource
from compressor.training.checkpoint import load_checkpoint
from compressor.training.curves import MAX_POINTS, BestOnDev, CurveBook
from compressor.training.loop import train
from compressor.training.optimizer import MovingAverage, learning_rate
from compressor.training.settings import TrainingSettings
from compressor.training.steps import micro_batches, plan_steps
from tests.tiny import build_data, build_ranker

SETTINGS = TrainingSettings(
    epochs=3, lists={"list_size": 4}, lists_per_step=3, learning_rate=3e-3, precision="fp32", checkpoint_every_s=1e-9
)


@pytest.fixture
def teacher():
    return build_ranker(seed=5)


def source_of(teacher, settings, ranker):
    data = replace(build_data(), qrels={})
    return ListSource(
        data=data, tokenizer=ranker.tokenizer, settings=settings.lists, seed=1,
        targets=lambda pairs: teacher.score(data.texts(pairs)),
    )  # fmt: skip


def squared(module, batch):
    gaps = (batch.listed(module(**batch.inputs)) - batch.targets).masked_fill(~batch.mask, 0)
    return {"mse": (gaps.square().sum(dim=1) / batch.mask.sum(dim=1) * batch.weights).mean()}


def run(teacher, tmp_path, settings=SETTINGS, loss=squared, ranker=None, **more):
    ranker = ranker or build_ranker(seed=0)
    return train(
        ranker.trainable(), source_of(teacher, settings, ranker), loss, settings, scratch=tmp_path / "s", seed=7, **more
    )


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_training_brings_scores_nearer_to_the_teacher(teacher, tmp_path):
    ranker, data = build_ranker(seed=0), build_data()
    result = run(teacher, tmp_path, SETTINGS.changed(epochs=15))
    pairs = data.texts(data.pairs())
    wanted = teacher.score(pairs)
    before = np.square(ranker.score(pairs) - wanted).mean()
    after = np.square(ranker.changed(weights=result.weights).score(pairs) - wanted).mean()
    assert after < before / 4
    assert result.pairs == result.steps * 12 == 15 * 48
    assert result.curves["loss"][-1][0] == result.pairs
    assert result.curves["loss"] == result.curves["loss/mse"]


class KilledError(Exception):
    pass


@pytest.mark.parametrize("last_step", [1, 4, 7])
@pytest.mark.parametrize("changes", [{}, {"dropout": True, "ema": 0.9}])
def test_a_killed_run_goes_on_to_the_same_bits(teacher, tmp_path, last_step, changes):
    settings = SETTINGS.changed(**changes, evaluate_every=2, patience=50)

    def dev(module):
        return float(module.head.output.bias.detach())

    whole = run(teacher, tmp_path / "whole", settings, evaluate=dev)
    calls = 0

    def killing(module, batch):
        nonlocal calls
        calls += 1
        if calls > last_step:
            raise KilledError
        return squared(module, batch)

    with pytest.raises(KilledError):
        run(teacher, tmp_path / "cut", settings, loss=killing, evaluate=dev)
    resumed = run(teacher, tmp_path / "cut", settings, evaluate=dev)
    assert equal(resumed.weights, whole.weights)
    assert resumed.curves == whole.curves
    again = run(teacher, tmp_path / "cut", settings, evaluate=dev)  # nothing is left to do
    assert equal(again.weights, whole.weights)
    assert again.seconds > resumed.seconds / 2  # the time of processes before this one counts


def test_a_checkpoint_of_another_training_is_not_used(teacher, tmp_path):
    run(teacher, tmp_path)
    other = SETTINGS.changed(learning_rate=1e-3)
    assert equal(run(teacher, tmp_path, other).weights, run(teacher, tmp_path / "fresh", other).weights)


def test_a_broken_checkpoint_costs_time_and_not_the_run(teacher, tmp_path):
    whole = run(teacher, tmp_path)
    (tmp_path / "s" / "checkpoint" / "state.safetensors").write_bytes(b"broken")
    assert load_checkpoint(tmp_path / "s", "any") is None
    assert equal(run(teacher, tmp_path).weights, whole.weights)


@pytest.mark.parametrize("batch_tokens", [1, 60, 100_000])
def test_micro_batches_do_not_change_the_step(teacher, tmp_path, batch_tokens):
    settings = SETTINGS.changed(epochs=1)
    whole = run(teacher, tmp_path / "whole", settings)
    split = run(teacher, tmp_path / "split", settings.changed(batch_tokens=batch_tokens))
    for name, weight in whole.weights.items():
        if name.endswith("key.bias"):
            continue  # softmax cancels it: its gradient is rounding noise, which Adam scales up to full steps
        torch.testing.assert_close(split.weights[name], weight, rtol=0, atol=1e-4)


def test_gradient_checkpointing_changes_memory_alone(teacher, tmp_path):
    plain = run(teacher, tmp_path / "plain", SETTINGS.changed(epochs=1, dropout=True))
    saving = run(teacher, tmp_path / "saving", SETTINGS.changed(epochs=1, dropout=True, gradient_checkpointing=True))
    for name, weight in plain.weights.items():
        torch.testing.assert_close(saving.weights[name], weight, rtol=0, atol=1e-5)


def test_a_loss_that_breaks_is_named_before_it_spoils_weights(teacher, tmp_path):
    def broken(module, batch):
        return {**squared(module, batch), "odd": module(**batch.inputs).sum() * math.nan}

    with pytest.raises(RunError, match=r"the loss 'odd' is nan at step 1: lower learning_rate"):
        run(teacher, tmp_path, loss=broken)


def test_promises_are_restored_after_each_step(teacher, tmp_path):
    ranker = build_ranker(seed=0)
    name = "layers.0.ffn.up.weight"
    mask = (torch.rand(ranker.weights[name].shape, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    ranker = ranker.changed(weights={**ranker.weights, name: ranker.weights[name] * mask})

    def restore(module):
        with torch.no_grad():
            module.get_parameter(name).mul_(mask)

    result = run(teacher, tmp_path, ranker=ranker, after_step=restore)
    assert (result.weights[name][mask == 0] == 0).all()
    assert not torch.equal(result.weights[name], ranker.weights[name])


def test_dev_data_choose_the_weights_and_end_training(teacher, tmp_path):
    values = iter([0.1, 0.5, 0.4, 0.3, 0.2])
    seen = []

    def dev(module):
        seen.append({name: weight.clone() for name, weight in module.state_dict().items()})
        return next(values)

    result = run(teacher, tmp_path, SETTINGS.changed(evaluate_every=1, patience=2), evaluate=dev)
    assert result.stopped_early
    assert result.steps == 4
    assert equal(result.weights, seen[1])
    assert [y for _, y in result.curves["dev/nDCG@10"]] == [0.1, 0.5, 0.4, 0.3]


def test_bf16_learns_too_and_keeps_fp32_weights(teacher, tmp_path):
    result = run(teacher, tmp_path, SETTINGS.changed(precision="bf16", epochs=10))
    assert {weight.dtype for weight in result.weights.values()} == {torch.float32}
    assert result.curves["loss"][-1][1] < result.curves["loss"][0][1] / 2


def test_no_epochs_train_nothing(teacher, tmp_path):
    result = run(teacher, tmp_path, SETTINGS.changed(epochs=0))
    assert equal(result.weights, dict(build_ranker(seed=0).weights))
    assert result.steps == 0


def test_max_pairs_ends_training(teacher, tmp_path):
    assert run(teacher, tmp_path, SETTINGS.changed(max_pairs=30)).steps == 3


def test_steps_hold_every_list_once_and_lists_of_like_length():
    lengths = list(np.random.default_rng(0).integers(10, 500, 640))
    steps = plan_steps(lengths, 8, seed=1, epoch=0)
    assert sorted(one for step in steps for one in step) == list(range(640))
    spread = np.mean([np.ptp([lengths[one] for one in step]) for step in steps])
    assert spread < np.ptp(lengths) / 8
    assert steps == plan_steps(lengths, 8, seed=1, epoch=0) != plan_steps(lengths, 8, seed=1, epoch=1)
    assert plan_steps([3, 4], 8, seed=1, epoch=0) in ([[0, 1]], [[1, 0]])


def test_micro_batches_hold_whole_lists_under_the_budget():
    draw = np.random.default_rng(0)
    lengths = [draw.integers(5, 60, draw.integers(1, 9)) for _ in range(40)]
    groups = micro_batches(lengths, 500)
    assert sorted(one for group in groups for one in group) == list(range(40))
    for group in groups:
        tokens = sum(len(lengths[one]) for one in group) * max(lengths[one].max() for one in group)
        assert tokens <= 500 or len(group) == 1


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_learning_rates(schedule, middle):
    settings = TrainingSettings(schedule=schedule, warmup_share=0.1, learning_rate=1.0)
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1
    assert rates[55] == pytest.approx(middle)
    assert all(rate > 0 for rate in rates)


def test_moving_average_ends_where_weights_stay():
    average = MovingAverage(0.9, {"w": torch.zeros(1)})
    for step in range(1, 200):
        average.update({"w": torch.ones(1)}, step)
    assert average.weights["w"].item() == pytest.approx(1)


def test_curves_are_thinned_and_the_best_is_kept():
    book = CurveBook()
    for step in range(1000):
        book.record(step, {"loss": float(step)})
    assert len(book.thinned()["loss"]) <= MAX_POINTS
    assert book.thinned()["loss"][0] == (4.0, 2.0)
    best = BestOnDev(patience=None)
    best.take(0.2, {"w": torch.ones(1)})
    best.take(0.1, {"w": torch.zeros(1)})
    assert best.weights["w"].item() == 1
    assert not best.is_over
