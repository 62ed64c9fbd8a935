"""The pass that merges adapters: where it may stand, what stored results depend on, and what history keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compressor.errors import InputError
from compressor.passes import PlanError
from compressor.passes.add_exits import AddExits
from compressor.passes.merge_adapters import MergeAdapters
from compressor.passes.quantize import Quantize
from compressor.pipeline import check_recipe
from compressor.ranker.history import StageRecord
from compressor.recipe import parse_recipe
from compressor.registry import registered
from tests.families.adapter_folders import PEFT_PREFIX, Drawn, adapted, lora_config, low_rank, write_adapter
from tests.passes.students import applied
from tests.tiny import tiny_spec

QUERY = "bert.encoder.layer.0.attention.self.query"


def lora(folder, seed=0, n_layers=1, **config):
    draw = Drawn(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(n_layers):
        own = f"{PEFT_PREFIX}{QUERY.replace('.0.', f'.{layer}.')}.lora_"
        tensors |= {f"{own}A.weight": draw(3, 16), f"{own}B.weight": draw(16, 3)}
    return write_adapter(folder, tensors, lora_config(**config)), list(tensors.values())


def merging(*folders):
    return MergeAdapters(adapters=tuple(map(str, folders)))


def test_two_adapters_add_up_and_history_says_what_they_were(tiny_ranker, tiny_pairs, tmp_path):
    (first, one), (second, other) = lora(tmp_path / "a", base_model_name_or_path="org/base"), lora(tmp_path / "b", 1)
    module = tiny_ranker.changed().module
    beside = [low_rank(down, up, scaling=2.0) for down, up in (one, other)]
    forwards = {"layers.0.attention.query": lambda m, x, y: beside[1](m, x, beside[0](m, x, y))}
    untouched = tiny_ranker.changed()
    with adapted(module, forwards):
        object.__setattr__(untouched, "module", module)  # scores with the adapters beside the weights
        expected = untouched.score(tiny_pairs)
    notes: dict[str, Any] = {}
    result = applied(merging(first, second), tiny_ranker, notes=notes)
    np.testing.assert_allclose(result.score(tiny_pairs), expected, atol=1e-5, rtol=0)
    assert np.abs(expected - tiny_ranker.score(tiny_pairs)).max() > 1e-3
    assert notes["adapters"] == [
        {"kind": "LoRA", "base": "org/base", "changed_tensors": 1},
        {"kind": "LoRA", "base": "some/folder", "changed_tensors": 1},
    ]
    assert result.spec == tiny_ranker.spec
    twice = applied(merging(second), applied(merging(first), tiny_ranker))
    assert twice.fingerprint == result.fingerprint


def test_paths_start_from_the_recipe_and_results_depend_on_content(tmp_path):
    lora(tmp_path / "recipes" / "lora")
    step = MergeAdapters(adapters=("lora",)).placed(tmp_path / "recipes")
    assert step.adapters == (str(tmp_path / "recipes" / "lora"),)
    before = dict(step.fingerprints())
    assert list(before) == list(step.adapters)
    lora(tmp_path / "recipes" / "lora", lora_alpha=7)
    after_config = dict(step.fingerprints())
    lora(tmp_path / "recipes" / "lora", seed=1, lora_alpha=7)
    assert len({*before.values(), *after_config.values(), *step.fingerprints().values()}) == 3
    with pytest.raises(InputError, match="no such folder"):
        MergeAdapters(adapters=("nowhere",)).fingerprints()


def test_plans_tell_all_that_does_not_fit(tmp_path):
    (deep, _), (wide, _) = lora(tmp_path / "deep", n_layers=4), lora(tmp_path / "wide")
    draw = Drawn()
    own = f"{PEFT_PREFIX}{QUERY}.lora_"
    write_adapter(wide, {f"{own}A.weight": draw(3, 20), f"{own}B.weight": draw(16, 3)}, lora_config())
    with pytest.raises(PlanError) as refused:
        merging(deep, wide).plan(tiny_spec())
    assert refused.value.setting == "adapters"
    assert "bert.encoder.layer.{2, 3}.attention.self.query" in refused.value.found
    assert f"{wide}: {QUERY}.weight: found down is [3, 20]" in refused.value.found
    with pytest.raises(PlanError, match="no such folder"):
        merging(tmp_path / "nowhere").plan(tiny_spec())


def test_what_adapters_never_knew_is_refused(tmp_path):
    folder, _ = lora(tmp_path)
    with pytest.raises(PlanError) as refused:
        merging(folder).plan(AddExits(layers=(0,)).plan(tiny_spec()))
    assert refused.value.fix == "put merge_adapters before add_exits"
    with pytest.raises(PlanError, match="a quantized ranker"):
        merging(folder).plan(Quantize(scheme="int8_dynamic").plan(tiny_spec()))


def checked(passes, tmp_path):
    recipe = parse_recipe(
        {"teacher": "packaged", "passes": passes, "data": {"calibration": "api-docs/train"}}, registered(), "recipe"
    )
    return check_recipe(recipe, tiny_spec(), tmp_path / "recipe.yaml")


def test_recipes_that_change_weights_first_are_refused_before_anything_runs(tmp_path):
    merge = {"merge_adapters": {"adapters": [str(lora(tmp_path / "lora")[0])]}}
    calibrate: dict[str, Any] = {"calibrate_scores": {}}
    start = {"start_from": {"checkpoint": "self", "head": "new"}}
    assert len(checked([start, merge, merge, calibrate], tmp_path)) == 5
    with pytest.raises(InputError) as refused:
        checked([start, calibrate, merge], tmp_path)
    (fault,) = refused.value.faults
    assert fault.where == "passes.2.merge_adapters"
    assert "behind calibrate_scores, which changes them" in fault.found
    assert fault.fix == "put merge_adapters before calibrate_scores"
    # A shape that still fits says nothing: the first layer of two is gone, and the adapter is one for a first layer.
    with pytest.raises(InputError, match="put merge_adapters before drop_layers"):
        checked([{"drop_layers": {"keep": [1]}}, merge], tmp_path)


@pytest.mark.parametrize(
    ("base", "records", "said"),
    [
        ("org/other", [("import", {"teacher": "org/base"})], "found org/other, and the ranker is org/base"),
        ("org/other", [("import", {"teacher": "org/other@main"})], ""),
        ("org/other", [("import", {"teacher": "org/x"}), ("start_from", {"checkpoint": "org/other"})], ""),
        ("org/x", [("import", {"teacher": "org/x"}), ("start_from", {"checkpoint": "self"})], ""),
        ("org/x", [("import", {"teacher": "org/x"}), ("start_from", {"checkpoint": "org/y"})], "the ranker is org/y"),
        ("/home/them/base", [("import", {"teacher": "org/base"})], ""),
        ("org/other", [("import", {"teacher": "packaged"})], ""),
        (None, [("import", {"teacher": "org/base"})], ""),
    ],
)
def test_another_hub_model_is_refused(tiny_ranker, tmp_path, base, records, said):
    folder, _ = lora(tmp_path / "lora", base_model_name_or_path=base)
    history = tuple(StageRecord(verb=verb, settings=settings) for verb, settings in records)
    ranker = tiny_ranker.changed(history=history)
    if not said:
        assert not torch.equal(
            applied(merging(folder), ranker).weights["layers.0.attention.query.weight"],
            ranker.weights["layers.0.attention.query.weight"],
        )
        return
    with pytest.raises(InputError, match=said):
        applied(merging(folder), ranker)
