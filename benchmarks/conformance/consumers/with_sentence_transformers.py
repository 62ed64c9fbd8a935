"""sentence-transformers in torch."""

from jobs import main
from sentence_transformers import CrossEncoder


def load(folder, file):
    return CrossEncoder(folder, device="cpu")


def score(ranker, query, documents):
    scores = ranker.predict([(query, document) for document in documents], show_progress_bar=False)
    return scores, type(ranker.activation_fn).__name__


main(load, score, "sentence-transformers", "transformers", "torch")
