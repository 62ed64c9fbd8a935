"""fastembed: a model of one's own is described once, and read from its folder."""

from fastembed.common.model_description import ModelSource
from fastembed.rerank.cross_encoder import TextCrossEncoder
from jobs import main


def load(folder, file):
    name = f"my-reranker:{folder}:{file}"
    TextCrossEncoder.add_custom_model(name, model_file=file, sources=ModelSource(hf="my/reranker"))
    return TextCrossEncoder(name, specific_model_path=folder)


def score(ranker, query, documents):
    return list(ranker.rerank(query, documents)), "Identity"


main(load, score, "fastembed", "onnxruntime", "tokenizers")
