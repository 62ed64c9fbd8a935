"""infinity with its torch engine, raw scores asked for. What fails inside of it is never told: hence the timeout."""

from infinity_emb import EngineArgs, SyncEngineArray
from jobs import main


def load(folder, file):
    settings = {"engine": "torch", "device": "cpu", "model_warmup": False, "trust_remote_code": False}
    return SyncEngineArray.from_args([EngineArgs(model_name_or_path=folder, served_model_name="ranker", **settings)])


def score(ranker, query, documents):
    found, _ = ranker.rerank(model="ranker", query=query, docs=documents, raw_scores=True).result(timeout=900)
    return [one.relevance_score for one in sorted(found, key=lambda one: one.index)], "Identity"


main(load, score, "infinity-emb", "sentence-transformers", "transformers", "torch")
