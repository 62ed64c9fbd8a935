"""What is wrong with a score file is said with its line, all faults at once; what no format fits is refused."""

from __future__ import annotations

import gzip
import json

import pytest

from compressor.data.score_files import read_scores
from compressor.data.score_formats import SCORE_FORMATS, detect_format
from compressor.errors import InputError
from tests.data.test_score_files import DATA, FILES, MARGINS, PAIRS, written

WRONG_LINES = [
    ("trec", "11 Q0 101 1 7.5", "5 columns; allowed: 6: query id, Q0, document id, rank, score, tag"),
    ("trec", "11 Q0 102 1 high tag", 'the score "high"; allowed: a finite number'),
    ("trec", "11 Q0 102 1 nan tag", 'the score "nan"; allowed: a finite number'),
    ("margin_tsv", "1.5\tx\t11\t101\t102", 'the score of the negative "x"; allowed: a finite number'),
    ("margin_tsv", "1.5\t0.5\t11\t101", "4 columns; allowed: 5: score of the positive, score of the negative, "),
    ("margin_only", "11\t101\t101\t0.5", "a margin between '101' and itself; allowed: two documents"),
    ("margin_only", "11\t101\t103\tinf", 'the margin "inf"; allowed: a finite number'),
    ("id_rows", "11\t\t0.5", "no document id; allowed: 3 columns: query id, document id, score"),
    ("id_rows", "11\t101", "2 columns; allowed: 3: query id, document id, score"),
    ("text_rows", "what do cats do\tCats sleep.", "2 columns; allowed: 3: query, document, score or {query, "),
    ("inranker_tsv", "0.5\t\t11\t101", "no logit of false; allowed: 4 columns: logit of true, logit of false, query"),
    ("colbert_json", "[11, [101, 7.5], 102]", "102 in the list; allowed: [query id, [document id, score], ...]"),
    ("colbert_json", "[11]", "a JSON list; allowed: [query id, [document id, score], ...]"),
    ("colbert_json", '[11, [101, "x"]]', 'the score "x"; allowed: a finite number'),
    ("colbert_json", '[11.5, [101, 1]]', "the id 11.5; allowed: text or a whole number"),
    ("colbert_json", '[11, [101, NaN]]', "the score NaN; allowed: a finite number"),
    ("colbert_json", "[11, [101, 1]", "broken JSON (Expecting ',' delimiter at column 14)"),
    ("colbert_json", '{"a": 1}', "a JSON dict; allowed: [query id, [document id, score], ...]"),
    ("flag_jsonl", '{"query": "a", "pos": ["b"], "neg": []}', "no key 'pos_scores' among 'query', 'pos', 'neg'"),
    (
        "flag_jsonl",
        '{"query": "a", "pos": ["b", "c"], "neg": [], "pos_scores": [1], "neg_scores": []}',
        "2 pos and 1 pos_scores; allowed: as many of the one as of the other",
    ),
    (
        "flag_jsonl",
        '{"query": "a", "pos": ["b"], "neg": "c", "pos_scores": [1], "neg_scores": [1]}',
        "'neg' is \"c\"; allowed: a list",
    ),
    (
        "flag_jsonl",
        '{"query": "a", "pos": [""], "neg": [], "pos_scores": [1], "neg_scores": []}',
        'the text ""; allowed: text that is not empty',
    ),
    (
        "pylate",
        json.dumps({"query_id": 1, "document_ids": "['a', 'b']", "scores": [1, 2]}),
        "'document_ids' is \"['a', 'b']\"; allowed: a list, or a list in JSON as a string",
    ),
    (
        "pylate",
        json.dumps({"query_id": 1, "document_ids": "__import__('os').getcwd()", "scores": [1]}),
        "'document_ids' is \"__import__('os').getcwd()\"; allowed: a list, or a list in JSON",
    ),
    ("pylate", '{"query_id": true, "document_ids": [], "scores": []}', "the id true; allowed: text or a whole number"),
    ("pylate", '{"query_id": 1, "document_ids": [1], "scores": [false]}', "the scores false; allowed: a finite number"),
    ("lightning_jsonl", '{"query_id": "1", "score": 2}', "no key 'doc_id' or 'document_id' or 'passage_id'"),
    ("lightning_jsonl", '{"query_id": "1", "doc_id": "", "score": 2}', 'the id ""; allowed: text or a whole number'),
    ("lightning_jsonl", '["query_id"]', "a JSON list; allowed: {query_id|qid, doc_id|"),
    ("lightning_jsonl", "[" * 100_000, "broken JSON (brackets nested too deep)"),
    (
        "inranker_jsonl",
        '{"query": "a", "contents": "b", "true_logit": 1, "false_logit": null}',
        "the logit of false null; allowed: a finite number",
    ),
    ("text_rows", '{"query": "a", "document": 3, "score": 1}', "the text 3; allowed: text that is not empty"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "line", "message"), WRONG_LINES, ids=[f"{f}: {m[:25]}" for f, _, m in WRONG_LINES])
def test_a_wrong_line_is_named(tmp_path, form, line, message):
    good = {**FILES, **MARGINS}[form]
    path = written(tmp_path, f"{good}\n{line}\n")  # the blank line counts, and is none
    with pytest.raises(InputError) as error:
        read_scores(path, DATA, PAIRS, form)
    assert str(error.value).startswith(f"{path}: line {len(good.splitlines()) + 2}: found {message}")


