"""Queries made out of a collection's own documents, for distilling where nobody has asked anything yet.

InRanker (arXiv 2401.06910) and InPars (arXiv 2202.05144) have a language model write them. Without one, documents hold
good queries already: their titles, headings and questions, what they define, their most salient sentence and words.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from compressor.data.bm25 import terms
from compressor.data.collection import Collection
from compressor.data.normalization import normalized
from compressor.progress import progress
from compressor.query_settings import QueryKind

_MIN_WORDS, _MAX_WORDS = 2, 14  # of a query; MS MARCO's have 6 on average
_MAX_QUESTION_WORDS = 24
_MIN_KEYWORDS, _MAX_KEYWORDS = 2, 5
# Ends of sentences: with a space behind them, or where scripts know no spaces without one; and empty lines.
_END = re.compile(r"(?<=[.!?…؟۔।॥])[\"'”’»)\]]*\s+|(?<=[。！？｡])[」』”’）]*\s*|\n{2,}")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
_LETTER = r"\w\u0300-\u036f\u0900-\u0963\u0966-\u0dff"  # vowel signs are no letters to `\w`
_WORD = re.compile(rf"[{_LETTER}][{_LETTER}'’.+#-]*[{_LETTER}]|[{_LETTER}]")
_HEADING = re.compile(
    r"^\s{0,3}(?:#{1,6}\s+(?P<marked>.+?)\s*#*|(?P<plain>[^.!?;,:{}()=\n。！？，؟।]{4,80}):?)\s*$",
    re.MULTILINE,
)
_LEAD = re.compile(r"^(?P<lead>[^.!?;:|{}()=\n]{4,80}?)(?:\s[|–—]\s|:\s)")  # "Prenatal care: what to expect ..."
_ASKED = re.compile(
    r"(?:^|(?<=[.!?:؟।]\s)|(?<=[。！？\n]))[\"'(«“「]?"  # where a sentence begins
    r"(?P<asked>[^\W\d_a-z][^.!?؟।。！？\n]{4,160}[?؟？])"
)
_DEFINED = re.compile(
    r"^(?P<subject>(?:(?:The|A|An)\s)?[A-Z0-9][\w'’-]*(?:\s[\w'’-]+){0,4})(?:\s\([^)]{1,40}\))?\s(?P<verb>is|are|was|were)"
    r"\s(?:a|an|the|one|any|known|used|defined)\b"
)
_NO_SUBJECT = frozenset(
    re.findall(
        r"\w+",
        "it this that these those there he she they we you i what which who here how why when where if but and or so "
        "as at by for from in into of on to with because although while since after before also another each one some "
        "most all many both such his her their our your my its no not now then today above below following next first",
    )
)
_WRITTEN: frozenset[QueryKind] = frozenset({"titles", "headings", "questions"})  # by a person, as a whole


def made_queries(
    collection: Collection, kinds: tuple[QueryKind, ...], per_document: int, seed: int = 0
) -> dict[str, tuple[str, str]]:
    """Return (text, id of the document it was made of) by query id, in the order of the documents.

    Each document gives up to ``per_document`` queries of different kinds: what a person wrote as a title, heading or
    question before what is cut out of a text, in an order of its own besides. Of queries that read alike the first
    stays, and copies of a document give none, so that neither meets itself. Equal arguments give equal queries.

    Args:
        collection: its documents' texts and titles.
        kinds: ``titles``, ``headings``, ``questions`` (asked in the text, or answered by a definition), ``sentences``
            (the one that is most like its document), ``keywords``.
        per_document: most queries of one document.
        seed: for the order of kinds.
    """
    weight = _rarity(collection.documents)
    makers: dict[QueryKind, Callable[[str, str], str]] = {
        "titles": lambda title, _: title,
        "headings": lambda _, body: _heading(body),
        "questions": lambda _, body: _question(body),
        "sentences": lambda _, body: _salient_sentence(body, weight),
        "keywords": lambda title, body: _keywords(f"{title} {body}", weight),
    }
    made: dict[str, tuple[str, str]] = {}
    seen: set[str] = set()
    with progress("Making queries", len(collection.documents)) as advance:
        for document, text in collection.documents.items():
            advance()
            copy = hashlib.sha256(normalized(text).encode()).hexdigest()
            if copy in seen:
                continue
            seen.add(copy)
            title = collection.titles.get(document, "")
            body = text.removeprefix(title).strip()
            n_made = 0
            for kind in _order(kinds, random.Random(f"{seed} {document}")):
                if n_made == per_document:
                    break
                query = fit(makers[kind](title, body), kind)
                key = normalized(query)
                if query and key not in seen:
                    seen.add(key)
                    made[f"{document}~{kind}"] = (query, document)
                    n_made += 1
    return made


def _order(kinds: tuple[QueryKind, ...], draw: random.Random) -> list[QueryKind]:
    return sorted(draw.sample(kinds, len(kinds)), key=lambda kind: kind not in _WRITTEN)


def with_source(candidates: list[str], source: str, depth: int) -> list[str]:
    """Return up to ``depth`` candidates of a made query, the document that it was made of among them.

    Where the first stage has not found that document, it stands in the last place.
    """
    found = candidates[:depth]
    return found if source in found else [*found[: depth - 1], source]


def _rarity(documents: Mapping[str, str]) -> Callable[[str], float]:
    """Return a function from a term to its inverse document frequency, 0 for one that no document has."""
    counts: Counter[str] = Counter()
    for text in documents.values():
        counts.update(set(_units(text)))
    n_documents = len(documents)
    return lambda term: math.log(1 + n_documents / counts[term]) if term in counts else 0.0


def fit(query: str, kind: QueryKind) -> str:
    """Return the query on one line; nothing where it is too short to ask for anything, or too long to be asked."""
    query = " ".join(query.split())
    most = _MAX_QUESTION_WORDS if kind == "questions" else _MAX_WORDS
    return query if _MIN_WORDS <= _n_words(query) <= most and terms(query) else ""


def _n_words(text: str) -> int:
    """Count words by their spaces; where a script knows none, two characters as one."""
    spaced = sum(any(map(str.isalnum, piece)) for piece in _UNSPACED.sub(" ", text).split())
    return spaced + sum(map(len, _UNSPACED.findall(text))) // 2


def _units(text: str) -> list[str]:
    """Return the index terms of a text; where a script knows no spaces, each two neighboring characters."""
    runs = _UNSPACED.findall(text)
    if not runs:
        return terms(text)
    return terms(_UNSPACED.sub(" ", text)) + [run[at : at + 2] for run in runs for at in range(len(run) - 1)]


def _heading(text: str) -> str:
    """A line that stands over longer ones, or what stands before the first colon or bar."""
    for found in _HEADING.finditer(text):
        if found["marked"] or len(text) > found.end():  # a text of one line is no heading
            return (found["marked"] or found["plain"]).strip()
    lead = _LEAD.match(text)
    return lead["lead"].strip() if lead else ""


def _question(text: str) -> str:
    for found in _ASKED.finditer(text):
        if not found["asked"][0].islower():
            return found["asked"]
    for sentence in _sentences(text):
        defined = _DEFINED.match(sentence)
        if defined and defined["subject"].split()[0].lower() not in _NO_SUBJECT:
            article, _, rest = defined["subject"].partition(" ")
            subject = f"{article.lower()} {rest}" if article in ("The", "A", "An") else defined["subject"]
            return f"what {defined['verb']} {subject}"
    return ""


def _sentences(text: str) -> Iterator[str]:
    """Yield sentences, their marks with them; a small letter goes on with one, where the text has capitals at all."""
    has_capitals = text != text.lower()
    start = 0
    for end in _END.finditer(text):
        following = text[end.end() : end.end() + 4].lstrip("\"'“‘«([")[:1]
        if has_capitals and following.islower() and "\n\n" not in end[0]:
            continue
        if sentence := text[start : end.end()].strip():
            yield sentence
        start = end.end()
    if sentence := text[start:].strip():
        yield sentence


def _salient_sentence(text: str, weight: Callable[[str], float]) -> str:
    """The sentence whose weighted terms have the largest cosine with the document's, cut at its end where too long."""
    document = {term: n * weight(term) for term, n in Counter(_units(text)).items()}
    best, best_score = "", 0.0
    for sentence in _sentences(text):
        cut = _cut(sentence)
        own = {term: weight(term) for term in set(_units(cut))}
        # Exact sums: those of a set's terms in any order, which differs from run to run, would break ties at random.
        length = math.sqrt(math.fsum(value**2 for value in own.values()))
        score = math.fsum(value * document.get(term, 0.0) for term, value in own.items()) / length if length else 0.0
        if len(own) >= _MIN_KEYWORDS and score > best_score:
            best, best_score = cut, score
    return best


