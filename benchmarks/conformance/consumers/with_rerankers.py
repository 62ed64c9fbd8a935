"""rerankers: torch, with the kind named, as it guesses it from words in the path otherwise."""

from jobs import main
from rerankers import Reranker


def load(folder, file):
    ranker = Reranker(folder, model_type="cross-encoder", device="cpu", verbose=0)
    if ranker is None:
        raise RuntimeError("rerankers printed why it has no such ranker, and returned nothing")
    return ranker


def score(ranker, query, documents):
    ranked = ranker.rank(query=query, docs=documents, doc_ids=list(range(len(documents))))
    return [one.score for one in sorted(ranked.results, key=lambda one: one.document.doc_id)], "Identity"


main(load, score, "rerankers", "transformers", "torch")
