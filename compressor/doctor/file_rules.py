"""Rules about files that several consumers open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compressor.doctor.findings import Reason, obstacle
from compressor.doctor.folder import RankerFolder


def opened(
    folder: RankerFolder, names: Sequence[str], fix: str = "save the checkpoint's tokenizer into the folder"
) -> Iterator[Reason]:
    """Yield which of the files that a consumer opens are missing or broken; the tokenizer has rules of its own."""
    for name in names:
        if not folder.has(name):
            yield obstacle("not there, and it is opened", file=name, fix=fix)
        elif name != "tokenizer.json" and (fault := folder.fault_of(name)):
            yield obstacle(fault, file=name, fix="write it again")


def pair_template_read(folder: RankerFolder) -> Iterator[Reason]:
    """Yield why the tokenizer's file makes no rows of pairs."""
    if isinstance(folder.pair_template, str):
        yield obstacle(folder.pair_template, file="tokenizer.json", fix="save the checkpoint's tokenizer again")
