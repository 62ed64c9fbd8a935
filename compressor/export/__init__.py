"""From spec and weights to an ONNX graph, and to a folder that every reranker runtime loads."""

from compressor.export.encoder import write_graph
from compressor.export.folder import ExportReport, export_folder
from compressor.export.model_card import write_model_card

__all__ = ["ExportReport", "export_folder", "write_graph", "write_model_card"]
