"""Mixtures of losses in recipes: short forms, round trips, and faults that say what is allowed."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from compressor.algorithms.loss_options import LOSS_OPTIONS
from compressor.recipe_faults import faults_of
from compressor.training.loss_settings import LabelLosses, Representations, TeacherLosses


@pytest.mark.parametrize(("mixture", "target"), [(TeacherLosses, "teacher"), (LabelLosses, "labels")])
def test_every_loss_can_be_named_where_its_targets_are(mixture, target):
    assert set(mixture.model_fields) == {name for name, options in LOSS_OPTIONS.items() if options.target == target}
    every = mixture.model_validate(dict.fromkeys(mixture.model_fields, 0.5))
    assert {name: type(options) for name, options in every.terms()} == {
        n: LOSS_OPTIONS[n] for n in every.model_fields_set
    }


def test_a_number_is_a_weight_and_a_bare_name_weighs_one():
    mixture = TeacherLosses.model_validate({"mse": 0.5, "ranknet": None, "listwise_kl": {"temperature": 2}})
    weights = {name: options.weight for name, options in mixture.terms()}
    assert weights == {"mse": 0.5, "listwise_kl": 1.0, "ranknet": 1.0}


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        (TeacherLosses, {"mse": 0.5, "listwise_kl": {"weight": 2, "temperature": 3}}),
        (LabelLosses, {"gbce_labels": {"pool": 50}}),
        (Representations, {"hidden": {"layers": {0: 1, 1: 3}}, "relations": 1, "embeddings": 0.1}),
        (Representations, {}),
    ],
)
def test_mixtures_survive_yaml_and_hold_only_what_was_named(kind, written):
    mixture = kind.model_validate(written)
    dumped = mixture.model_dump(mode="json")
    assert set(dumped) == set(written)
    assert bool(mixture) is bool(written)
    assert kind.model_validate(yaml.safe_load(yaml.safe_dump(dumped))) == mixture


@pytest.mark.parametrize(
    ("kind", "written", "said"),
    [
        (TeacherLosses, {"mes": 1}, ["mes: found the unknown key 'mes'", "did you mean 'mse'"]),
        (TeacherLosses, {"mse": -1}, ["mse: found -1", "greater than 0"]),
        (TeacherLosses, {"mse": True}, ["mse: found True", "a mapping of weight"]),
        (TeacherLosses, {"listwise_kl": {"temprature": 2}}, ["listwise_kl.temprature", "did you mean 'temperature'"]),
        (TeacherLosses, {"softmax_labels": 1}, ["unknown key 'softmax_labels'"]),
        (
            LabelLosses,
            {"softmax_labels": {"positives": "shared"}},
            ["softmax_labels.positives", "did you mean 'share'"],
        ),
        (
            Representations,
            {"hidden": {"layers": "first"}},
            ["hidden.layers: found 'first'", "'kept', 'uniform' or 'last'"],
        ),
        (Representations, {"relations": {"heads": 0}}, ["relations.heads: found 0", "greater than 0"]),
    ],
)
def test_faults_say_where_and_what_is_allowed(kind, written, said):
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(written)
    text = "\n".join(map(str, faults_of(caught.value, written, kind, "recipe.yaml")))
    for part in said:
        assert part in text
