"""Both doors to Hugging Face: checkpoints become rankers, and rankers that still can become checkpoints."""

from compressor.families.start import load_start, peek_start
from compressor.families.stock import can_be_stock, stock_checkpoint, stock_config
from compressor.families.teacher import load_teacher, peek_teacher, teacher_fingerprint, token_fingerprint

__all__ = [
    "can_be_stock", "load_start", "load_teacher", "peek_start", "peek_teacher", "stock_checkpoint", "stock_config",
    "teacher_fingerprint", "token_fingerprint",
]  # fmt: skip
