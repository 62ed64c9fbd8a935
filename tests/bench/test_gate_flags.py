from __future__ import annotations

import pytest

from compressor.bench.gate_flags import gate_settings_from_flags
from compressor.errors import InputError
from compressor.gate_settings import GateSettings


def test_flags_say_what_yaml_says():
    read = gate_settings_from_flags(
        max_loss=["nDCG@10=1%", "RR(rel=2)@10=0.01"], min_speedup=["stock_onnx_fp32=3"],
        min_agreement=["kendall_tau=0.95"], max_size_mb=40, min_queries=30, max_score_rmse=None,
    )  # fmt: skip
    assert read == GateSettings.model_validate(
        {"max_loss": {"nDCG@10": "1%", "RR(rel=2)@10": "0.01"}, "min_speedup": {"stock_onnx_fp32": 3},
         "min_agreement": {"kendall_tau": 0.95}, "max_size_mb": 40, "min_queries": 30}
    )  # fmt: skip


def test_all_faulty_flags_are_named():
    with pytest.raises(InputError) as caught:
        gate_settings_from_flags(
            max_loss=["nDCG@10", "RR@10=5", "=1%", "AP=1%", "AP=2%"], min_speedup=["stock_onnx_fp32=fast"],
            min_agreement=["pearson=0.9"], max_size_mb=-1,
        )  # fmt: skip
    assert [str(fault) for fault in caught.value.faults] == [
        "command line: --max-loss: found 'nDCG@10'; allowed: MEASURE=MARGIN, such as nDCG@10=1% or RR@10=0.005",
        "command line: --max-loss: found '=1%'; allowed: MEASURE=MARGIN, such as nDCG@10=1% or RR@10=0.005",
        "command line: --max-loss: found 'AP' twice",
        "command line: --max-loss RR@10: found '5'; 5 is outside 0 to 1 (0% to 100%); did you mean '5%'?",
        "command line: --min-speedup stock_onnx_fp32: found 'fast'; allowed: a number",
        "command line: --max-size-mb: found -1; allowed: greater than 0",
        "command line: --min-agreement pearson: found the unknown key 'pearson'; allowed: kendall_tau, overlap@10",
    ]


def test_a_gate_without_limits_is_refused():
    message = (
        "command line: found no limits; allowed: --max-loss, --min-speedup, --min-agreement, --max-size-mb, "
        "--max-score-rmse"
    )
    with pytest.raises(InputError, match=message):
        gate_settings_from_flags()


def test_a_limit_without_end_is_no_limit():
    with pytest.raises(InputError, match="command line: --max-size-mb: found inf; allowed: a finite number"):
        gate_settings_from_flags(max_size_mb=float("inf"))
