from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from compressor.errors import InputError
from compressor.runtime.rank_requests import MAX_SHOWN_FAULTS, RankRequest, read_requests

Request = tuple[str, str, list[str], list[str]]


def lines(text: str | bytes) -> list[bytes]:
    return (text.encode() if isinstance(text, str) else text).splitlines(keepends=True)


def parsed(text: str | bytes, **settings: Any) -> list[Request]:
    return [(r.query_id, r.query, r.document_ids, r.documents) for r in read_requests(lines(text), "in", **settings)]


def jsonl(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def fault(text: str | bytes, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        parsed(text, **settings)
    return str(caught.value)


def test_lists() -> None:
    text = jsonl(
        {"query_id": "q1", "query": "red", "documents": ["sea", {"id": "d7", "text": "sun"}, {"text": "moon"}]},
        {"query": "red", "documents": ["sea"]},
        {"query_id": 7, "query": "red", "documents": [{"id": 3, "text": "sea"}]},
    )
    assert parsed(text) == [
        ("q1", "red", ["0", "d7", "2"], ["sea", "sun", "moon"]),
        ("2", "red", ["0"], ["sea"]),
        ("7", "red", ["3"], ["sea"]),
    ]


def test_pairs_of_neighboring_lines_are_one_request() -> None:
    text = jsonl(
        {"query_id": "q1", "query": "red", "document_id": "a", "document": "sea"},
        {"query_id": "q1", "query": "red", "document": "sun"},
        {"query": "blue", "document": "moon"},
        {"query": "blue", "document": "sea"},
        {"query_id": "q2", "query": "blue", "document": "sea"},
        {"query": "iron", "documents": ["sea"]},
    )
    assert parsed(text) == [
        ("q1", "red", ["a", "1"], ["sea", "sun"]),
        ("3", "blue", ["0", "1"], ["moon", "sea"]),
        ("q2", "blue", ["0"], ["sea"]),
        ("6", "iron", ["0"], ["sea"]),
    ]


TSV_REQUESTS = [("q1", "red", ["a", "b"], ["sea", "sun "]), ("q2", "blue", ["a"], ["moon"])]


@pytest.mark.parametrize(
    "text",
    [
        "q1\tred\ta\tsea\nq1\tred\tb\tsun \nq2\tblue\ta\tmoon\n",
        "query_id\tquery\tdocument_id\tdocument\nq1\tred\ta\tsea\nq1\tred\tb\tsun \nq2\tblue\ta\tmoon",
        "document\tdocument_id\tquery\tquery_id\nsea\ta\tred\tq1\nsun \tb\tred\tq1\nmoon\ta\tblue\tq2\n",
        "\n \nq1\tred\ta\tsea\r\n\r\nq1\tred\tb\tsun \r\nq2\tblue\ta\tmoon\r\n",
        "\ufeffq1\tred\ta\tsea\nq1\tred\tb\tsun \nq2\tblue\ta\tmoon\n",
    ],
)
def test_tsv(text: str) -> None:
    assert parsed(text) == TSV_REQUESTS


def test_tsv_of_two_columns_and_with_a_header_of_three() -> None:
    assert parsed("red\tsea\nred\tsun\nblue\tsea\n") == [
        ("1", "red", ["0", "1"], ["sea", "sun"]),
        ("3", "blue", ["0"], ["sea"]),
    ]
    assert parsed("query_id\tquery\tdocument\nq1\tred\tsea\n") == [("q1", "red", ["0"], ["sea"])]


def test_requests_come_as_soon_as_they_are_complete() -> None:
    taken: list[int] = []

    def slowly() -> Iterator[bytes]:
        for number, line in enumerate(lines(jsonl(*({"query": q, "documents": ["x"]} for q in "abc")))):
            taken.append(number)
            yield line

    requests = read_requests(slowly(), "in")
    assert next(requests) == RankRequest(query_id="1", query="a", document_ids=["0"], documents=["x"])
    assert taken == [0]


def test_the_format_can_be_said() -> None:
    assert parsed("{red\tsea\n", format="tsv") == [("1", "{red", ["0"], ["sea"])]
    assert "in: line 1: found broken JSON" in fault("red\tsea\n", format="jsonl")


PAIR = {"query": "red", "document": "sea"}
LIST = {"query": "red", "documents": ["sea"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "in: found no ranking requests; allowed: JSONL or TSV lines"),
        ("\n\n", "in: found no ranking requests; allowed: JSONL or TSV lines"),
        (
            "query\tdocument\n",
            "in: found no ranking requests; allowed: JSONL or TSV lines",
        ),
        (
            '{"query": "red", "documents": ["sea"]\n',
            "in: line 1: found broken JSON (Expecting ',' delimiter at column 38); allowed: one JSON object a line",
        ),
        (jsonl(LIST) + "[1]\n", "in: line 2: found a list in JSON; allowed: one JSON object a line"),
        (b'{"query": "r\xff"}\n', "in: line 1: found bytes that are not UTF-8 (from byte 12); allowed: UTF-8 text"),
        (jsonl({"document": "sea"}), "in: line 1: found no 'query'; allowed: a text"),
        (jsonl({"query": "red"}), "in: line 1: found no 'document'; allowed: a text"),
        (
            jsonl({"querry_id": "q", **LIST}),
            "in: line 1: found the key 'querry_id'; allowed: query_id, query, documents; did you mean 'query_id'?",
        ),
        (
            jsonl({**LIST, **PAIR}),
            "in: line 1: found the key 'document'; allowed: query_id, query, documents; did you mean 'documents'?",
        ),
        (jsonl({**PAIR, "query": 3}), "in: line 1: found 'query' as a number; allowed: a text"),
        (jsonl({**PAIR, "query": " "}), "in: line 1: found 'query' empty; allowed: a text that is not blank"),
        (jsonl({**PAIR, "document": None}), "in: line 1: found 'document' as null; allowed: a text"),
        (jsonl({**PAIR, "document": ""}), "in: line 1: found 'document' empty; allowed: a text that is not blank"),
        (jsonl({**PAIR, "query_id": True}), "in: line 1: found 'query_id' as true or false; allowed: a text or"),
        (jsonl({**PAIR, "query_id": None}), "in: line 1: found 'query_id' as null; allowed: a text or a whole number"),
        (
            jsonl({**LIST, "documents": []}),
            "in: line 1: found 'documents' as an empty list; allowed: a list of at least one text or {id, text}",
        ),
        (jsonl({**LIST, "documents": "sea"}), "in: line 1: found 'documents' as a string; allowed: a list of"),
        (
            jsonl({**LIST, "documents": ["sea", 5]}),
            "in: line 1: found 'documents[1]' as a number; allowed: a text or an object {id, text}",
        ),
        (
            jsonl({**LIST, "documents": [{"id": "a", "txt": "sea"}]}),
            "in: line 1: found the key 'txt' in 'documents[0]'; allowed: id, text; did you mean 'text'?",
        ),
        (jsonl({**LIST, "documents": [{"id": "a"}]}), "in: line 1: found no 'documents[0].text'; allowed: a text"),
        (
            '{"query": "\\ud800", "document": "sea"}\n',
            "in: line 1: found half a surrogate pair in 'query'; allowed: whole characters",
        ),
        (
            jsonl({**LIST, "documents": [{"id": "a", "text": "sea"}, {"id": "a", "text": "sun"}]}),
            "in: line 1: found the document id 'a' twice for query '1'; allowed: each document once a query",
        ),
        (
            jsonl({"query_id": "q", **LIST}, {"query_id": "q", **LIST}),
            "in: line 2: found the query id 'q' again, after line 1; allowed: each query in one place; "
            "give each query an id of its own",
        ),
        (
            "red\tsea\nblue\tsea\nred\tsun\n",
            "in: line 3: found the query 'red' again, after line 1; allowed: each query in one place; "
            "sort the input by query",
        ),
        (
            "q1\tred\ta\tsea\nq1\tblue\tb\tsun\n",
            "in: line 2: found another text for query 'q1' than on line 1; allowed: one text per query id",
        ),
        (
            "q1\tred\tsea\n",
            "in: line 1: found 3 tab-separated columns; allowed: 4: query_id, query, document_id, document; "
            "2 columns are query and document; a header line names any other order",
        ),
        ("just a line\n", "in: line 1: found 1 tab-separated column; allowed: 4: query_id, query, document_id"),
        ("red\tsea\nred\ta\tsun\n", "in: line 2: found 3 tab-separated columns; allowed: 2: query, document"),
        ("q1\tred\t\tsea\n", "in: line 1: found 'document_id' empty; allowed: a text that is not blank"),
        (
            "query\tdocument\tdocumentid\nred\tsea\ta\n",
            "in: line 1: found the column 'documentid' in the header; allowed: query_id, query, document_id, document; "
            "did you mean 'document_id'?",
        ),
        ("query\tdocument\tquery\na\tb\tc\n", "in: line 1: found the column 'query' twice; allowed: each column once"),
    ],
)  # fmt: skip
def test_faults(text: str | bytes, expected: str) -> None:
    message = fault(text)
    assert message.startswith(expected)
    assert "\n" not in message


def test_ids_with_spaces_are_refused_where_they_would_break_the_output() -> None:
    text = "q 1\tred\ta\tsea\nq2\tred\td 1\tsea\n"
    assert [request[0] for request in parsed(text)] == ["q 1", "q2"]
    allowed = "allowed: ids without white space in a TREC run; write JSONL instead"
    assert fault(text, ids_may_have_spaces=False) == (
        f"in: line 1: found the query id 'q 1'; {allowed}\nin: line 2: found the document id 'd 1'; {allowed}"
    )


def test_all_faulty_lines_are_told_up_to_a_limit() -> None:
    text = jsonl(LIST) + "{\n" * 3 + jsonl({"query": "blue", "documents": ["sea"]})
    assert [line.split(": ")[1] for line in fault(text).splitlines()] == ["line 2", "line 3", "line 4"]
    many = fault(jsonl(LIST) + "{\n" * (MAX_SHOWN_FAULTS + 5)).splitlines()
    assert len(many) == MAX_SHOWN_FAULTS + 1
    assert many[-1] == "in: found 5 more faulty lines"


def test_nothing_comes_after_a_fault() -> None:
    requests = read_requests(lines(jsonl(LIST) + "{\n" + jsonl(LIST)), "in")
    assert next(requests).query_id == "1"
    with pytest.raises(InputError):
        next(requests)
