"""TSV and JSONL pairs: what they become, and what is wrong with them."""

from __future__ import annotations

import pytest

from compressor.data import load_data
from compressor.data.pair_files import read_pairs
from compressor.data_reference import DataReference
from compressor.errors import InputError

TSV = "query\tdocument\tlabel\ncats\tCats sleep.\t1\ndogs\tDogs bark.\t0\ncats\tDogs bark.\t0\n"
JSONL = """\
{"query": "cats", "document": "Cats sleep.", "label": 1}
{"query": "dogs", "document": "Dogs bark.", "label": 0, "source": "me"}
{"query": "cats", "document": "Dogs bark.", "label": 0}
"""

FAULTS = [
    ("p.tsv", "only one\n", "line 1: found 1 columns; allowed: query, document[, label], with tabs between"),
    ("p.tsv", "a\tb\t1\nc\td\n", "line 2: found no label; allowed: labels on all pairs or on none"),
    ("p.tsv", "a\tb\nc\td\t1\n", "line 2: found the label '1'; allowed: labels on all pairs or on none"),
    ("p.tsv", "a\tb\tyes\n", "line 1: found the label 'yes'; allowed: a whole number"),
    ("p.tsv", "a\t\n", "line 1: found an empty document; remove the line"),
    ("p.tsv", "\tb\n", "line 1: found an empty query; remove the line"),
    ("p.tsv", "a\tb\na\tc\na\tb\n", "line 3: found a pair again: 'a'; it stands in line 1 already"),
    ("p.tsv", "query\tdocument\n", "found an empty file; allowed: one pair a line"),
    ("p.jsonl", '{"query": "a"}\n', "line 1: found no key 'document' among 'query'"),
    ("p.jsonl", '{"query": 1, "document": "b"}\n', "line 1: found 'query' is 1; allowed: a string; put it in quotes"),
    (
        "p.jsonl",
        '{"query": "a", "document": "b", "label": true}\n',
        "line 1: found the label True; allowed: a whole number",
    ),
    ("p.jsonl", '{"query": "a"\n', "line 1: found broken JSON"),
]


def test_the_two_forms_say_the_same(tmp_path):
    (tmp_path / "p.tsv").write_text(TSV, encoding="utf-8")
    (tmp_path / "p.jsonl").write_text(JSONL, encoding="utf-8")
    tsv, jsonl = read_pairs(tmp_path / "p.tsv"), read_pairs(tmp_path / "p.jsonl")
    assert tsv.fingerprint == jsonl.fingerprint
    assert tsv.name == "p.tsv"
    assert tsv.texts(tsv.pairs()) == [("cats", "Cats sleep."), ("cats", "Dogs bark."), ("dogs", "Dogs bark.")]
    assert [list(grades.values()) for grades in tsv.qrels.values()] == [[1, 0], [0]]


def test_pairs_without_labels_are_unlabelled_data(tmp_path):
    (tmp_path / "p.tsv").write_text("cats\tCats sleep.\n", encoding="utf-8")
    data = load_data(DataReference.model_validate({"pairs": "p.tsv"}), base=tmp_path)
    assert data.qrels == {}
    assert data.texts(data.pairs()) == [("cats", "Cats sleep.")]


def test_a_sample_of_pairs_keeps_only_the_documents_it_needs(tmp_path):
    (tmp_path / "p.tsv").write_text(TSV, encoding="utf-8")
    reference = DataReference.model_validate({"pairs": "p.tsv", "queries": 1})
    data = load_data(reference, base=tmp_path)
    assert list(data.queries) == list(data.candidates) == list(data.qrels)
    assert len(data.queries) == 1
    assert set(data.documents) == {document for _, document in data.pairs()}


@pytest.mark.parametrize(("name", "content", "message"), FAULTS, ids=[fault[2][:40] for fault in FAULTS])
def test_faults(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_pairs(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: {message}")
