"""The laws that every pass keeps, parametrized over one table."""

from __future__ import annotations

import itertools
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import compressor.passes  # noqa: F401  # fills the registry
from compressor.errors import InputError
from compressor.passes import NeedError, PlanError, Supply
from compressor.passes.contract import DATA_NEEDS
from compressor.ranker.history import StageRecord
from compressor.ranker.ranker import Ranker
from compressor.ranker.store import load_ranker, save_ranker
from compressor.recipe import parse_recipe
from compressor.registry import registered
from tests.laws.cases import CASES
from tests.laws.forbidden import FORBIDDEN, FORBIDDEN_BY_HISTORY
from tests.laws.more_cases import MORE_CASES

VERBS = sorted(CASES)
ROWS = {**CASES, **MORE_CASES}


def verb_of(row):
    return row.split()[0]


def make(row, settings):
    return registered()[verb_of(row)].model_validate(settings)


def supply_for(step, data, teacher, seed=12):
    scratch = Path("scratch") / uuid.uuid4().hex  # tests run in a folder of their own
    return Supply(
        granted=step.needs(), load=lambda need: data, seed=seed, scratch=scratch, load_teacher=lambda: teacher
    )


def apply(verb, settings, ranker, data):
    return run(make(verb, settings), ranker, data)


def run(step, ranker, data):
    """Return what a pass makes of a ranker, with the history that the pipeline would write."""
    supply = supply_for(step, data, ranker)
    result = step.apply(ranker, supply)
    record = StageRecord(verb=step.verb, settings=step.model_dump(mode="json"), notes=supply.notes)
    return result.changed(history=(*ranker.history, record))


def ready_for(ranker, data, *rows):
    """Return the ranker, or the one that a pass needs, behind the passes without which some passes make no sense."""
    ranker = next((make_one() for row in rows if (make_one := ROWS[row].ranker)), ranker)
    for verb in dict.fromkeys(ROWS[row].behind for row in rows if ROWS[row].behind):
        ranker = apply(verb, ROWS[verb].active, ranker, data)
    return ranker


def test_every_pass_has_a_row():
    assert set(registered()) == set(CASES)


@pytest.mark.parametrize("row", sorted(ROWS))
@pytest.mark.parametrize("which", ["neutral", "active"])
def test_law_1_settings_survive_yaml(row, which):
    step = make(row, getattr(ROWS[row], which))
    settings = {verb_of(row): getattr(ROWS[row], which)}
    recipe = parse_recipe({"teacher": "packaged", "passes": [settings]}, registered(), "r")
    again = parse_recipe(yaml.safe_load(recipe.dump_yaml()), registered(), "r")
    assert recipe.passes == (step,)
    assert again == recipe
    assert again.passes == recipe.passes


@pytest.mark.parametrize("row", sorted(ROWS))
def test_law_1_unknown_keys_are_refused_with_a_suggestion(row):
    with pytest.raises(InputError, match="did you mean"):
        parse_recipe({"teacher": "packaged", "passes": [{verb_of(row): ROWS[row].mistyped}]}, registered(), "r")


@pytest.mark.parametrize("row", sorted(ROWS))
def test_law_2_the_neutral_setting_changes_no_score(row, tiny_ranker, tiny_pairs, tiny_data):
    before = ready_for(tiny_ranker, tiny_data, row)
    result = apply(row, ROWS[row].neutral, before, tiny_data)
    np.testing.assert_array_equal(result.score(tiny_pairs), before.score(tiny_pairs))


@pytest.mark.parametrize("row", sorted(ROWS))
def test_law_2_the_active_setting_changes_scores(row, tiny_ranker, tiny_pairs, tiny_data):
    before = ready_for(tiny_ranker, tiny_data, row)
    result = apply(row, ROWS[row].active, before, tiny_data)
    change = np.abs(result.score(tiny_pairs) - before.score(tiny_pairs)).max()
    assert (change <= ROWS[row].exact_atol[0]) if ROWS[row].no_change else (change > 1e-6)
    assert result.fingerprint != before.fingerprint


@pytest.mark.parametrize("row", sorted(ROWS))
def test_law_3_save_and_load_give_equal_scores(row, tiny_ranker, tiny_pairs, tiny_data, tmp_path):
    result = apply(row, ROWS[row].active, ready_for(tiny_ranker, tiny_data, row), tiny_data)
    save_ranker(result, tmp_path / "stage")
    loaded = load_ranker(tmp_path / "stage")
    assert loaded.fingerprint == result.fingerprint
    np.testing.assert_array_equal(loaded.score(tiny_pairs), result.score(tiny_pairs))


@pytest.mark.parametrize("row", sorted(ROWS))
def test_law_4_batch_mates_do_not_change_a_score(row, tiny_ranker, tiny_pairs, tiny_data):
    result = apply(row, ROWS[row].active, ready_for(tiny_ranker, tiny_data, row), tiny_data)
    alone = np.concatenate([result.score([pair]) for pair in tiny_pairs])
    together = result.score(tiny_pairs, batch_tokens=100_000)
    np.testing.assert_allclose(alone, together, atol=ROWS[row].batch_atol[0], rtol=0)


