"""sentence-transformers with its ONNX backend; a file is named where it is not the usual one."""

from jobs import main
from sentence_transformers import CrossEncoder


def load(folder, file):
    named = {} if file == "onnx/model.onnx" else {"file_name": file}
    return CrossEncoder(folder, backend="onnx", model_kwargs={"provider": "CPUExecutionProvider", **named})


def score(ranker, query, documents):
    scores = ranker.predict([(query, document) for document in documents], show_progress_bar=False)
    return scores, type(ranker.activation_fn).__name__


main(load, score, "sentence-transformers", "optimum-onnx", "transformers", "onnxruntime")
