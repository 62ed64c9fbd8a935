"""fastembed: a model of one's own is described once, and read from its folder."""

from fastembed.common.model_description import ModelSource
from fastembed.rerank.cross_encoder import TextCrossEncoder
from pairs import main


def load(folder, file):
    TextCrossEncoder.add_custom_model("my-reranker", model_file=file, sources=ModelSource(hf="my/reranker"))
    return TextCrossEncoder("my-reranker", specific_model_path=folder)


def score(ranker, query, documents):
    return list(ranker.rerank(query, documents)), "Identity"


main(load, score, "fastembed", "onnxruntime", "tokenizers")
