"""Question and passage out of a docstring: its summary, and the prose that follows."""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from compressor.data.normalization import normalized

MAX_PASSAGE_CHARACTERS = 500  # about 120 word pieces, the length of passages in MS MARCO
_MIN_PASSAGE_WORDS, _MIN_SUMMARY_WORDS, _MAX_SUMMARY_WORDS = 25, 4, 40
_BOILERPLATE_COUNT = 3  # a paragraph that stands in so many docstrings is generated or copied
_TEMPLATE_WORDS = 8  # passages that begin with the same so many words belong to one family of generated text

_WORD = re.compile(r"[A-Za-z]{2,}")
_UNDERLINE = re.compile(r"\s*([-=~^*#\"'.+])\1{2,}\s*")
_SIGNATURE = re.compile(r"[\w.]+\(")
_ROLE = re.compile(r":[\w:+-]+:(?=`)")
_LISTS = (
    r"(other )?(parameters?|params|args?|arguments)|keywords?|keyword arguments|options|attributes|methods"
    r"|inputs?|outputs?|returns?|yields?|receives|raises|warns|throws|shape|see also|references?"
    r"|examples?|example usage|doctests?"
)
_LIST_HEADING = re.compile(rf"\s*({_LISTS})\s*:*\s*", re.IGNORECASE)
_PROSE_HEADING = re.compile(r"\s*(notes?|warnings?|tip|explanation|description|details|overview|usage)\s*:*\s*", re.I)
_NOT_PROSE = re.compile(
    r">>>|\.\. |```|:\w+|@\w|\[\d|https?:|\\|[{(<$]|(def|class|import|from|for|with|if) .*[:=(]|[\w.\[\]]+ = "
    rf"|[*\w]+(, [*\w]+)* : |\w[\w.]*\(.*\)( ->.*)?$|[\w.]+(, [\w.]+)+,?$|(?i:{_LISTS})\s*:"
    r"|(?i:copyright|authors?|license)\b"
)


@dataclass(frozen=True, slots=True)
class Docstring:
    """One docstring of a source file: where it stands, and its paragraphs, each on one line."""

    name: str
    paragraphs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Passage:
    """A summary and the prose that belongs to it."""

    name: str
    summary: str
    text: str


def docstrings(source: str, module: str) -> Iterator[Docstring]:
    """Yield the docstrings of a module, its classes and functions, in the order of the file; functions inside functions
    are left out. The source is parsed, never run; a file that this Python cannot parse yields nothing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's escape sequences are no concern of ours
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    yield from _below(tree, module)


def passages(found: Iterable[Docstring]) -> list[Passage]:
    """Turn docstrings into distinct (summary, passage) pairs, in the order given.

    1. The summary is the first paragraph, freed of markup: 4 to 40 words, no signature, no address.
    2. The passage is the prose of the rest: no doctests, code, directives, formulas, nor lists of parameters, results
       and the like. It has 25 words or more, ends after 500 characters, and does not contain the summary.
    3. Paragraphs that stand in three docstrings or more (licenses, inherited parameters, deprecation notes) go.
    4. Of equal summaries, and of passages that begin with the same eight words, the first stays: what is generated from
       one template cannot be told apart by any ranker, and must not meet itself in another split.
    """
    listed = list(found)
    counts = Counter(key for item in listed for key in {normalized(text) for text in item.paragraphs})
    summaries: set[str] = set()
    openings: set[str] = set()
    kept = []
    for item in listed:
        passage = _passage(item, counts)
        if passage is None:
            continue
        summary_key = _letters(passage.summary)
        opening = " ".join(_letters(passage.text).split()[:_TEMPLATE_WORDS])
        if summary_key in summaries or opening in openings:
            continue
        summaries.add(summary_key)
        openings.add(opening)
        kept.append(passage)
    return kept


def _below(node: ast.Module | ast.ClassDef, name: str) -> Iterator[Docstring]:
    yield from _of(node, name)
    for child in _definitions(node.body):
        child_name = f"{name}.{child.name}"
        yield from _below(child, child_name) if isinstance(child, ast.ClassDef) else _of(child, child_name)


def _definitions(body: list[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        elif isinstance(node, ast.If | ast.Try):
            yield from _definitions(node.body + node.orelse)


def _of(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> Iterator[Docstring]:
    text = ast.get_docstring(node)
    if not text:
        return
    blocks: list[list[str]] = [[]]
    for line in text.split("\n"):
        if not line.strip() or _LIST_HEADING.fullmatch(line) or _PROSE_HEADING.fullmatch(line):
            blocks.append([])
        if line.strip() and not _UNDERLINE.fullmatch(line) and not _PROSE_HEADING.fullmatch(line):
            blocks[-1].append(line)
    blocks = [block for block in blocks if block]
    if len(blocks) > 1 and not _LIST_HEADING.fullmatch(blocks[0][0]):
        prose = [block for block in blocks if not _LIST_HEADING.fullmatch(block[0])]
        yield Docstring(name, tuple(" ".join(" ".join(block).split()) for block in prose))


def _passage(item: Docstring, counts: Counter[str]) -> Passage | None:
    first, *rest = item.paragraphs
    summary = _ROLE.sub("", first).replace("`", "").strip()
    in_range = _MIN_SUMMARY_WORDS <= len(summary.split()) <= _MAX_SUMMARY_WORDS
    if not in_range or len(_WORD.findall(summary)) < _MIN_SUMMARY_WORDS:
        return None
    if "http" in summary or _NOT_PROSE.match(first) or _SIGNATURE.match(first):
        return None
    body = [text for text in rest if counts[normalized(text)] < _BOILERPLATE_COUNT]
    body = [text for text in body if not _NOT_PROSE.match(text)]
    text = _cut(_without(summary, " ".join(_ROLE.sub("", part) for part in body)))
    return Passage(item.name, summary, text) if len(_WORD.findall(text)) >= _MIN_PASSAGE_WORDS else None


def _without(summary: str, text: str) -> str:
    """Remove the summary where the text repeats its words in a row, whatever the case, spacing and punctuation."""
    if normalized(summary) not in normalized(text):
        return text
    repeated = re.compile(r"\W+".join(map(re.escape, re.findall(r"\w+", summary))), re.IGNORECASE)
    return " ".join(repeated.sub(" ", text).split())


def _cut(text: str) -> str:
    return text if len(text) <= MAX_PASSAGE_CHARACTERS else text[:MAX_PASSAGE_CHARACTERS].rpartition(" ")[0]


def _letters(text: str) -> str:
    return re.sub(r"[\d_]+", "", normalized(text))
