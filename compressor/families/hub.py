"""Checkpoints from the Hugging Face hub: data files only, never code or pickles."""

from __future__ import annotations

import re
from pathlib import Path

from compressor.errors import Fault, InputError

_ID = re.compile(r"(?P<model>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_SMALL = ["*.json", "*.txt", "*.model", "*.jinja"]
_WEIGHTS = ["model*.safetensors", "model.safetensors.index.json"]


def is_hub_id(reference: str) -> bool:
    """Whether a reference has the form ``organization/model`` or ``organization/model@revision``."""
    return _ID.fullmatch(reference) is not None and not reference.startswith(".")


def fetch(reference: str, *, with_weights: bool) -> Path:
    """Return the local folder of a hub model, downloading what is not in the cache yet.

    Args:
        reference: ``organization/model`` or ``organization/model@revision``; ``HF_HUB_OFFLINE`` is honored.
        with_weights: whether safetensors are wanted too.

    Raises:
        InputError: there is no such model, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match = _ID.fullmatch(reference)
    if match is None:
        raise InputError(Fault(source="teacher", found=reference, allowed="organization/model[@revision]"))
    patterns = _SMALL + (_WEIGHTS if with_weights else [])
    try:
        return Path(snapshot_download(match["model"], revision=match["revision"], allow_patterns=patterns))
    except (RepositoryNotFoundError, RevisionNotFoundError):
        found = f"no folder {reference!r} here and no model of this name and revision on the Hugging Face hub"
        fix = "check the spelling; a private model needs HF_TOKEN"
    except LocalEntryNotFoundError:
        found = f"no folder {reference!r} here, and the Hugging Face hub cannot be reached for a model of this name"
        fix = "download it where there is a network and give its folder"
    except (HfHubHTTPError, OSError, ValueError) as error:
        found = f"the model {reference!r}, which the Hugging Face hub did not give ({type(error).__name__})"
        fix = "try again, or give a local folder"
    raise InputError(Fault(source="teacher", found=found, fix=fix))
