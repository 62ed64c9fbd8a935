from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from compressor.gate_settings import BenchSettings, GateSettings, parse_margin


def test_margins_are_shares_or_amounts():
    assert parse_margin("1%").absolute(0.7) == pytest.approx(0.007)
    assert parse_margin(0.005).absolute(0.7) == 0.005
    assert parse_margin("0.005").absolute(0.7) == 0.005


@pytest.mark.parametrize(
    ("margin", "message"),
    [
        (1, "outside 0 to 1 .*; did you mean '1%'"),
        ("2.5", "did you mean '2.5%'"),
        ("-1%", "outside 0 to 1"),
        ("100%", "outside 0 to 1"),
        ("one percent", "is not a margin; write '1%'"),
        (0, "cannot be shown on a sample"),
        ("0%", "cannot be shown on a sample"),
        ("nan", "outside 0 to 1"),
    ],
)
def test_margins_that_cannot_be_meant_are_refused(margin, message):
    with pytest.raises(ValidationError, match=message):
        GateSettings.model_validate({"max_loss": {"nDCG@10": margin}})


@pytest.mark.parametrize(
    "settings",
    [
        {"max_loss": {"nDCG @10": "1%"}},
        {"max_loss": {"nDCG@0": "1%"}},
        {"min_agreement": {"pearson": 0.9}},
        {"min_agreement": {"kendall_tau": 1.2}},
        {"min_speedup": {"stock_onnx_fp32": -2}},
        {"min_queries": 1},
        {"confidence": 95},
        {"max_losses": {}},
    ],
)
def test_faulty_gates_are_refused(settings):
    with pytest.raises(ValidationError):
        GateSettings.model_validate(settings)


@pytest.mark.parametrize(
    "settings", [{"threads": []}, {"threads": [0]}, {"threads": [1, 1]}, {"measures": ["AP", "AP"]}, {"rounds": 0}]
)
def test_faulty_benches_are_refused(settings):
    with pytest.raises(ValidationError):
        BenchSettings.model_validate(settings)


def test_settings_survive_yaml():
    gate = GateSettings.model_validate(yaml.safe_load("{max_loss: {nDCG@10: 1%, RR(rel=2)@10: 0.01}, max_size_mb: 40}"))
    bench = BenchSettings(threads=(1, 4), measures=("AP",))
    for settings in (gate, bench):
        text = yaml.safe_dump(settings.model_dump(mode="json"))
        assert type(settings).model_validate(yaml.safe_load(text)) == settings


def test_an_empty_gate_knows_it():
    assert GateSettings().is_empty
    assert not GateSettings(max_size_mb=4).is_empty
    assert not GateSettings(max_score_rmse=0.1).is_empty
