"""Bad input at the command line: exit code 3, one clear sentence, and nothing written."""

from __future__ import annotations

import json
import sys

import pytest

import cli


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command in a folder of its own; return exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def _run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rankpress", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out = capsys.readouterr()
        return left.value.code, out.out, out.err

    return _run


@pytest.fixture
def beir(tmp_path):
    """A small collection that is in order."""
    folder = tmp_path / "small"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{i}", "title": "", "text": f"text number {i} about stones"} for i in range(4)]
    queries = [{"_id": f"q{i}", "text": f"number {i}"} for i in range(2)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    (folder / "queries.jsonl").write_text("".join(json.dumps(one) + "\n" for one in queries))
    for split in ("test", "train"):
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t1\n")
    return folder


TEACHERLESS = "teacher: no/such/folder\n"

FLAGS = [
    (["compres", "r.yaml"], "No such command 'compres'"),
    (["compress"], "Missing argument 'RECIPE'"),
    (["compress", "absent.yaml"], "absent.yaml: found no such file"),
    (["compress", "absent.yaml", "--outt", "x"], "No such option: --outt"),
    (["validate"], "Missing argument 'RECIPE...'"),
    (["bench", "folder"], "Missing option '--data'"),
    (["bench", "folder", "--data", "api-docs/test", "--candidates", "0"], "Invalid value for '--candidates'"),
    (["bench", "folder", "--data", "api-docs/test", "--rounds", "x"], "Invalid value for '--rounds'"),
    (["bench", "folder", "--data", "api-docs/test", "--threads", "two"], "--threads: found"),
    (["bench", "folder", "--data", "api-docs/test", "--threads", "0"], "--threads: found"),
    (["bench", "folder", "--data", "api-docs/test", "--threads", "1,1"], "threads names a value twice: 1, 1"),
    (["bench", "folder", "--data", "api-docs/test", "--measures", "n DCG"], "--measures: found"),
    (["bench", "folder", "--data", "api-docs/tset"], "did you mean 'test'?"),
    (["bench", "folder", "--data", "api-dosc/test"], "did you mean 'api-docs'?"),
    (["bench", "folder", "--data", "no/such/collection"], "no collection at"),
    (["bench", "folder", "--data", ""], "command line: --data: found ''; String should have at least 1 character"),
    (["bench", "no-such-folder", "--data", "api-docs/tset"], "no-such-folder: found no such folder"),
    (["bench", "no-such-folder", "--data", "api-docs/tset"], "did you mean 'test'?"),
    (["bench", "empty-folder", "--data", "api-docs/tset"], "empty-folder: found no ONNX file"),
    (
        ["bench", "folder", "--data", "api-docs/tset", "--out", "other.json"],
        "other.json: found a file; allowed: a folder",
    ),
    (["bench", "folder", "--data", "api-docs/tset", "--measures", "nope@10"], "--measures: nope@10: found no measure"),
    (["gate"], "Missing argument 'REPORT'"),
    (["gate", "absent.json", "--max-loss", "nDCG@10=1%"], "absent.json: found no such file"),
    (["gate", "broken.json", "--max-loss", "nDCG@10=1%"], "broken.json: line 1: found broken JSON"),
    (["gate", "other.json", "--max-loss", "nDCG@10=1%"], "is it a rankpress report at all?"),
    (["rank"], "Missing argument 'FOLDER'"),
    (["rank", "no-such-folder"], "no-such-folder: found no such folder"),
    (["rank", "empty-folder"], "empty-folder"),
    (["rank", "empty-folder", "--top-k", "0"], "Invalid value for '--top-k'"),
    (["rank", "empty-folder", "--format", "xml"], "xml"),
    (["rank", "empty-folder", "--output", "other.json/run.trec"], "other.json: found a file; allowed: a folder"),
    (["gate", "other.json"], "command line: found no limits; allowed: --max-loss"),
    (["gate", "other.json", "--max-loss", "nDCG@10"], "--max-loss: found 'nDCG@10'; allowed: MEASURE=MARGIN"),
    (["gate", "other.json", "--max-size-mb", "big"], "Invalid value for '--max-size-mb'"),
    (["gate", "other.json", "--min-speedup", "stock_onnx_fp32=0"], "--min-speedup stock_onnx_fp32: found '0'"),
]


@pytest.mark.parametrize(("arguments", "message"), FLAGS, ids=[" ".join(a) for a, _ in FLAGS])
def test_flags_and_paths(run, tmp_path, arguments, message):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "empty-folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    code, _, err = run(*arguments)
    assert code == 3, err
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before, "bad input left something behind"


RECIPES = [
    (TEACHERLESS, "teacher"),
    ("teacher: packagedd\n", "packagedd"),
    ("teacher: packaged\npasses: [{drop_layers: {keep: [0, 12]}}]\n", "allowed: ascending layer indices from 0 to 11"),
    ("teacher: packaged\npasses: [{drop_layers: {keep: [3, 1]}}]\n", "allowed: ascending layer indices from 0 to 11"),
    (
        "teacher: packaged\ndata: {calibration: small/train}\npasses: [{drop_layers: {keep: {layers: 13}}}]\n",
        "passes.0.drop_layers.keep.layers: found 13 layers to keep of a ranker that has 12",
    ),
    ("teacher: packaged\npasses: [{drop_layers: {keep: every_other}}]\n", "add to data: 'calibration: COLLECTION"),
    (
        "teacher: packaged\npasses: [{drop_layers: {keep: {layers: 6}, compensate: none}}]\n",
        "add to data: 'calibration: COLLECTION",
    ),
    ("teacher: packaged\npasses: [quantize, {drop_layers: {keep: every_other}}]\n", "put drop_layers before quantize"),
    ("teacher: packaged\ngate: {max_loss: {nDCG@10: 1%}}\n", "gate: found a gate, and no data.test to decide it on"),
    ("teacher: packaged\ndata: {test: small/tset}\n", "did you mean"),
    ("teacher: packaged\ndata: {test: smal/test}\n", "did you mean"),
    ("teacher: packaged\ndata: {test: {collection: small, split: test, candidates: absent.trec}}\n", "absent.trec"),
    ("teacher: packaged\ndata: {train: small/train, test: small/test}\n", "q0"),
    ("teacher: packaged\ndata: {test: small/test}\ngate: {max_loss: {nDCG@10: 2}}\n", "did you mean '2%'?"),
    ("teacher: packaged\ndata: {test: small/test}\ngate: {min_speed: {x: 2}}\n", "did you mean 'min_speedup'?"),
    ("teacher: packaged\ndata: {tests: small/test}\n", "did you mean 'test'?"),
    ("teacher: packaged\ndata: {test: [{colection: small}]}\n", "did you mean 'collection'?"),
]  # fmt: skip


@pytest.mark.packaged
@pytest.mark.parametrize(("text", "message"), RECIPES, ids=range(len(RECIPES)))
@pytest.mark.parametrize("command", ["compress"])
def test_recipes(run, tmp_path, beir, packaged_teacher, text, message, command):
    (tmp_path / "r.yaml").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    code, _, err = run(command, "r.yaml", "--out", "made")
    assert code == 3, err
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before, "bad input left something behind"


@pytest.mark.packaged
def test_an_output_folder_with_other_things_is_left_alone(run, tmp_path, beir, packaged_teacher):
    (tmp_path / "r.yaml").write_text("teacher: packaged\ndata: {test: small/test}\n")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    code, _, err = run("compress", "r.yaml", "--out", "precious")
    assert code == 3
    assert "found a folder with other things in it (thesis.txt)" in err
    code, _, err = run("compress", "r.yaml", "--out", "precious/thesis.txt")
    assert code == 3
    assert "precious/thesis.txt: found a file" in err
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"
    assert len(list((tmp_path / "precious").iterdir())) == 1


@pytest.mark.packaged
@pytest.mark.parametrize(("reference", "message"), [("small/nope", "no split 'nope'"), ("small", "write small/test")])
def test_validate_sees_a_missing_split(run, tmp_path, beir, packaged_teacher, reference, message):
    (tmp_path / "r.yaml").write_text(f"teacher: packaged\ndata: {{test: {reference}}}\n")
    code, _, err = run("validate", "r.yaml")
    assert code == 3
    assert message in err
    assert "test" in err


def test_all_recipes_are_judged_before_validate_gives_up(run, tmp_path):
    for name in ("one.yaml", "two.yaml"):
        (tmp_path / name).write_text("passes: []")
    code, _, err = run("validate", "one.yaml", "two.yaml")
    assert code == 3
    assert err.count("teacher: found nothing") == 2


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left on device", "runs/x")])
def test_interruptions_and_full_disks_are_no_tracebacks(run, monkeypatch, interruption):
    def fail(*arguments):
        raise interruption

    monkeypatch.setattr("compressor.commands.validate", fail)
    code, _, err = run("validate", "r.yaml")
    assert (code, err.strip().splitlines()[-1]) == (
        (130, "interrupted; a compress run continues where it stopped when started again")
        if interruption is KeyboardInterrupt
        else (4, "error: runs/x: No space left on device")
    )


def test_help_and_version_are_not_errors(run):
    assert run("--help")[0] == 0
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("rankpress ")


def test_passes_are_listed(run):
    code, out, _ = run("passes")
    assert code == 0
    assert "drop_layers" in out
    assert "scheme" in out


def test_a_missing_extra_is_named_with_its_install_command(run, tmp_path, monkeypatch):
    (tmp_path / "r.yaml").write_text("teacher: packaged\n")

    def absent(*arguments):
        raise ModuleNotFoundError("No module named 'safetensors'", name="safetensors")

    monkeypatch.setattr("compressor.prepare.prepare", absent)
    code, _, err = run("compress", "r.yaml")
    assert code == 3
    assert "needs the package safetensors, which is not installed; pip install 'rankpress[compress]'" in err


def test_a_defect_is_not_mistaken_for_a_failed_gate(run, tmp_path, monkeypatch):
    monkeypatch.setattr("compressor.prepare.prepare", lambda *arguments: 1 / 0)
    code, _, err = run("compress", "r.yaml")
    assert code == 4
    assert "ZeroDivisionError" in err