def _cut(sentence: str) -> str:
    cut = " ".join(sentence.split()[:_MAX_WORDS])
    if _n_words(cut) > _MAX_WORDS:  # few spaces or none
        cut = cut[: 2 * _MAX_WORDS]
    return cut.rstrip(".,;:!…。，；：！। ")


def _keywords(text: str, weight: Callable[[str], float]) -> str:
    """The rarest words among those that the document repeats or begins with, in the order of the text.

    Scripts without spaces have none: where their words end, no rule says.
    """
    first: dict[str, tuple[int, str]] = {}
    counts: Counter[str] = Counter()
    for place, word in enumerate(_WORD.findall(_UNSPACED.sub(" ", text))):
        for term in terms(word)[:1]:
            counts[term] += 1
            first.setdefault(term, (place, word))
    scores = {
        term: math.sqrt(counts[term]) * weight(term) / (1 + first[term][0] / 40)
        for term in counts
        if not term.isdigit()
    }
    # How many words: short and long queries in turn, by the text itself.
    n_words = _MIN_KEYWORDS + len(text) % (_MAX_KEYWORDS - _MIN_KEYWORDS + 1)
    chosen = sorted(scores, key=lambda term: (-scores[term], term))[:n_words]
    return " ".join(first[term][1].lower() for term in sorted(chosen, key=lambda term: first[term][0]))
