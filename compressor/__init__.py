"""rankpress: from a teacher ranker to a small fast one, at a proven loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.runtime import OnnxRanker

__version__ = "0.1.0"
__all__ = ["OnnxRanker", "__version__"]


def __getattr__(name: str) -> Any:
    """Load the runtime on first use, so that importing the package stays free."""
    if name == "OnnxRanker":
        from compressor.runtime import OnnxRanker

        return OnnxRanker
    raise AttributeError(f"module 'compressor' has no attribute {name!r}")
