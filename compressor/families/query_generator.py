"""Language models that write queries for documents: sequence-to-sequence ones, and decoders behind a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from compressor.errors import Fault, InputError
from compressor.families.checkpoint import refuse_pickles, weight_files
from compressor.families.hub import fetch, is_hub_id
from compressor.query_settings import DOCUMENT, QueryGenerator
from compressor.storage import sha256_file, sha256_json

_SOURCE = "make_queries.generator"
_LOADERS = "AutoModelForSeq2SeqLM (or AutoModelForCausalLM)"
_ALLOWED = "a folder with config.json and safetensors, or a hub id (organization/model)"
_SEAMS = 4  # tokens that a prompt and a document may have together beyond those of each
# In the manner of InPars (arXiv 2202.05144), with documents of our own.
_PROMPT = f"""\
Example 1:
Document: Bread dough rises because yeast turns sugar into carbon dioxide, which is caught between strands of gluten. In
a warm kitchen the dough doubles within an hour; in a refrigerator it takes a night, and gains in taste.
Relevant Query: how long does bread dough take to rise

Example 2:
Document: The function opens a file and returns its lines as a list. Line ends are kept. A file that does not exist
raises FileNotFoundError, and one that is not valid UTF-8 raises UnicodeDecodeError.
Relevant Query: which error is raised when a file is missing

Example 3:
Document: The harbor bridge was finished in 1932 after eight years of work. Its arch spans 503 meters, and six million
rivets hold it together, most of them driven by hand.
Relevant Query: how wide is the arch of the harbor bridge

Example 4:
Document: {DOCUMENT}
Relevant Query:"""


@dataclass(frozen=True, kw_only=True)
class Order:
    """One query to write.

    Attributes:
        document: the document's text.
        seed: of this query's sampling: equal orders give equal queries, whatever else is written along.
    """

    document: str
    seed: int


def generator_folder(model: str, *, with_weights: bool = True) -> Path:
    """Return the folder of a model, downloaded where it is on the hub.

    Raises:
        InputError: there is no such model, or one without safetensors.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(Fault(source=_SOURCE, found=f"{path}, a folder without config.json", allowed=_ALLOWED))
        refuse_pickles(path, _LOADERS)
        return path
    if path.exists() or not is_hub_id(model):
        raise InputError(Fault(source=_SOURCE, found=f"{model!r}, no folder and no hub id", allowed=_ALLOWED))
    if not with_weights:
        return path  # whether it is there shows when it is fetched
    try:
        folder = fetch(model, with_weights=True)
    except InputError as error:
        raise InputError([replace(one, source=_SOURCE) for one in error.faults]) from None
    refuse_pickles(folder, _LOADERS, "FOLDER", ", or name a converted one among its pull requests (MODEL@refs/pr/N)")
    return folder


def generator_fingerprint(folder: Path) -> str:
    """Return a SHA-256 over the files of a model that its texts depend on."""
    small = [path for ending in ("json", "txt", "model") for path in folder.glob(f"*.{ending}")]
    return sha256_json(sorted([path.name, sha256_file(path)] for path in {*small, *weight_files(folder)}))


