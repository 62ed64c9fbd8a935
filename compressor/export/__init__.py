"""From spec and weights to an ONNX graph, and to a folder that every reranker runtime loads."""
