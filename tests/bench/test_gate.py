from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from compressor.bench.gate import EXIT_CODES, gate_report
from compressor.bench.report import read_report, write_report
from compressor.bench.schema import Report, Verdict
from compressor.errors import InputError
from compressor.gate_settings import GateSettings
from tests.bench.made_report import DATA, made_report, made_row

RNG = np.random.default_rng(0)
TEACHER = RNG.uniform(0.3, 0.9, 200).round(4).tolist()


def lossy(loss: float, sd: float, n: int = 200) -> list[float]:
    noise = np.random.default_rng(1).normal(size=n)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    return [float(value) for value in np.array(TEACHER[:n]) - loss + sd * noise]


def report(values: list[float] | None = None, **row: Any) -> Report:
    values = TEACHER if values is None else values
    teacher = TEACHER[: len(values)]
    return made_report(
        made_row("stock_onnx_fp32", teacher, teacher, kind="baseline"), made_row("model", values, teacher, **row)
    )  # fmt: skip


def gate(found: Report, **settings: Any) -> Verdict:
    return gate_report(found, GateSettings.model_validate(settings))


@pytest.mark.parametrize(
    ("loss", "sd", "verdict"),
    [(0.0, 0.02, "pass"), (0.002, 0.01, "pass"), (0.03, 0.02, "fail"), (0.004, 0.1, "undecided")],
)
def test_losses_have_three_answers(loss, sd, verdict):
    found = gate(report(lossy(loss, sd)), max_loss={"nDCG@10": 0.01})
    assert found.verdict == verdict
    assert EXIT_CODES[found.verdict] == {"pass": 0, "fail": 1, "undecided": 2}[verdict]


def test_the_sentences_say_value_bound_limit_and_queries():
    passed, failed, undecided = (
        gate(report(lossy(loss, sd)), max_loss={"nDCG@10": margin}).checks[0]
        for loss, sd, margin in [(0.002, 0.01, 0.01), (0.03, 0.02, 0.01), (0.004, 0.1, "1%")]
    )
    assert passed.sentence.startswith(f"model: nDCG@10 loss on {DATA} is 0.0020, with 95 % confidence at most 0.003")
    assert passed.sentence.endswith("allowed is at most 0.0100.")
    assert "is 0.0300, with 95 % confidence at least 0.027" in failed.sentence
    assert "(1% of the teacher's 0.6238)" in undecided.sentence
    assert f"200 queries do not decide; about {undecided.n_needed:,} would (80 % power)." in undecided.sentence
    assert undecided.n == 200
    assert (undecided.n_needed or 0) > 200
    assert (passed.bound or 1) < passed.limit == 0.01 < (failed.bound or 0)


def test_a_share_is_of_the_teacher_s_mean():
    check = gate(report(), max_loss={"nDCG@10": "2%"}).checks[0]
    assert check.limit == pytest.approx(0.02 * np.mean(TEACHER))


def test_a_teacher_without_any_quality_leaves_a_share_undecided():
    zeros = [0.0] * 50
    found = made_report(made_row("stock_onnx_fp32", zeros, zeros, kind="baseline"), made_row("model", zeros, zeros))
    assert gate(found, max_loss={"nDCG@10": "1%"}).verdict == "undecided"


def test_identical_rankings_pass_and_few_queries_do_not():
    assert gate(report(), max_loss={"nDCG@10": "0.1%"}).verdict == "pass"
    few = gate(report(TEACHER[:10]), max_loss={"nDCG@10": "1%"})
    assert few.verdict == "undecided"
    assert few.checks[0].sentence.endswith("is 0.0000 on 10 queries, too few to decide anything (20 needed).")
    assert gate(report(TEACHER[:10]), max_loss={"nDCG@10": "1%"}, min_queries=10).verdict == "pass"


@pytest.mark.parametrize(
    ("speed", "noise", "limit", "verdict"),
    [(4.0, 0.02, 3.5, "pass"), (4.0, 0.02, 4.5, "fail"), (4.0, 0.3, 4.0, "undecided"), (4.0, 0.0, 4.0, "pass")],
)
def test_speedups_are_held_to_their_interval_at_every_thread_count(speed, noise, limit, verdict):
    found = gate(report(speed=speed, noise=noise), min_speedup={"stock_onnx_fp32": limit})
    assert [check.verdict for check in found.checks] == [verdict, verdict]
    assert [check.name for check in found.checks] == [
        "speed-up over stock_onnx_fp32, 1 thread", "speed-up over stock_onnx_fp32, 2 threads",
    ]  # fmt: skip


def test_four_timed_queries_bound_no_speedup():
    found = gate(report(speed=9.0, n_timed=4), min_speedup={"stock_onnx_fp32": 2})
    assert found.verdict == "undecided"
    assert "4 timed queries are too few" in found.checks[0].sentence


