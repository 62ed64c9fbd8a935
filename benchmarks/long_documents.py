"""Makes long documents of a collection of short ones: neighbors become one text. Queries and judgments stay.

A document of the result is a run of documents that stand one behind the other and have the same title, as many as fit
in so many words; it is as relevant as the most relevant of them. What one query would find in two of its neighbors it
finds in one: the task gets easier and its texts longer. For measuring what length does to speed, and what token
reduction loses, where a collection of long texts is not at hand.

    python benchmarks/long_documents.py path/to/beir runs/beir_512 --words 360
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from compressor.data.beir import read_beir, read_documents, splits_of
from compressor.errors import RankpressError
from compressor.storage import whole_folder


def main() -> int:
    """Write the collection."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("collection", type=Path, help="BEIR folder")
    parser.add_argument("out", type=Path, help="the new one; an older one is replaced")
    parser.add_argument("--words", type=int, required=True, help="the most that a document has, if it is no single one")
    arguments = parser.parse_args()
    try:
        n_before, n_after = write(arguments.collection, arguments.out, arguments.words)
    except RankpressError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{n_before:,} documents became {n_after:,}: {arguments.out}")
    return 0


def write(collection: Path, out: Path, words: int) -> tuple[int, int]:
    """Write a collection of joined documents; return how many there were and are.

    Raises:
        InputError: the collection is broken, or ``out`` cannot be written.
    """
    source = read_documents(collection)
    owner: dict[str, str] = {}
    with whole_folder(out) as partial:
        with (partial / "corpus.jsonl").open("w", encoding="utf-8") as stream:
            for title, group in groupby(source.documents, key=lambda document: source.titles.get(document, "")):
                bodies = ((one, source.documents[one].removeprefix(title).strip()) for one in group)
                for members, text in joined(bodies, words):
                    owner |= dict.fromkeys(members, members[0])
                    stream.write(json.dumps({"_id": members[0], "title": title, "text": text}) + "\n")
        shutil.copyfile(collection / "queries.jsonl", partial / "queries.jsonl")
        (partial / "qrels").mkdir()
        for split in splits_of(collection):
            grades: dict[tuple[str, str], int] = {}
            for query, judged in read_beir(collection, split).qrels.items():
                for document, grade in judged.items():
                    pair = (query, owner[document])
                    grades[pair] = max(grade, grades.get(pair, grade))
            lines = [f"{query}\t{document}\t{grade}\n" for (query, document), grade in grades.items()]
            text = "".join(["query-id\tcorpus-id\tscore\n", *lines])
            (partial / "qrels" / f"{split}.tsv").write_text(text, encoding="utf-8")
    return len(owner), len(set(owner.values()))


def joined(documents: Iterable[tuple[str, str]], words: int) -> Iterator[tuple[list[str], str]]:
    """Yield (ids, text) of runs of documents that have at most so many words together, or are a single one."""
    members: list[str] = []
    texts: list[str] = []
    n_words = 0
    for document, text in documents:
        n_own = len(text.split())
        if members and n_words + n_own > words:
            yield members, "\n".join(texts)
            members, texts, n_words = [], [], 0
        members.append(document)
        texts.append(text)
        n_words += n_own
    if members:
        yield members, "\n".join(texts)


if __name__ == "__main__":
    sys.exit(main())
