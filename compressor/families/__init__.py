"""Both doors to Hugging Face: checkpoints become rankers, and rankers that still can become checkpoints."""

from compressor.families.adapter_files import adapter_fingerprint, open_adapter
from compressor.families.adapters import check_adapter, merged_weights
from compressor.families.start import load_start, peek_start
from compressor.families.stock import can_be_stock, stock_checkpoint, stock_config
from compressor.families.teacher import load_teacher, peek_teacher, teacher_fingerprint, token_fingerprint

__all__ = [
    "adapter_fingerprint", "can_be_stock", "check_adapter", "load_start", "load_teacher", "merged_weights",
    "open_adapter", "peek_start", "peek_teacher", "stock_checkpoint", "stock_config", "teacher_fingerprint",
    "token_fingerprint",
]  # fmt: skip
