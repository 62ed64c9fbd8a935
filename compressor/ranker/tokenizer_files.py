"""The files of a tokenizer: what a ranker's folder keeps of them. Imports without torch."""

from __future__ import annotations

from pathlib import Path

from compressor.errors import Fault, InputError

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt",
    "sentencepiece.bpe.model", "spiece.model",
)  # fmt: skip


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Read a folder's tokenizer files; ``tokenizer.json`` must be among them.

    Raises:
        InputError: the folder has no ``tokenizer.json``.
    """
    files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    if "tokenizer.json" not in files:
        raise InputError(
            Fault(
                source=folder,
                found="no tokenizer.json",
                fix="write it with AutoTokenizer.from_pretrained(CHECKPOINT).save_pretrained(FOLDER)",
            )
        )
    return files
