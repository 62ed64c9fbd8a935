"""Ranking with an exported folder: numpy, tokenizers and ONNX Runtime, no torch."""

from compressor.runtime.ranker import EncodedSides, OnnxRanker, Ranked
from compressor.runtime.tokenizer import Encoded, PairTokenizer

__all__ = ["Encoded", "EncodedSides", "OnnxRanker", "PairTokenizer", "Ranked"]
