"""rankpress: from a teacher ranker to a small fast one, at a proven loss."""

__version__ = "0.1.0"
