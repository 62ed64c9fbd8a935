"""Queries made of documents: what each kind finds, in several scripts; no two alike; the same in every process."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from typing import get_args

import pytest

from compressor.data.collection import Collection
from compressor.data.made_queries import made_queries, with_source
from compressor.data.normalization import normalized
from compressor.query_settings import QueryKind

KINDS: tuple[QueryKind, ...] = get_args(QueryKind)
GUIDE = """\
Tar archives are files that hold many files in a row, with their names, owners and times of change beside them. Some
programs write an index behind the files. How does one read a single file out of an archive? The program walks over \
headers until the wanted name turns up, and copies as many bytes as the header of that archive says.
"""


def collection(*documents: str, **titled: str) -> Collection:
    """Return a collection of texts; those given by a name begin with it as their title."""
    texts = {f"d{number}": text for number, text in enumerate(documents)}
    texts |= {name: f"{name.replace('_', ' ')} {text}" for name, text in titled.items()}
    titles = {name: name.replace("_", " ") for name in titled}
    return Collection(name="made", identity="made", queries={}, documents=texts, qrels={}, titles=titles)


def of_kind(kind: QueryKind, *documents: str, **titled: str) -> list[str]:
    return [text for text, _ in made_queries(collection(*documents, **titled), (kind,), 1).values()]


def test_each_kind_finds_its_own():
    others = {"Zip_files": "Zip files compress each file alone.", "Old_disks": "Old disks hold little and fail."}
    texts = {kind: of_kind(kind, Tar_archives=GUIDE, **others)[0] for kind in KINDS if kind != "headings"}
    assert texts["titles"] == "Tar archives"
    assert texts["questions"] == "How does one read a single file out of an archive?"
    assert len(texts["sentences"].split()) == 14
    assert texts["sentences"] in " ".join(GUIDE.split())
    keywords = texts["keywords"].split()
    assert 2 <= len(keywords) <= 5
    assert set(keywords) <= set(re.findall(r"\w+", f"tar archives {GUIDE}".lower()))
    assert not {"the", "and", "of"} & set(keywords), "rare words, not frequent ones"


@pytest.mark.parametrize(
    ("text", "heading"),
    [
        ("# Reading archives #\nThe program walks over headers.", "Reading archives"),
        ("Some text first.\n\n## Reading archives\nThe program walks.", "Reading archives"),
        ("Reading archives:\nThe program walks over headers.", "Reading archives"),
        ("Reading archives | Manual of tar | The program walks over headers.", "Reading archives"),
        ("Reading archives: how a program walks over headers.", "Reading archives"),
    ],
)
def test_headings(text, heading):
    assert of_kind("headings", text) == [heading]


@pytest.mark.parametrize(
    "text", ["One line alone", "A sentence stands here. And one more does.", "x = {a: b}\ny = (c, d)\n"]
)
def test_what_is_no_heading(text):
    assert of_kind("headings", text) == []


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Many ask this. What is a tar archive? It is a file.", "What is a tar archive?"),
        ("perlfaq: How do I open a file? See open.", "How do I open a file?"),
        ("A tar archive is a file that holds files. It has headers.", "what is a tar archive"),
        ("Tar headers (also called blocks) are the parts before files.", "what are Tar headers"),
    ],
)
def test_questions_asked_and_answered(text, question):
    assert of_kind("questions", text) == [question]


@pytest.mark.parametrize("text", ["This is a file that holds files.", "Below are the names.", "He asked why it is so."])
def test_what_no_question_can_be_about(text):
    assert of_kind("questions", text) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Глубокое обучение использует сети. Сети, т. е. слои, учатся. Да.", "Глубокое обучение использует сети"),
        ("Τα δίκτυα νευρώνων μαθαίνουν από δεδομένα. Ναι.", "Τα δίκτυα νευρώνων μαθαίνουν από δεδομένα"),
        ("神经网络由许多节点组成。好。", "神经网络由许多节点组成"),
        ("深層学習は機械学習の一種です！はい。", "深層学習は機械学習の一種です"),
        ("गहन शिक्षण मशीन लर्निंग का भाग है। हाँ।", "गहन शिक्षण मशीन लर्निंग का भाग है"),
        ("تتكون الشبكة العصبية من عقد مترابطة. نعم.", "تتكون الشبكة العصبية من عقد مترابطة"),
        ("a note without capitals tells of networks. of few words.", "a note without capitals tells of networks"),
    ],
    ids=["Russian", "Greek", "Chinese", "Japanese", "Hindi", "Arabic", "small letters"],
)  # fmt: skip
def test_sentences_of_several_scripts_end_where_they_end(text, sentence):
    assert of_kind("sentences", text) == [sentence]


def test_a_small_letter_goes_on_with_its_sentence_where_a_text_has_capitals():
    text = "Networks, i. e. layers of nodes, learn from data. Yes."
    assert of_kind("sentences", text) == ["Networks, i. e. layers of nodes, learn from data"]


@pytest.mark.parametrize(
    ("text", "question"),
    [("网络会学习。什么是神经网络？", "什么是神经网络？"), ("Сеть учится. Что такое сеть?", "Что такое сеть?")],
)
def test_questions_of_several_scripts(text, question):
    assert of_kind("questions", text) == [question]


def test_long_texts_without_spaces_are_cut_by_characters():
    (query,) = of_kind(
        "sentences", "神经网络由许多节点组成而且节点之间有连接并且每个连接都有权重然后网络会学习这些权重。"
    )
    assert len(query) == 28


def test_too_short_and_too_long_texts_give_nothing():
    assert of_kind("titles", Tar="Files in a row.") == []
    title = "_".join(["A", *["long"] * 14, "title"])
    assert of_kind("titles", **{title: "Files in a row."}) == []
    assert of_kind("sentences", "and the. of it!") == [], "stop words alone ask for nothing"


def test_no_copies_and_no_two_queries_that_read_alike():
    last = "# TAR ARCHIVES!\nThey hold files in rows."
    made = made_queries(collection(GUIDE, GUIDE.upper(), "Some lines.", last, Tar_archives="Rows."), KINDS, 5)
    texts = [normalized(text) for text, _ in made.values()]
    assert len(set(texts)) == len(texts)
    assert "d1" not in {document for _, document in made.values()}, "a copy of a document is not asked for"
    assert "d3~headings" in made
    assert "Tar_archives~titles" not in made, "the first of two that read alike stays"


def test_so_many_per_document_and_each_of_another_kind():
    counts = []
    for most in (1, 2, 9):
        made = made_queries(collection(Tar_archives=GUIDE), KINDS, most)
        kinds = [key.rpartition("~")[2] for key in made]
        assert len(set(kinds)) == len(kinds)
        counts.append(len(kinds))
    assert counts == [1, 2, 4]
    first = [next(iter(made_queries(collection(Tar_archives=GUIDE), KINDS, 1, seed=seed))) for seed in range(20)]
    assert set(first) == {"Tar_archives~titles", "Tar_archives~questions"}, "what a person wrote comes first, in turns"


def tied_sentences() -> list[str]:
    """Return texts of two sentences with the same terms in another order, whose scores differ in rounding alone."""
    words = [f"term{n}" for n in range(14)]
    others = [" ".join(words[: n + 1]) for n in range(len(words))]  # so that every term has a rarity of its own
    orders = [random.Random(turn).sample(words, len(words)) for turn in range(100)]
    return others + [f"{' '.join(one).capitalize()}. {' '.join(one[::-1]).capitalize()}." for one in orders]


def test_equal_arguments_give_equal_queries_in_any_process():
    program = (
        "import json, sys\n"
        "from compressor.data.collection import Collection\n"
        "from compressor.data.made_queries import made_queries\n"
        "value = json.loads(sys.argv[1])\n"
        "found = Collection(name='', identity='', queries={}, documents=value[0], qrels={}, titles=value[1])\n"
        "print(json.dumps(made_queries(found, tuple(value[2]), 2)))"
    )
    texts = [GUIDE, "Zip files compress each file alone. Old disks fail.", *tied_sentences()]
    given = collection(*texts, Tar_archives=GUIDE[40:])
    value = json.dumps([given.documents, given.titles, KINDS])
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program, value], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert [json.loads(one) for one in outputs] == [
        {key: list(value) for key, value in made_queries(given, KINDS, 2).items()}
    ]


@pytest.mark.parametrize(
    ("found", "depth", "expected"),
    [
        (["a", "s", "b"], 3, ["a", "s", "b"]),
        (["a", "b", "c"], 3, ["a", "b", "s"]),
        (["a", "b"], 3, ["a", "b", "s"]),
        (["a", "b", "s"], 2, ["a", "s"]),
        (["a"], 1, ["s"]),
        ([], 3, ["s"]),
    ],
)
def test_the_source_is_among_the_candidates(found, depth, expected):
    assert with_source(found, "s", depth) == expected
