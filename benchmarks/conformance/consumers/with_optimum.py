"""optimum-onnx: the model class that sentence-transformers and infinity stand on."""

from pathlib import PurePosixPath

from jobs import main
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer


def load(folder, file):
    path = PurePosixPath(file)
    named = {} if file == "onnx/model.onnx" else {"file_name": path.name, "subfolder": path.parent.as_posix()}
    return ORTModelForSequenceClassification.from_pretrained(folder, **named), AutoTokenizer.from_pretrained(folder)


def score(ranker, query, documents):
    model, tokenizer = ranker
    queries = [query] * len(documents)
    rows = tokenizer(queries, documents, padding=True, truncation=True, return_tensors="np")
    return model(**rows).logits[:, 0], "Identity"


main(load, score, "optimum-onnx", "optimum", "transformers", "onnxruntime")
