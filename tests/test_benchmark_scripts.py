"""What the scripts under benchmarks/ share or make."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import peers
import pytest
from long_documents import joined, write
from variants import prepare_variants, read_study

from compressor.data.beir import read_beir
from compressor.errors import InputError

STUDY = "teacher: packaged\ndata: {test: api-docs/test}\nvariants:\n  one: [quantize: {scheme: none}]\n"


def test_neighbors_become_one_text_of_at_most_so_many_words() -> None:
    documents = [("a", "1 2 3"), ("b", "4 5"), ("c", "6"), ("d", "7 8 9 10 11 12 13"), ("e", "14")]
    assert list(joined(documents, 6)) == [
        (["a", "b", "c"], "1 2 3\n4 5\n6"),
        (["d"], "7 8 9 10 11 12 13"),  # longer than allowed, and alone
        (["e"], "14"),
    ]
    assert list(joined([], 6)) == []


def test_a_joined_document_is_as_relevant_as_the_best_of_it(tmp_path: Path) -> None:
    source = tmp_path / "short"
    (source / "qrels").mkdir(parents=True)
    texts = [("a", "T", "one two"), ("b", "T", "three"), ("c", "U", "four"), ("d", "T", "five")]
    records = [json.dumps({"_id": one, "title": title, "text": text}) for one, title, text in texts]
    (source / "corpus.jsonl").write_text("\n".join(records))
    (source / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "which"}))
    (source / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\nq\tb\t2\nq\td\t0\n")
    assert write(source, tmp_path / "long", 100) == (4, 3)
    made = read_beir(tmp_path / "long", "test")
    assert made.documents == {"a": "T one two\nthree", "c": "U four", "d": "T five"}  # other titles stand between
    assert made.qrels == {"q": {"a": 2, "d": 0}}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("teacher: packaged\n", "none"),
        ("variants: [", "no study"),
        (STUDY.replace("one", "teacher"), "teacher"),
        (STUDY + "series: {less: [two]}\n", "two"),
    ],
)
def test_a_broken_study_is_refused(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=found):
        read_study(path)


def test_variants_share_the_folder_of_their_stages_and_leave_no_recipe_behind(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY + "  two: [quantize: {scheme: int8_dynamic}]\n")
    prepared = prepare_variants(path, read_study(path), tmp_path / "out")
    folders = {stage.folder.parent for one in prepared.values() for stage in one.stages}
    assert folders == {tmp_path / "out" / "stages"}
    assert [one.out.name for one in prepared.values()] == ["one", "two"]
    assert prepared["one"].desk is prepared["two"].desk, "what takes minutes to load is loaded once"
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.yaml"]


@pytest.mark.parametrize(("folders", "found"), [("{}", "none"), ("{mine: nowhere}", "no folder .*nowhere")])
def test_peers_want_folders_that_are_there(tmp_path: Path, folders: str, found: str, monkeypatch, capsys) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"{STUDY.split('variants:')[0]}folders: {folders}\n")
    monkeypatch.setattr(sys, "argv", ["peers.py", str(path), "--out", str(tmp_path / "out")])
    assert peers.main() == 3
    assert re.search(rf"study.yaml: folders: found {found}; allowed: exported rankers by name", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
