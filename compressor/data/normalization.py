"""When two texts count as the same: equal words, whatever their case, spacing and punctuation."""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"\w+")


def normalized(text: str) -> str:
    """Return the words of a text, in lower case and single-spaced; a text without words stays as it is, stripped."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold())) or text.strip()