class QueryWriter:
    """A model that writes queries.

    Sampling is by Gumbel noise of each query's own seed (Gumbel-max is a draw from the softmax), so that a query does
    not depend on its batch but for the rounding of sums, nor on where a killed run was taken up again.

    Args:
        folder: the model's.
        settings: how it is asked.

    Raises:
        InputError: the model is no language model that transformers can read without remote code, or its prompt and
            documents do not fit.
    """

    def __init__(self, folder: Path, settings: QueryGenerator) -> None:
        self._settings, self._folder = settings, folder
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = self._loaded(AutoConfig)
        self._is_decoder = not getattr(config, "is_encoder_decoder", False)
        self._tokenizer = self._loaded(AutoTokenizer, padding_side="left" if self._is_decoder else "right")
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token or self._tokenizer.unk_token
        self._prompt = settings.prompt or (_PROMPT if self._is_decoder else DOCUMENT)
        self._n_prompt = len(self._tokenizer(self._prompt.replace(DOCUMENT, ""))["input_ids"]) + _SEAMS
        self._refuse_too_long(config)
        self._model = self._load_model()

    def write(self, orders: Sequence[Order], advance: Callable[[int], object]) -> Iterator[list[tuple[int, str]]]:
        """Yield, batch by batch, each written query with the number of its order; empty where none came to its end.

        Orders of like length share a batch, the longest first.

        Args:
            orders: what to write.
            advance: told after each batch how many more are done.
        """
        cut = [self._cut(order.document) for order in orders]
        for batch in self._batches([n_tokens for _, n_tokens in cut]):
            prompts = [self._prompt.replace(DOCUMENT, cut[one][0]) for one in batch]
            texts = self._written(prompts, [orders[one].seed for one in batch])
            yield list(zip(batch, texts, strict=True))
            advance(len(batch))

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        order = sorted(range(len(lengths)), key=lambda one: (-lengths[one], one))
        start = 0
        while start < len(order):
            row = self._n_prompt + lengths[order[start]] + self._settings.max_new_tokens
            size = max(1, self._settings.batch_tokens // row)
            yield order[start : start + size]
            start += size

    def _written(self, prompts: list[str], seeds: list[int]) -> list[str]:
        rows = self._tokenizer(prompts, padding=True, return_tensors="pt")
        inputs = {name: rows[name].to(self._device) for name in ("input_ids", "attention_mask")}
        n_before = inputs["input_ids"].shape[1] if self._is_decoder else 1
        line_end = _LineEnd(self._text, n_before)
        with torch.inference_mode():
            found: Tensor = self._model.generate(
                **inputs,
                logits_processor=LogitsProcessorList([_Noise(seeds, self._settings)]),
                stopping_criteria=StoppingCriteriaList([line_end]),
            )
        return [self._whole(row[n_before:].tolist()) for row in found]

    def _whole(self, tokens: list[int]) -> str:
        """Return the first line, if it came to an end: by a line break, or by the model's own token for it."""
        text = self._text(tokens)
        line, broken, _ = text.partition("\n")
        is_ended = bool(broken) or bool(self._ends.intersection(tokens))
        return " ".join(line.split()) if is_ended else ""

    def _text(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)).lstrip()

    def _cut(self, document: str) -> tuple[str, int]:
        """Return a document's beginning, and how many tokens it has."""
        most, is_fast = self._settings.max_document_tokens, self._tokenizer.is_fast
        row = self._tokenizer(
            document, add_special_tokens=False, truncation=True, max_length=most, return_offsets_mapping=is_fast
        )
        ids = row["input_ids"]
        if len(ids) < most:
            return document, len(ids)
        return document[: row["offset_mapping"][-1][1]] if is_fast else str(self._tokenizer.decode(ids)), len(ids)

    def _refuse_too_long(self, config: Any) -> None:
        # T5's relative positions have no limit, whatever its config says.
        limits = ("max_position_embeddings", "n_positions")
        text = config.get_text_config()
        room = next((getattr(text, name) for name in limits if isinstance(getattr(text, name, None), int)), None)
        if room is None or str(text.model_type).endswith("t5"):
            return
        own = self._n_prompt + self._settings.max_document_tokens
        needed = own + self._settings.max_new_tokens if self._is_decoder else own
        if needed > room:
            sizes = f"documents of {self._settings.max_document_tokens}, queries of {self._settings.max_new_tokens}"
            found = f"a prompt of {self._n_prompt} tokens, {sizes}, and {room} positions for all of them"
            fix = "lower max_document_tokens or max_new_tokens, or give a shorter prompt"
            raise InputError(Fault(source=_SOURCE, where="max_document_tokens", found=found, fix=fix))

    def _load_model(self) -> Any:
        kind = AutoModelForCausalLM if self._is_decoder else AutoModelForSeq2SeqLM
        dtype = torch.float32 if self._device.type == "cpu" else "auto"
        model, report = self._loaded(kind, use_safetensors=True, dtype=dtype, output_loading_info=True)
        if missing := sorted(report["missing_keys"]):
            found = f"{self._folder.name}, which lacks {len(missing)} weights of a language model ({missing[0]}, ...)"
            raise InputError(Fault(source=_SOURCE, found=found, allowed="a model that writes text"))
        own = model.generation_config
        ends = own.eos_token_id if own.eos_token_id is not None else self._tokenizer.eos_token_id
        self._ends = frozenset(ends if isinstance(ends, list) else [ends] if ends is not None else [])
        # Nothing of the model's own taste: beams, penalties and temperatures would come on top of the settings.
        model.generation_config = GenerationConfig(
            max_new_tokens=self._settings.max_new_tokens,
            do_sample=False,
            num_beams=1,
            bos_token_id=own.bos_token_id,
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=self._tokenizer.pad_token_id,
            decoder_start_token_id=own.decoder_start_token_id,
            forced_bos_token_id=own.forced_bos_token_id,
        )
        return model.to(self._device).eval()

    def _loaded(self, kind: Any, **options: Any) -> Any:
        try:
            return kind.from_pretrained(self._folder, trust_remote_code=False, local_files_only=True, **options)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            found = f"{self._folder}, which transformers cannot read as a language model ({reason})"
            raise InputError(Fault(source=_SOURCE, found=found, allowed=_ALLOWED)) from None


class _Noise(LogitsProcessor):
    """Adds Gumbel noise to the best ``top_k`` logits of each row, and drops the others: the greatest is a sample."""

    def __init__(self, seeds: Sequence[int], settings: QueryGenerator) -> None:
        self._draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._top_k, self._temperature = settings.top_k, settings.temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best = scores.float().topk(min(self._top_k, scores.shape[1]), dim=1)
        noise = torch.stack(
            [-torch.empty(best.values.shape[1]).exponential_(generator=one).log() for one in self._draws]
        )
        noisy = best.values / self._temperature + noise.to(scores.device)
        return torch.full_like(scores, -torch.inf, dtype=torch.float32).scatter(1, best.indices, noisy)


class _LineEnd(StoppingCriteria):
    """Ends a row behind its first line: what a decoder writes then is its next example."""

    def __init__(self, text: Callable[[list[int]], str], n_before: int) -> None:
        self._text, self._n_before = text, n_before

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        ended = ["\n" in self._text(row[self._n_before :].tolist()) for row in input_ids]
        return torch.tensor(ended, device=input_ids.device)
