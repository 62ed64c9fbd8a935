"""Settings of adapters: what makes no sense on a shape or in a pass, and what a recipe may not say."""

from __future__ import annotations

import json
from typing import Any

import pytest

import compressor.passes  # noqa: F401  # fills the registry
from compressor.errors import InputError
from compressor.passes import Pass, PlanError
from compressor.passes.adapter_settings import LoraSettings, RandLoraSettings
from compressor.passes.distill import Distill
from compressor.passes.factorize import Factorize
from compressor.passes.finetune import Finetune
from compressor.passes.quantize import Quantize
from compressor.passes.sparsify import Sparsify
from compressor.recipe import parse_recipe
from compressor.registry import registered
from tests import tiny
from tests.laws.cases import CASES

LORA: dict[str, Any] = {"kind": "lora", "rank": 4}
RANDLORA: dict[str, Any] = {"kind": "randlora", "rank": 4}


@pytest.fixture(scope="module")
def teacher():
    return tiny.build_ranker(seed=3)


def step_of(adapters: dict[str, Any]) -> Distill:
    return Distill.model_validate({"adapters": adapters})


@pytest.mark.parametrize("verb", ["dense_sparse", "learn_factors", "sparsify"])
def test_passes_that_write_into_matrices_refuse_adapters(verb, teacher):
    gradual: dict[str, Any] = {"gradual": {}} if verb == "sparsify" else {}
    step = registered()[verb].model_validate({**CASES[verb].active, **gradual, "adapters": LORA})
    assert isinstance(step, Pass)
    with pytest.raises(PlanError, match=f"adapters in {verb}") as refused:
        step.plan(teacher.spec)
    assert refused.value.setting == "adapters"
    assert "put distill with adapters behind" in refused.value.fix


def test_sparsify_at_once_trains_no_adapters(teacher):
    with pytest.raises(PlanError, match="a setting of training, where nothing is trained"):
        Sparsify(method="magnitude", sparsity=0.5, adapters=LoraSettings()).plan(teacher.spec)


FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({**LORA, "rank": 16}, "adapters.rank", "512 parameters beside the 256 of layers.0.attention.query"),
    ({**RANDLORA, "rank": 1, "linears": "attention"}, "adapters.rank", "272 parameters beside the 256 of layers.0"),
    ({**LORA, "linears": ["layers.*.ffn.upp"]}, "adapters.linears", "'layers.*.ffn.upp', which names no linear"),
]


@pytest.mark.parametrize(("adapters", "setting", "found"), FAULTS)
def test_adapters_that_make_no_sense_on_a_shape_are_refused(adapters, setting, found, teacher):
    with pytest.raises(PlanError) as refused:
        step_of(adapters).plan(teacher.spec)
    assert refused.value.setting == setting
    assert found in refused.value.found


def test_adapters_without_a_matrix_and_dropout_behind_rounding_are_refused(teacher):
    thin = Factorize(rank=4, method="svd", compensate="none").plan(teacher.spec)
    with pytest.raises(PlanError, match="all of them factorized already"):
        step_of(LORA).plan(thin)
    rounded = Quantize(scheme="int8_dynamic").plan(teacher.spec)
    with pytest.raises(PlanError, match=r"dropout of adapters beside layers\.0\.attention\.query in int8_dynamic"):
        step_of({**LORA, "dropout": 0.1}).plan(rounded)
    step_of(LORA).plan(rounded)


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        ({"kind": "dora"}, "dora"),
        ({"rank": 8}, "kind"),
        ({"kind": "lora", "rank": 0}, "greater than 0"),
        ({"kind": "lora", "alfa": 3}, "did you mean 'alpha'"),
        ({"kind": "lora", "dropout": 1}, "less than 1"),
        ({"kind": "lora", "bases": "dense"}, "unknown key 'bases'"),
        ({"kind": "lora", "also": ["norm"]}, "did you mean 'norms'"),
        ({"kind": "randlora", "bases": "ternary"}, "dense"),
    ],
)
def test_bad_settings_are_refused_in_words(adapters, words):
    with pytest.raises(InputError) as refused:
        parse_recipe({"teacher": "packaged", "passes": [{"distill": {"adapters": adapters}}]}, registered(), "r")
    assert "passes.0.distill.adapters" in str(refused.value)
    assert words in str(refused.value)


def test_settings_come_back_from_a_recipe():
    for adapters in (LORA, {**RANDLORA, "alpha": 3, "bases": "very_sparse", "also": ["head"]}):
        step = Finetune.model_validate({"adapters": adapters})
        assert Finetune.model_validate(json.loads(step.model_dump_json())) == step
    assert Finetune.model_validate({"adapters": {"kind": "randlora"}}).adapters == RandLoraSettings(kind="randlora")
