"""The kinds of files that a teacher comes from, each with the same three answers: shape, ranker, files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

from tokenizers import Tokenizer

from compressor.errors import Fault, InputError
from compressor.families.catalogue import FAMILIES
from compressor.families.checkpoint import INDEX, SINGLE, Checkpoint, weight_files
from compressor.families.config import Config
from compressor.families.onnx_import import OnnxSource, Pool, check_scores, external_files, read_onnx
from compressor.families.sentence_folder import read_modules
from compressor.families.stock import stock_config
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import Family, RankerSpec, SimilarityHead
from compressor.ranker.store import TOKENIZER_FILES, load_ranker, read_spec, read_tokenizer_files
from compressor.runtime.tokenizer import PairTokenizer
from compressor.runtime.tokenizer_settings import SETTINGS_FILES


class Source(Protocol):
    """Something that a ranker can be read from."""

    def spec(self) -> RankerSpec:
        """Describe the ranker without converting weights."""

    def read(self) -> tuple[Ranker, dict[str, Any]]:
        """Read the ranker; the notes say how."""

    def files(self) -> list[Path]:
        """Return the files that its scores depend on."""

    def tokenizer(self) -> PairTokenizer:
        """Return its tokenizer."""


@dataclass(frozen=True, kw_only=True)
class StoredSource:
    """A folder that `save_ranker` wrote."""

    folder: Path

    def spec(self) -> RankerSpec:
        return read_spec(self.folder / "spec.json")

    def read(self) -> tuple[Ranker, dict[str, Any]]:
        return load_ranker(self.folder), {"format": "rankpress"}

    def files(self) -> list[Path]:
        return _existing(self.folder, "spec.json", SINGLE, *TOKENIZER_FILES)

    def tokenizer(self) -> PairTokenizer:
        return PairTokenizer.from_files(read_tokenizer_files(self.folder), source=self.folder)


@dataclass(frozen=True, kw_only=True)
class CheckpointSource:
    """A stock checkpoint, or what sentence-transformers made of one.

    Attributes:
        folder: where it lies.
        is_encoder: whether to leave out the scoring head, if there is one.
    """

    folder: Path
    is_encoder: bool = False

    def spec(self) -> RankerSpec:
        return self._limited(self.checkpoint())

    def read(self) -> tuple[Ranker, dict[str, Any]]:
        checkpoint = self.checkpoint()
        spec = self._limited(checkpoint)
        config = dict(checkpoint.config)
        modules = read_modules(self.folder)
        if modules and modules.activation:
            config["sentence_transformers"] = {"activation_fn": modules.activation}
        tokenizer_files = read_tokenizer_files(checkpoint.folder)
        _check_vocabulary(spec, tokenizer_files, checkpoint.folder)
        weights = checkpoint.weights(spec)
        ranker = Ranker(spec=spec, weights=weights, tokenizer_files=tokenizer_files, source_config=config)
        return ranker, {"format": "safetensors"}

    def files(self) -> list[Path]:
        folder = self.checkpoint().folder
        beside = _existing(self.folder, "modules.json", "config_sentence_transformers.json", "1_Pooling/config.json")
        own = _existing(folder, "config.json", INDEX, "sentence_bert_config.json", *TOKENIZER_FILES)
        return [*beside, *own, *weight_files(folder)]

    def tokenizer(self) -> PairTokenizer:
        folder = self.checkpoint().folder
        files = read_tokenizer_files(folder)
        files |= _contents(folder, *SETTINGS_FILES) | _contents(self.folder, "modules.json")
        return PairTokenizer.from_files(files, source=folder)

    def checkpoint(self) -> Checkpoint:
        """Open the transformer's own folder."""
        modules = read_modules(self.folder)
        folder, similarity = (modules.encoder, modules.similarity) if modules else (self.folder, None)
        if self.is_encoder and similarity is None:
            similarity = SimilarityHead(pool="first")
        return Checkpoint.open(folder, similarity)

    def _limited(self, checkpoint: Checkpoint) -> RankerSpec:
        """Cut the longest row to what the tokenizer's files say."""
        spec = checkpoint.spec()
        return spec.changed(max_length=min(spec.max_length, self.tokenizer().max_length))


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """An ONNX file and the tokenizer beside it.

    Attributes:
        path: the file.
        folder: where the tokenizer's files and, where there is one, ``config.json`` lie.
        tokenizer_files: the tokenizer's contents; read from the folder where empty.
        config: what the config says beside the shape; read from the folder where empty.
        pool: for a graph that gives an encoder's states, what a bi-encoder makes of them; None for a cross-encoder.
    """

    path: Path
    folder: Path
    tokenizer_files: Mapping[str, bytes] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    pool: Pool | None = None

    def as_encoder(self) -> Self:
        """Return the same file, read as an encoder."""
        return replace(self, pool="first")

    def spec(self) -> RankerSpec:
        return self._spec(read_onnx(self.path, is_encoder=self.pool is not None))

    def read(self) -> tuple[Ranker, dict[str, Any]]:
        source = read_onnx(self.path, is_encoder=self.pool is not None)
        spec, weights = self._spec(source), source.weights()
        tokenizer_files = self._tokenizer_files()
        _check_vocabulary(spec, tokenizer_files, self.folder)
        difference = check_scores(source, spec, weights)
        ranker = Ranker(
            spec=spec,
            weights=weights,
            tokenizer_files=tokenizer_files,
            source_config=stock_config(spec, self._config()),
        )
        kind = "onnx int8, weight × scale" if source.was_quantized else "onnx"
        return ranker, {"format": kind, "largest_difference_to_float_graph": difference}

    def files(self) -> list[Path]:
        beside = [self.path.parent / name for name in sorted(external_files(self.path))]
        return [self.path, *beside, *_existing(self.folder, "config.json", *TOKENIZER_FILES)]

    def tokenizer(self) -> PairTokenizer:
        config = self._config()
        settings = {"config.json": json.dumps(config).encode()} if config else {}
        return PairTokenizer.from_files({**settings, **self._tokenizer_files()}, source=self.folder)

    def _spec(self, source: OnnxSource) -> RankerSpec:
        config, tokenizer = self._config(), self.tokenizer()
        family: Family | None = config["model_type"] if config.get("model_type") in FAMILIES else None
        spec = source.spec(family=family, pad_id=tokenizer.pad_id, max_length=tokenizer.max_length, pool=self.pool)
        # A graph for inference has no dropout left; training takes what the config, or the family's default, says.
        stock = FAMILIES[spec.family].read(Config(config, self.folder / "config.json"))
        return spec.changed(dropout=stock.dropout)

    def _tokenizer_files(self) -> dict[str, bytes]:
        return dict(self.tokenizer_files) or read_tokenizer_files(self.folder)

    def _config(self) -> dict[str, Any]:
        if self.config:
            return dict(self.config)
        content = _contents(self.folder, "config.json").get("config.json", b"{}")
        config = json.loads(content)
        return config if isinstance(config, dict) else {}


def _check_vocabulary(spec: RankerSpec, tokenizer_files: Mapping[str, bytes], folder: Path) -> None:
    n_tokens = Tokenizer.from_buffer(tokenizer_files["tokenizer.json"]).get_vocab_size()
    rows = spec.embeddings.tokens.rows
    if n_tokens > rows:
        fix = "the tokenizer belongs to another model"
        found = f"a tokenizer of {n_tokens} tokens"
        raise InputError(Fault(source=folder, found=found, allowed=f"at most {rows}, the rows of the table", fix=fix))


def _existing(folder: Path, *names: str) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def _contents(folder: Path, *names: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in _existing(folder, *names)}
