"""Score files: every format gives the scores that were planted, says what is wrong with a line, or is told apart."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.data import RankingData
from compressor.data.score_files import read_scores
from compressor.data.score_formats import SCORE_FORMATS
from compressor.errors import InputError

# Ids are numbers, as MS MARCO has them: nothing but the place of a column says what it is.
QUERIES = {"11": "what do cats do", "12": "do  dogs bark"}
DOCUMENTS = {"101": "Cats sleep.", "102": "Dogs bark at cats.", "103": "Rain is wet."}
PAIRS = [("11", "101"), ("11", "102"), ("11", "103"), ("12", "102"), ("12", "103")]
SCORES = [7.5, -2.25, -10.5, 9.0, -11.125]
KNOWN = dict(zip(PAIRS, SCORES, strict=True))
DATA = RankingData(
    name="pets/train",
    collection="pets",
    first_stage="by hand",
    queries=QUERIES,
    documents=DOCUMENTS,
    qrels={},
    candidates={"11": ["101", "102", "103"], "12": ["102", "103"]},
)


def lines(rows) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


def text(query: str, document: str) -> tuple[str, str]:
    return QUERIES[query], DOCUMENTS[document]


def _listed(query: str) -> tuple[list[str], list[float]]:
    own = [(document, score) for (of, document), score in KNOWN.items() if of == query]
    return [document for document, _ in own], [score for _, score in own]


def _flag(query: str) -> dict[str, object]:
    documents, scores = _listed(query)
    texts = [DOCUMENTS[document] for document in documents]
    return {
        "query": QUERIES[query], "pos": texts[:1], "neg": texts[1:], "prompt": "",
        "pos_scores": scores[:1], "neg_scores": scores[1:],
    }  # fmt: skip


# Every format as its toolkits write it; the second form of a format has a number behind its name.
FILES = {
    "trec": lines(f"{q} Q0 {d} {n + 1} {s} tag" for n, ((q, d), s) in enumerate(KNOWN.items())),
    "margin_tsv": "7.5\t-2.25\t11\t101\t102\n7.5\t-10.5\t11\t101\t103\n9.0\t-11.125\t12\t102\t103\n",
    "colbert_json": lines([int(q), *([int(d), s] for d, s in zip(*_listed(q), strict=True))] for q in QUERIES),
    "flag_jsonl": lines(_flag(q) for q in QUERIES),
    "pylate": lines({"query_id": int(q), "document_ids": _listed(q)[0], "scores": _listed(q)[1]} for q in QUERIES),
    "pylate 2": lines(
        {"query_id": q, "document_ids": json.dumps(_listed(q)[0]), "scores": str(_listed(q)[1])} for q in QUERIES
    ),
    "lightning_jsonl": lines(
        {"query_id": q, "doc_id": d, "score": s, "query": QUERIES[q], "text": DOCUMENTS[d], "relevance": None}
        for (q, d), s in KNOWN.items()
    ),
    "lightning_jsonl 2": lines({"passage_id": d, "query_id": q, "score": s} for (q, d), s in KNOWN.items()),
    "id_rows": lines(f"{q}\t{d}\t{s}" for (q, d), s in KNOWN.items()),
    "id_rows 2": "query_id\tpassage_id\tscore\n" + lines(f"{q}\t{d}\t{s}" for (q, d), s in KNOWN.items()),
    "text_rows": lines("\t".join((*text(q, d), str(s))) for (q, d), s in KNOWN.items()),
    "text_rows 2": "query\tdocument\tscore\n" + lines("\t".join((*text(*p), str(s))) for p, s in KNOWN.items()),
    "text_rows 3": lines(
        {"query": text(*p)[0], "document": text(*p)[1], "teacher_score": s} for p, s in KNOWN.items()
    ),
    "inranker_tsv": lines(f"{s / 2}\t{-s / 2}\t{q}\t{d}" for (q, d), s in KNOWN.items()),
    "inranker_jsonl": lines(
        {"query": text(*p)[0], "contents": text(*p)[1], "true_logit": s - 3.5, "false_logit": -3.5}
        for p, s in KNOWN.items()
    ),
}  # fmt: skip
MARGINS = {
    "margin_only": "11\t101\t102\t9.75\n11\t101\t103\t18.0\n12\t102\t103\t20.125\n",
    "margin_only 2": "query_id\tpositive_id\tnegative_id\tscore\n11\t101\t102\t9.75\n11\t101\t103\t18\n"
    "12\t102\t103\t20.125\n",
    "margin_only 3": lines(
        {"query_id": q, "positive_id": p, "negative_id": n, "score": m}
        for q, p, n, m in (("11", "101", "102", 9.75), ("11", "102", "103", 8.25), (12, 102, 103, 20.125))
    ),
}  # fmt: skip


def written(tmp_path, content: str):
    path = tmp_path / "scores.txt"
    path.write_text(content, encoding="utf-8")
    return path


def test_every_format_is_here():
    assert {name.split()[0] for name in (*FILES, *MARGINS)} == set(SCORE_FORMATS)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("named", [True, False], ids=["named", "detected"])
def test_scores_are_read(tmp_path, name, named):
    form = name.split()[0]
    found = read_scores(written(tmp_path, FILES[name]), DATA, PAIRS, form if named else None)
    assert found.format == form
    np.testing.assert_array_equal(found.values, np.array(SCORES, dtype=np.float32))
    assert found.values.dtype == np.float32
    assert found.offsets_known
    assert found.n_missing == 0


@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("named", [True, False], ids=["named", "detected"])
def test_margins_give_differences_and_no_offsets(tmp_path, name, named):
    found = read_scores(written(tmp_path, MARGINS[name]), DATA, PAIRS, "margin_only" if named else None)
    assert found.format == "margin_only"
    assert not found.offsets_known
    np.testing.assert_allclose(found.values[:3], np.array(SCORES[:3]) - np.mean(SCORES[:3]), atol=1e-6)
    np.testing.assert_allclose(found.values[3:], np.array(SCORES[3:]) - np.mean(SCORES[3:]), atol=1e-6)
    assert found.notes["largest_disagreement_of_margins"] < 1e-6


def test_pairs_may_come_in_any_order_and_twice(tmp_path):
    path = written(tmp_path, FILES["trec"])
    wanted = [PAIRS[4], PAIRS[0], PAIRS[4], ("12", "101")]
    found = read_scores(path, DATA, wanted)
    np.testing.assert_array_equal(found.values, np.array([SCORES[4], SCORES[0], SCORES[4], np.nan]))
    assert found.n_missing == 1
    assert found.notes == {"rows": 5, "rows_of_other_pairs": 3}


def test_texts_match_whatever_their_white_space_and_for_all_ids_of_a_text(tmp_path):
    content = lines([{"query": " do dogs\tbark ", "document": "Dogs  bark\nat cats. ", "score": 1.5}])
    twins = RankingData(
        name="twins", collection="twins", first_stage="by hand", queries={"a": "do dogs bark", "b": "do dogs bark"},
        documents={"x": "Dogs bark at cats.", "y": "dogs bark at cats."}, qrels={}, candidates={},
    )  # fmt: skip
    found = read_scores(written(tmp_path, content), twins, [("a", "x"), ("b", "x"), ("a", "y")])
    np.testing.assert_array_equal(found.values, [1.5, 1.5, np.nan])


def test_a_pair_scored_twice_alike_counts_once_and_otherwise_is_a_fault(tmp_path):
    found = read_scores(written(tmp_path, FILES["id_rows"] + "11\t101\t7.5004\n"), DATA, PAIRS)
    assert found.values[0] == 7.5
    path = written(tmp_path, FILES["id_rows"] + "11\t101\t8\n12\t103\t11.125\n")
    with pytest.raises(InputError) as error:
        read_scores(path, DATA, PAIRS)
    assert str(error.value).splitlines() == [
        f"{path}: line 6: found the score 8 of a pair; line 1 says 7.5",
        f"{path}: line 7: found the score 11.125 of a pair; line 5 says -11.125",
    ]


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.floats(-20, 20), min_size=2, max_size=9),
    links=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=12),
    noise=st.floats(0, 0.5),
)
def test_margins_along_any_chain_give_the_scores_back(tmp_path_factory, scores, links, noise):
    documents = [f"d{i}" for i in range(len(scores))]
    steps = [(i, i + 1) for i in range(len(scores) - 1)]
    steps += [(a % len(scores), b % len(scores)) for a, b in links if a % len(scores) != b % len(scores)]
    noises = np.random.default_rng(0).choice([-noise, noise], len(steps)).tolist()
    margins = [scores[a] - scores[b] + added for (a, b), added in zip(steps, noises, strict=True)]
    rows = [
        {"query_id": "q", "positive_id": documents[a], "negative_id": documents[b], "score": margin}
        for (a, b), margin in zip(steps, margins, strict=True)
    ]
    path = written(tmp_path_factory.mktemp("margins"), lines(rows))
    found = read_scores(path, DATA, [("q", document) for document in documents])
    bound = 1e-4 + noise * len(scores)
    np.testing.assert_allclose(found.values, np.array(scores) - np.mean(scores), atol=bound)
    matrix = np.zeros((len(steps), len(scores)))
    matrix[np.arange(len(steps)), [a for a, _ in steps]] = 1
    matrix[np.arange(len(steps)), [b for _, b in steps]] = -1
    best = np.linalg.lstsq(matrix, np.array(margins), rcond=None)[0]  # of least norm: mean 0
    np.testing.assert_allclose(found.values, best, atol=1e-4)


def test_documents_that_no_margins_link_cannot_be_compared(tmp_path):
    rows = ["q a b 1.5", "q c d 2.5", "q d e 3.5", "q x y 4.5", "q z x 0.5", "q w x 0.5", "r a b 2"]
    pairs = [("q", document) for document in "abcde"] + [("q", "f")]
    found = read_scores(written(tmp_path, lines(rows)), DATA, pairs)
    np.testing.assert_allclose(found.values, [np.nan, np.nan, 17 / 6, 1 / 3, -19 / 6, np.nan], atol=1e-6)
    assert found.notes["unlinked"] == 2
    assert found.notes["rows_of_other_pairs"] == 1


def test_an_unwanted_document_still_links_the_wanted(tmp_path):
    found = read_scores(written(tmp_path, "q p a 3.5\nq p b 1.5\n"), DATA, [("q", "a"), ("q", "b")])
    np.testing.assert_allclose(found.values, [-1, 1])


def test_a_file_of_another_collection_is_refused(tmp_path):
    path = written(tmp_path, "7\tD1\t2.5\n7\tD2\t1.5\n8\tD2\t1.5\n")
    with pytest.raises(InputError) as error:
        read_scores(path, DATA, PAIRS)
    assert str(error.value) == (
        f"{path}: found no score of any of the 5 pairs (3 rows of other pairs): "
        "queries '7', '8', documents 'D1', 'D2'; "
        "allowed: ids of pets/train: queries '11', '12', documents '101', '102', '103'; "
        "the file belongs to another collection, or its ids were changed"
    )
    path = written(tmp_path, lines([{"query": "who", "document": "x" * 50, "score": 1}]))
    with pytest.raises(InputError) as error:
        read_scores(path, DATA, PAIRS)
    assert f"queries 'who', documents '{'x' * 39}…'; allowed: texts of pets/train: queries 'what do cats do'" in str(
        error.value
    )


def test_memory_is_for_the_pairs_not_for_the_file(tmp_path):
    import tracemalloc

    path = tmp_path / "large.tsv"
    with path.open("w") as stream:
        stream.writelines(f"{q}\t{d}\t0.5\n" for q in range(200) for d in range(200))
        stream.write("11\t101\t0.5\n")
    read_scores(path, DATA, PAIRS)
    tracemalloc.start()
    found = read_scores(path, DATA, PAIRS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.notes["rows"] == 40_001
    assert peak < 500_000, "keeping the rows would take 4 MB"
