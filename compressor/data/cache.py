"""The folder for what can be computed again: built-in collections and first-stage candidates."""

from __future__ import annotations

import os
from pathlib import Path

from compressor.errors import Fault, InputError


def cache_folder(*parts: str) -> Path:
    """Return a folder below ``$RANKPRESS_CACHE``, else ``$XDG_CACHE_HOME/rankpress``, else ``~/.cache/rankpress``.

    The folder is made when it is missing. Everything in it may be deleted at any time.

    Raises:
        InputError: it cannot be made or written to.
    """
    own, shared = os.environ.get("RANKPRESS_CACHE"), os.environ.get("XDG_CACHE_HOME")
    root = Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "rankpress"
    folder = root.joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fault = Fault(
            source=folder,
            found=f"a cache folder that cannot be made ({error.strerror})",
            fix="name a folder that can be written to in RANKPRESS_CACHE",
        )
        raise InputError(fault) from None
    if not os.access(folder, os.W_OK):
        fix = "name a folder that can be written to in RANKPRESS_CACHE"
        raise InputError(Fault(source=folder, found="a cache folder without the right to write", fix=fix))
    return folder
