"""`rankpress pack` and `rankpress unpack` at the command line."""

from __future__ import annotations

import sys

import pytest

import cli
from compressor.export import export_folder


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
def packed(run, tiny_ranker, tmp_path):
    """Return a ranker's folder and its pack."""
    export_folder(tiny_ranker, tmp_path / "model", manifest={}, int8_companion=False)
    assert run("pack", "model", "--out", "ranker.pack")[0] == 0
    return tmp_path / "model", tmp_path / "ranker.pack"


def test_what_was_packed_comes_back_and_may_replace_a_ranker(run, packed, tmp_path):
    folder, pack = packed
    for _ in range(2):
        code, out, _ = run("unpack", pack, "--out", "again")
        assert code == 0
        assert "files" in out
    for path in folder.rglob("*.*"):
        assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes(), path


def test_a_folder_with_other_things_in_it_is_left_alone(run, packed, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    code, _, err = run("unpack", packed[1], "--out", "mine")
    assert code == 3
    assert "other things in it (thesis.txt)" in err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_values_that_do_not_exist_are_refused(run, packed, tmp_path):
    code, _, err = run("pack", "model", "--out", "other.pack", "--values", "int9")
    assert code == 3
    assert "--values: found 'int9'; allowed: exact, float16, int8" in err
    assert not (tmp_path / "other.pack").exists()
