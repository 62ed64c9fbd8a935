"""FlashRank: a folder is a name in a cache folder, and its file stands in the map of files."""

from pathlib import Path

from flashrank import Ranker, RerankRequest
from flashrank.Config import model_file_map
from jobs import main


def load(folder, file):
    path = Path(folder).resolve()
    model_file_map[path.name] = file
    return Ranker(model_name=path.name, cache_dir=str(path.parent), log_level="ERROR")


def score(ranker, query, documents):
    passages = [{"id": place, "text": document} for place, document in enumerate(documents)]
    ranked = ranker.rerank(RerankRequest(query=query, passages=passages))
    return [one["score"] for one in sorted(ranked, key=lambda one: one["id"])], "Sigmoid"


main(load, score, "flashrank", "onnxruntime", "tokenizers")
