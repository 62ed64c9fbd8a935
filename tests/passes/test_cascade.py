"""cascade: shares as given or as measured, what is noted of them, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from compressor.algorithms.stage_recall import fewest_items, measure_recall, smallest_shares
from compressor.cascade_stages import Cascade as Stages
from compressor.errors import InputError
from compressor.passes import PlanError, Supply
from compressor.passes.add_exits import AddExits
from compressor.passes.cascade import Cascade
from compressor.passes.cut_at_exit import CutAtExit
from compressor.passes.distill import Distill
from compressor.passes.drop_layers import DropLayers
from compressor.passes.finetune import Finetune
from compressor.passes.quantize import Quantize
from compressor.ranker.cascade import score_stages
from compressor.ranker.spec import SimilarityHead
from tests.passes import students
from tests.passes.students import QUICK, distilled, unlabelled
from tests.ranker.cascades import cascade, cascading, rank_list
from tests.tiny import build_ranker, tiny_layer, tiny_spec

SMALL: dict[str, Any] = {"keep_at_least": 2, "top": 2, "recall": 0.7}


@pytest.fixture(scope="module")
def ranker():
    """A cross-encoder of four layers with exits behind three, and no cascade yet."""
    whole = cascading()
    return whole.changed(spec=whole.spec.changed(cascade=None))


def made(*stages: dict[str, Any], **settings: Any) -> Cascade:
    return Cascade.model_validate({**SMALL, "stages": stages, **settings})


def applied(step: Any, ranker: Any, data: Any = None, notes: dict[str, Any] | None = None) -> Any:
    return students.applied(step, ranker, data, notes)


def refusal(step: Any, ranker: Any) -> PlanError:
    with pytest.raises(PlanError) as caught:
        step.plan(ranker.spec)
    return caught.value


def test_shares_are_used_as_given_and_measured(ranker, tiny_data):
    step = made({"behind": "embeddings", "keep": 0.75}, {"behind": 1, "keep": 0.5})
    notes: dict[str, Any] = {}
    result = applied(step, ranker, tiny_data, notes)
    assert result.spec == step.plan(ranker.spec)
    assert [stage.keep for stage in result.spec.cascade.stages] == [0.75, 0.5]
    assert result.weights == ranker.weights
    kept: list[list[float]] = [[], []]
    hits: list[list[float]] = [[], []]
    for query, documents in tiny_data.candidates.items():
        texts = [tiny_data.documents[one] for one in documents]
        pairs = [(tiny_data.queries[query], text) for text in texts]
        best = set(np.argsort(-ranker.score(pairs), kind="stable")[:2].tolist())
        stages = rank_list(result, tiny_data.queries[query], texts).stages
        for place in (0, 1):
            alive = set(np.flatnonzero(stages > place).tolist())
            kept[place].append(len(alive) / len(texts))
            hits[place].append(len(alive & best) / 2)
    for place, stage in enumerate(notes["stages"]):
        assert stage["kept"] == pytest.approx(np.mean(kept[place]), abs=1e-4)
        assert stage["recall"] == pytest.approx(np.mean(hits[place]), abs=1e-4)
        assert stage["recall_bound"] < stage["recall"]
    assert notes["lists"] == 6
    assert 0.5 < notes["macs_share"] < 1


def test_nothing_is_measured_without_lists(ranker):
    step = made({"behind": 0, "keep": 0.5}, n_lists=0)
    assert step.needs() == frozenset()
    notes: dict[str, Any] = {}
    assert applied(step, ranker, None, notes).spec.cascade.stages[0].keep == 0.5
    assert notes == {}


def lists_of(n_lists, n_candidates, noise, seed=0):
    """Return made scores of one stage and the head: the stage's are the head's with noise."""
    generator = np.random.default_rng(seed)
    final = generator.normal(size=(n_lists, 1, n_candidates))
    early = final + noise * generator.normal(size=final.shape)
    return list(np.concatenate([early, final], axis=1).astype(np.float32))


def shares_of(lists, given=(None,), places=(0,), target=0.95):
    return smallest_shares(lists, places, given, keep_at_least=5, top=5, target=target)


def test_the_smallest_share_that_is_shown_to_do_is_found():
    lists = lists_of(60, 50, noise=0.5)
    (share,) = shares_of(lists)
    assert 0.1 < share < 0.6

    def bound(share):
        return measure_recall(lists, Stages(stages=({"behind": 0, "keep": share},), keep_at_least=5), 5)[0].bound

    assert bound(share) >= 0.95 > bound(round(share - 0.01, 2))
    fresh = measure_recall(lists_of(200, 50, 0.5, seed=1), Stages(stages=({"behind": 0, "keep": share},)), 5)[0]
    assert fresh.mean > 0.94
    assert shares_of(lists_of(60, 50, noise=0.1)) < [share] < shares_of(lists_of(60, 50, noise=2.0))


def test_more_lists_show_more():
    few, many = (np.mean([shares_of(lists_of(n, 50, 0.5, seed))[0] for seed in range(3)]) for n in (8, 60))
    assert many < few
    assert shares_of(lists_of(2, 50, noise=0.0)) == [1.0]  # ten items, none missed: the bound is 0.74
    assert shares_of(lists_of(60, 50, noise=0.0)) == [0.01]  # keep_at_least keeps the best
    assert (fewest_items(0.99), fewest_items(0.95)) == (299, 59)


def test_stages_share_what_may_be_lost_and_never_widen():
    final = np.random.default_rng(3).normal(size=(100, 1, 50))
    noise = np.random.default_rng(4).normal(size=(100, 2, 50)) * [[[0.6], [0.3]]]
    lists = list(np.concatenate([final + noise, final], axis=1).astype(np.float32))
    shares = shares_of(lists, (None, None), (0, 1))
    assert 1 > shares[0] > shares[1]
    made_of = Stages(stages=tuple({"behind": b, "keep": k} for b, k in enumerate(shares)), keep_at_least=5)
    first, second = measure_recall(lists, made_of, 5)
    assert first.bound >= 0.975
    assert second.bound >= 0.95
    given = shares_of(lists, (None, 0.8), (0, 1))
    assert given[0] >= given[1] == 0.8


def test_auto_keeps_the_recall_that_was_asked_for(ranker, tiny_data):
    step = made({"behind": 0}, {"behind": 2})
    notes: dict[str, Any] = {}
    result = applied(step, ranker, tiny_data, notes)
    planned: Any = step.plan(ranker.spec).cascade
    assert [one.keep for one in planned.stages] == [1, 1]
    assert notes["stages"][-1]["recall_bound"] >= 0.7 or notes["stages"][-1]["keep"] == 1
    pairs = [(tiny_data.queries["q1"], tiny_data.documents[one]) for one in tiny_data.candidates["q1"]]
    assert score_stages(result, [0, 2], pairs).shape == (3, 8)
    notes.clear()
    step = made({"behind": 0}, {"behind": 2}, recall=0.5)
    applied(step, of_one_opinion(ranker), tiny_data, notes)
    # Exits that rank as the head does need to keep no more than the best.
    assert [(stage["keep"], stage["kept"], stage["recall"]) for stage in notes["stages"]] == [(0.01, 0.25, 1)] * 2


def of_one_opinion(ranker):
    """Return the ranker with layers that change nothing behind the first, and exits that are copies of the head."""
    weights = dict(ranker.weights)
    for name, tensor in ranker.weights.items():
        _, _, of_exit = name.partition(".exit.")
        if of_exit:
            weights[name] = weights[f"head.{of_exit}"]
        elif "_norm." in name:
            weights[name] = torch.ones_like(tensor) if name.endswith("weight") else torch.zeros_like(tensor)
        elif name.startswith("layers.") and name[7] != "0" and (".output." in name or ".down." in name):
            weights[name] = torch.zeros_like(tensor)
    return ranker.changed(weights=weights)


def test_too_few_lists_to_show_anything_are_refused(ranker, tiny_data):
    longer = replace(tiny_data, candidates={query: [*ids, *ids] for query, ids in tiny_data.candidates.items()})
    step = Cascade.model_validate({"stages": [{"behind": 0}]})
    with pytest.raises(InputError, match=r"6 of 6 lists .* at least 30 to show a recall of 0.99") as few:
        applied(step, ranker, longer)
    assert "name other data.calibration" in str(few.value)
    with pytest.raises(InputError, match="0 of 6 lists that are longer than keep_at_least 9"):
        applied(made({"behind": 0, "keep": 0.5}, keep_at_least=9), ranker, tiny_data)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"stages": []}, "at least 1 item"),
        ({"stages": [{"behind": 1}, {"behind": 0}]}, "order of depth"),
        ({"stages": [{"behind": 0, "keep": 0.3}, {"behind": 1, "keep": 0.5}]}, "none is above the one before"),
        ({"stages": [{"behind": 0, "keep": 0.3}, {"behind": 1}, {"behind": 2, "keep": 0.4}]}, "none is above"),
        ({"stages": [{"behind": 0, "keep": 1.2}]}, "less than or equal to 1"),
        ({"stages": [{"behind": "embedding", "keep": 0.2}]}, "embeddings"),
        ({"stages": [{"behind": 0}], "n_lists": 0}, "n_lists from 1"),
        ({"stages": [{"behind": 0}], "keep_at_least": 5}, "keep_at_least 5 is below top 10"),
        ({"stages": [{"behind": 0}], "candidates": 10}, "candidates 10: keep_at_least 10 would drop none"),
        ({"stages": [{"behind": 0}], "recall": 1}, "less than 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, found):
    with pytest.raises(ValidationError, match=found):
        Cascade.model_validate(settings)


def test_stages_need_exits(ranker):
    plain = build_ranker(tiny_spec(layers=(tiny_layer(),) * 4))
    fault = refusal(made({"behind": 0, "keep": 0.5}), plain)
    assert (fault.found, fault.setting) == ("layer 0, which has no exit", "stages.0.behind")
    assert "put add_exits before cascade" in fault.fix
    assert refusal(made({"behind": 3, "keep": 0.5}), ranker).found == "layer 3, which has no exit"
    fault = refusal(made({"behind": 0, "keep": 0.5}, {"behind": 7, "keep": 0.5}), ranker)
    assert (fault.found, fault.setting) == ("layer 7, of a ranker of 4 layers", "stages.1.behind")
    assert fault.allowed == "the layers with an exit: 0, 1, 2"


def test_a_stage_behind_the_embeddings_needs_segments_and_no_exits(tiny_data):
    plain = build_ranker(tiny_spec())
    step = made({"behind": "embeddings", "keep": 0.5})
    assert applied(step, plain, tiny_data).spec.cascade is not None
    embeddings: Any = plain.spec.embeddings
    one = plain.spec.changed(embeddings=embeddings.changed(segments=embeddings.segments.changed(rows=1)))
    assert "all of one segment" in refusal(step, build_ranker(one)).found
    from tests.tiny import tokenizer_files

    blind = plain.changed(tokenizer_files=tokenizer_files(document_segment=0))
    with pytest.raises(InputError, match="puts query and document into one segment"):
        applied(step, blind, tiny_data)


def test_bi_encoders_and_second_cascades_are_refused(ranker):
    step = made({"behind": 0, "keep": 0.5}, n_lists=0)
    assert "bi-encoder" in refusal(step, build_ranker(tiny_spec(head=SimilarityHead(pool="mean")))).found
    assert "a ranker that has a cascade" in refusal(step, applied(step, ranker)).found


def test_quantized_rankers_cascade_and_a_cascade_survives_rounding(ranker, tiny_data):
    step = made({"behind": 0, "keep": 0.5})
    behind = applied(step, applied(Quantize(scheme="int8_dynamic"), ranker), tiny_data)
    before = applied(Quantize(scheme="int8_dynamic"), applied(step, ranker, tiny_data))
    assert behind.spec == before.spec
    (promise,) = step.promises(behind)
    assert promise.check(before) is None
    assert promise.check(ranker) == "the cascade None"


def test_layers_do_not_go_from_under_a_cascade(ranker):
    result = applied(made({"behind": 1, "keep": 0.5}, n_lists=0), ranker)
    for step in (DropLayers(keep=(0, 1, 3), compensate="none"), CutAtExit(layer=1)):
        assert "before cascade" in refusal(step, result).fix
    assert CutAtExit(layer=3).plan(result.spec) == result.spec
    assert DropLayers(keep=(0, 1, 2, 3), compensate="none").plan(result.spec) == result.spec
    assert AddExits(layers=(0, 1, 2)).plan(result.spec) == result.spec


def test_exits_learn_to_keep_the_best(tiny_data):
    teacher = cascading(cascade({"behind": 0, "keep": 1}), seed=5, layers=(tiny_layer(),) * 2)
    teacher = teacher.changed(spec=teacher.spec.changed(cascade=None))
    data, found = unlabelled(tiny_data), {}
    settings: dict[str, Any] = {"losses": {"mse": 1}, "representations": {}, "lists": {"list_size": 8}, "epochs": 20}
    supplies: list[Supply] = []
    for name, losses in (("without", {}), ("with", {"keep_top": {"top": 0.25, "keep": 0.375}})):
        trained = distilled(
            teacher, teacher.without_exits(), data, supplies.append, **settings, exit_losses=losses
        )  # fmt: skip
        notes: dict[str, Any] = {}
        applied(made({"behind": 0, "keep": 0.375}), trained, tiny_data, notes)
        found[name] = notes["stages"][0]["recall"]
    steps = [value for _, value in supplies[-1].curves["loss/exits"]]
    assert np.mean(steps[-6:]) < 0.6 * np.mean(steps[:6])
    assert found["with"] > found["without"]


def test_exit_losses_need_exits_and_lists(ranker):
    step = Distill.model_validate({**QUICK, "exit_losses": {"keep_top": 1}})
    assert step.plan(ranker.spec) == ranker.spec
    assert "no exits" in refusal(step, build_ranker()).found
    assert "a weight of 0" in refusal(step.changed(exits=0), ranker).found
    single: dict[str, Any] = {"losses": {"bce_labels": 1}, "lists": {"list_size": 1}}
    labelled = Finetune.model_validate({"exit_losses": {"keep_top": 1}, **single})
    assert refusal(labelled, ranker).setting == "exit_losses.keep_top"