def test_all_faults_are_named_at_once(tmp_path):
    content = "11 Q0 101 1 x tag\n11 Q0 102 2\n" + FILES["trec"] + "11 Q0 101 1 8.5 tag\n" + "bad line\n" * 30
    path = written(tmp_path, content)
    with pytest.raises(InputError) as error:
        read_scores(path, DATA, PAIRS, "trec")
    said = str(error.value).splitlines()
    assert [text.split(": ")[1] for text in said[:4]] == ["line 1", "line 2", "line 8", "line 9"]
    assert len(said) == 21
    assert said[-1] == f"{path}: found 13 more faults of this collection"


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "scores.tsv"
    path.write_bytes(b"11\t101\t1.5\n11\t10\xff2\t1.5\n")
    with pytest.raises(InputError, match=r"line 2: found bytes that are not UTF-8"):
        read_scores(path, DATA, PAIRS)


UNKNOWN = [
    ("11\t101\n", "lines of 2 columns"),
    ("11 101 1\n11 102 2\n12 103 1\n", "three columns that end with ranks, not scores (a run as MS MARCO has it)"),
    ("11\t0\t101\t1\n", "four columns that may be margins behind or two logits in front"),
    ("1.5\t0.5\t101\t1.5\n", "four columns that may be margins behind or two logits in front"),
    ('{"query": "a", "pos": [], "neg": []}\n', "JSON objects with the keys 'query', 'pos', 'neg'"),
    ("{}\n", "JSON objects with the keys (none)"),
    ("[1, 2, 3]\n", "a JSON list that is not [query id, [document id, score], ...]"),
    ("{'qid': 1}\n", "broken JSON in the first line"),
    ("[" * 100_000, "broken JSON in the first line"),
]


@pytest.mark.parametrize(("content", "found"), UNKNOWN, ids=[found[:30] for _, found in UNKNOWN])
def test_a_file_of_no_known_format_is_refused_with_what_was_looked_for(tmp_path, content, found):
    path = written(tmp_path, content)
    with pytest.raises(InputError) as error:
        read_scores(path, DATA, PAIRS)
    assert str(error.value).startswith(f"{path}: found no known format of scores: {found}")
    assert all(f"{form}: " in str(error.value) for form in SCORE_FORMATS)
    assert str(error.value).endswith("say which with 'format:'")


def test_a_named_format_overrides_what_a_file_looks_like(tmp_path):
    path = written(tmp_path, "11\t101\t1\n11\t102\t2\n11\t103\t3\n")
    assert read_scores(path, DATA, PAIRS, "id_rows").values[:3].tolist() == [1, 2, 3]
    path = written(tmp_path, "11\t101\t102\t2\n")
    assert read_scores(path, DATA, PAIRS, "margin_only").values[:2].tolist() == [1, -1]
    path = written(tmp_path, "2\t1\t11\t101\n")
    assert read_scores(path, DATA, PAIRS, "inranker_tsv").values[0] == 1


@pytest.mark.parametrize(
    ("content", "form"),
    [
        ("q1\td1\td2\t3\n", "margin_only"),  # an id that is no number
        ("3\t1\tq1\td1\n", "inranker_tsv"),
        ("query_id\tpositive_id\tnegative_id\tscore\n1\t2\t3\t4\n", "margin_only"),
        ("pos_logit\tneg_logit\tqid\tpid\n1\t2\t3\t4\n", "inranker_tsv"),
        ("1 101 1\n1 102 3\n", "id_rows"),  # no ranks: they do not count up
        ("cats\tCats sleep.\t1\n", "text_rows"),
        ("query\tdocument\tscore\ncats\tdogs\t1\n", "text_rows"),
        ("\ufeff1\t101\t0.5\n", "id_rows"),
    ],
)
def test_like_formats_are_told_apart(tmp_path, content, form):
    assert detect_format(written(tmp_path, content)) == form


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.pkl", b"\x80\x04}", "found a pickle, which can run code when it is read; allowed: text: trec, "),
        ("s.pkl", b"(dp0\n", "found a pickle, which can run code when it is read"),
        ("s.txt", b"\x80\x05}", "write its scores as lines 'query id, tab, document id, tab, score'"),
        ("s.tsv.gz", gzip.compress(b"1\t2\t3\n", mtime=0), "found a gzip archive; allowed: text: "),
        ("s.parquet", b"PAR1abc", "found a Parquet file"),
        ("s.pt", b"PK\x03\x04..", "a torch file holds a pickle"),
    ],
)
@pytest.mark.parametrize("form", [None, "trec"])
def test_what_is_no_text_is_never_opened(tmp_path, name, content, message, form):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read_scores(tmp_path / name, DATA, PAIRS, form)
    assert message in str(error.value)


@pytest.mark.parametrize("form", [None, "trec"])
def test_missing_and_empty_files(tmp_path, form):
    with pytest.raises(InputError, match=r"none\.trec: found no such file"):
        read_scores(tmp_path / "none.trec", DATA, PAIRS, form)
    with pytest.raises(InputError, match="found a file that cannot be read"):
        read_scores(tmp_path, DATA, PAIRS, form)
    with pytest.raises(InputError, match=r"found (an empty file|no scores)"):
        read_scores(written(tmp_path, "\n\n"), DATA, PAIRS, form)
    with pytest.raises(InputError, match=r"found (no scores|no known format of scores: lines of 0 columns)"):
        read_scores(written(tmp_path, "query_id\tdoc_id\tscore\n"), DATA, PAIRS, "id_rows" if form else None)