def test_sizes_agreement_and_score_errors():
    assert gate(report(), max_size_mb=30).verdict == "pass"
    assert gate(report(), max_size_mb=29.9).verdict == "fail"
    assert gate(report(tau=[0.97] * 200), min_agreement={"kendall_tau": 0.97}).verdict == "pass"
    assert gate(report(tau=[0.97] * 200), min_agreement={"kendall_tau": 0.98}).verdict == "fail"
    assert gate(report(), max_score_rmse=0.21).verdict == "pass"
    failed = gate(report(), max_score_rmse=0.19)
    assert failed.verdict == "fail"
    assert failed.checks[0].value == pytest.approx(0.2)
    spread = (0.95 + 0.2 * np.random.default_rng(2).normal(size=200)).tolist()
    assert gate(report(tau=spread), min_agreement={"kendall_tau": 0.95}).verdict == "undecided"


def test_full_agreement_is_broken_by_one_query():
    assert gate(report(), min_agreement={"kendall_tau": 1}).verdict == "pass"
    assert gate(report(tau=[1.0] * 199 + [0.99]), min_agreement={"kendall_tau": 1}).verdict == "fail"


def test_one_failure_outweighs_passes_and_doubts():
    found = gate(
        report(lossy(0.004, 0.1)), max_loss={"nDCG@10": 0.01}, max_size_mb=10, min_agreement={"kendall_tau": 0.9}
    )
    assert [check.verdict for check in found.checks] == ["undecided", "pass", "fail"]
    assert found.sentence == "fail: 3 checks (1 pass, 1 fail, 1 undecided)."


def test_checks_of_one_row_are_corrected_together():
    found = gate(
        report(lossy(0.0, 0.02)), max_loss={"nDCG@10": 0.01}, min_agreement={"kendall_tau": 0.9, "overlap@10": 0.9}
    )
    assert sorted(check.level or 0 for check in found.checks) == pytest.approx([0.05 / 3, 0.05 / 2, 0.05])


def test_unlabelled_data_need_agreement():
    found = report()
    unlabelled = found.model_copy(
        update={"data": {DATA: found.data[DATA].model_copy(update={"judged_ids": []})}}
    )  # fmt: skip
    assert gate(unlabelled, min_agreement={"kendall_tau": 0.9}).verdict == "pass"
    with pytest.raises(InputError, match="max_loss: found a limit on losses, but no data set with judgments"):
        gate(unlabelled, max_loss={"nDCG@10": "1%"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "gate: found no limits; allowed: max_loss, min_speedup"),
        (
            {"max_loss": {"nDGC@10": "1%"}},
            "max_loss: found 'nDGC@10', not in the report; allowed: nDCG@10; did you mean 'nDCG@10'?",
        ),
        (
            {"min_speedup": {"stock_onnx": 2}},
            "min_speedup: found 'stock_onnx', not in the report; allowed: stock_onnx_fp32; did you mean",
        ),
    ],
)  # fmt: skip
def test_what_the_report_cannot_answer_is_bad_input(settings, message):
    with pytest.raises(InputError) as caught:
        gate(report(), **settings)
    assert message in str(caught.value)
    assert caught.value.exit_code == 3


def test_all_faults_come_at_once():
    with pytest.raises(InputError) as caught:
        gate(report(), max_loss={"AP": "1%", "RR": "1%"}, min_speedup={"tensorrt": 2})
    assert len(caught.value.faults) == 3


def test_rows_can_be_chosen():
    found = report()
    assert {
        check.row for check in gate_report(found, GateSettings(max_size_mb=50), rows=["stock_onnx_fp32"]).checks
    } == {"stock_onnx_fp32"}
    with pytest.raises(InputError, match="found 'modle'; allowed: stock_onnx_fp32, model; did you mean 'model'"):
        gate_report(found, GateSettings(max_size_mb=50), rows=["modle"])
    alone = made_report(made_row("stock_onnx_fp32", TEACHER, TEACHER))
    with pytest.raises(InputError, match="found no row to check"):
        gate_report(alone, GateSettings(max_size_mb=50))


def test_a_row_without_a_size_cannot_be_weighed():
    with pytest.raises(InputError, match="max_size_mb: found no size for row 'model'"):
        gate(report(size_bytes=None), max_size_mb=50)


def test_the_file_alone_gives_the_same_verdict(tmp_path):
    found = report(lossy(0.004, 0.05), speed=3.0, noise=0.1, tau=[0.96] * 200)
    settings = {
        "max_loss": {"nDCG@10": "1%"},
        "min_speedup": {"stock_onnx_fp32": 3},
        "min_agreement": {"kendall_tau": 0.95},
    }
    direct = gate(found, **settings)
    write_report(found.model_copy(update={"gate": direct}), tmp_path)
    read = read_report(tmp_path)
    assert gate(read, **settings) == direct == read.gate
    assert json.loads((tmp_path / "report.json").read_text())["gate"]["verdict"] == direct.verdict


def test_an_overlap_that_cannot_be_less_than_one_decides_nothing():
    found = report()
    shallow = found.changed(settings=found.settings.model_copy(update={"candidates": 10}))
    with pytest.raises(InputError, match="overlap@10 over 10 candidates, which share all of their top ten"):
        gate(shallow, min_agreement={"overlap@10": 0.9})