@pytest.mark.parametrize("row", sorted(ROWS))
def test_law_5_promises_hold_and_can_be_broken(row, tiny_ranker, tiny_data):
    step = make(row, ROWS[row].active)
    before = ready_for(tiny_ranker, tiny_data, row)
    result = step.apply(before, supply_for(step, tiny_data, before))
    promises = step.promises(result)
    if ROWS[row].no_promise:
        assert not promises
        return
    assert promises
    assert [promise.check(result) for promise in promises] == [None] * len(promises)
    assert any(promise.check(before) for promise in promises), "a promise that was kept before says nothing"


_RESULTS: dict[tuple[str, str], Ranker] = {}


def result_of(verb, before, data):
    """What a pass makes of a ranker, made once: by law 6, it is the same every time, and no later pass changes it."""
    key = (verb, before.fingerprint)
    if key not in _RESULTS:
        _RESULTS[key] = run(make(verb, CASES[verb].active), before, data)
    return _RESULTS[key]


@pytest.mark.parametrize(("first", "second"), list(itertools.product(VERBS, VERBS)))
def test_law_5_promises_survive_every_later_pass(first, second, tiny_ranker, tiny_data):
    earlier = make(first, CASES[first].active)
    later = make(second, CASES[second].active if first != second else CASES[second].neutral)
    before = ready_for(tiny_ranker, tiny_data, first, second)
    result = result_of(first, before, tiny_data)
    if (first, second) in FORBIDDEN:
        with pytest.raises(PlanError) as refused:
            later.plan(result.spec)
        assert FORBIDDEN[first, second] in refused.value.fix
        return
    is_shallower = len(result.spec.layers) < len(before.spec.layers)
    if (first == second or is_shallower) and CASES[second].again:
        later = make(second, CASES[second].again)
    supply = supply_for(later, tiny_data, tiny_ranker)
    if (first, second) in FORBIDDEN_BY_HISTORY:
        with pytest.raises(InputError, match=FORBIDDEN_BY_HISTORY[first, second]):
            later.apply(result, supply)
        return
    final = later.apply(result, supply)
    assert [promise.check(final) for promise in earlier.promises(result)] == [None] * len(earlier.promises(result))


@pytest.mark.parametrize("row", sorted(ROWS))
def test_law_6_the_teacher_is_untouched_and_the_result_repeatable(row, tiny_ranker, tiny_data):
    ranker = ready_for(tiny_ranker, tiny_data, row)
    before, state = ranker.changed().fingerprint, torch.get_rng_state()
    first = apply(row, ROWS[row].active, ranker, tiny_data)
    second = apply(row, ROWS[row].active, ranker, tiny_data)
    assert ranker.changed().fingerprint == before
    assert first.fingerprint == second.fingerprint
    assert torch.equal(torch.get_rng_state(), state), "the pass disturbed the global random state"
    assert not ranker.module.training


@pytest.mark.parametrize("row", sorted(ROWS))
def test_law_7_masked_equals_cut(row, tiny_ranker, tiny_pairs, tiny_data):
    case = ROWS[row]
    if case.masked is None:
        assert case.no_mask
        return
    whole = ready_for(tiny_ranker, tiny_data, row)
    cut = apply(row, case.active, whole, tiny_data)
    np.testing.assert_allclose(cut.score(tiny_pairs), case.masked(whole, tiny_pairs), atol=1e-4, rtol=0)
    assert sum(t.numel() for t in cut.weights.values()) < sum(t.numel() for t in tiny_ranker.weights.values())


@pytest.mark.parametrize("row", sorted(ROWS))
@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_law_8_onnx_agrees_with_torch(row, dialect, tiny_ranker, tiny_pairs, tiny_data):
    import onnxruntime as ort

    from compressor.export import write_graph
    from compressor.runtime.batching import padded
    from compressor.runtime.session import session_options

    result = apply(row, ROWS[row].active, ready_for(tiny_ranker, tiny_data, row), tiny_data)
    model = write_graph(result.spec, result.weights, dialect=dialect)
    session = ort.InferenceSession(model.SerializeToString(), session_options(2), providers=["CPUExecutionProvider"])
    encoded = result.tokenizer.encode_pairs(tiny_pairs)
    inputs = padded(encoded, np.arange(len(tiny_pairs)), result.spec.pad_id)
    fed = {each.name: inputs[each.name] for each in session.get_inputs()}  # one segment alone is no input
    scores = session.run(["logits"], fed)[0][:, 0]
    expected = result.score(tiny_pairs, batch_tokens=1_000_000)
    atol, _ = ROWS[row].export_atol
    np.testing.assert_allclose(scores, expected, atol=atol, rtol=0)
    order, wanted = np.argsort(-scores, kind="stable"), np.argsort(-expected, kind="stable")
    swapped = order != wanted
    assert (np.abs(expected[order] - expected[wanted])[swapped] <= 2 * atol).all(), "order differs beyond near ties"


@pytest.mark.parametrize("row", sorted(ROWS))
def test_law_9_an_undeclared_need_raises(row, tiny_ranker, tiny_data):
    step = make(row, ROWS[row].active)
    supply = supply_for(step, tiny_data, tiny_ranker)
    for need in set(DATA_NEEDS) - step.needs():
        with pytest.raises(NeedError, match=f"asked for {need} data"):
            supply.data(need)
