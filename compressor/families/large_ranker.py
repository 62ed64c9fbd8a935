"""Decoder and T5 rankers run by transformers, scored at one position as their papers have it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from compressor.errors import Fault, InputError, RunError
from compressor.families.large_files import SOURCE, LargeFiles
from compressor.families.large_precision import (
    check_precision,
    gptq_config,
    load_options,
    save_quantized,
    stored_precision,
)
from compressor.families.large_prompts import PromptWriter, label_ids, pair_prompt
from compressor.large_settings import LargeRanker
from compressor.runtime.batching import token_budget_batches

_NEVER = -1  # no token's id


class LargeModel:
    """A large ranker's weights and tokenizer on the best device at hand, and its logits at one position.

    Args:
        files: of the checkpoint, weights included.
        settings: precision and batches.
        quantization: for GPTQ on a float checkpoint, how.

    Raises:
        InputError: the checkpoint cannot be read, lacks weights, or has a head of several logits; the device or a
            package does not do the precision.
    """

    def __init__(self, files: LargeFiles, settings: LargeRanker, quantization: Any = None) -> None:
        self.files, self.settings = files, settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = open_tokenizer(files)
        self._pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        self._model = self._load(quantization)
        accepted = inspect.signature(self._model.forward).parameters
        self._takes_positions = "position_ids" in accepted and not files.is_encoder_decoder
        self._keeps_logits = "logits_to_keep" in accepted
        if files.has_head:
            # Its class takes the last token that is no padding, by id: where a prompt ends with the padding's id, the
            # wrong one. Rows are padded on the left here, so that the last token is the last column.
            self._model.config.get_text_config().pad_token_id = _NEVER
        elif files.is_encoder_decoder:
            self._start_id = self._decoder_start()

    def save(self, folder: Path) -> None:
        """Keep the model, as it was quantized, whole."""
        save_quantized(self._model, self.tokenizer, folder)

    def logits(
        self, rows: Sequence[Sequence[int]], columns: Sequence[int], advance: Callable[[int], object]
    ) -> np.ndarray:
        """Return logits at the position where an answer would begin, float32 ``[n, len(columns)]``.

        Rows of like length share a batch. With int8 each row is alone: LLM.int8() chooses over a whole batch which
        columns of activations it does not round, so that a row's logits would depend on its mates.

        Args:
            rows: tokens of each prompt.
            columns: of the vocabulary; a scoring head has the column 0.
            advance: told after each batch how many more rows are done.

        Raises:
            RunError: the device's memory does not hold a batch.
        """
        found = np.empty((len(rows), len(columns)), dtype=np.float32)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        budget = 1 if self.settings.precision == "int8" else self.settings.batch_tokens
        with torch.inference_mode():
            for batch in token_budget_batches(lengths, budget):
                try:
                    last = self._last([rows[row] for row in batch])
                except torch.OutOfMemoryError:
                    said = f"{len(batch)} prompts of up to {int(lengths[batch].max())} tokens at once"
                    raise RunError(f"{self.settings.large}: no memory for {said}; lower batch_tokens") from None
                found[batch] = last[:, list(columns)].float().cpu().numpy()
                advance(len(batch))
        return found

    def most_tokens(self, usual: int) -> int:
        """Return how long prompts may be: as asked for, or as usual where a decoder has positions for that many.

        Raises:
            InputError: more are asked for than there are positions. (T5's, which are relative, have no end.)
        """
        asked = self.settings.max_length
        room = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if not isinstance(room, int) or self.files.is_encoder_decoder:
            return asked or usual
        if asked and asked > room:
            found = f"{asked}, and {room} positions of {self.files.folder.name}"
            raise InputError(Fault(source=SOURCE, where="max_length", found=found, allowed=f"at most {room}"))
        return asked or min(usual, room)

    def _last(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return the logits at the last token of each row, or of the decoder's first step, ``[B, columns]``."""
        inputs = self._padded(rows)
        if self.files.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.full((len(rows), 1), self._start_id, device=self.device)
        if self._takes_positions:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        if self._keeps_logits:
            inputs["logits_to_keep"] = 1
        logits: Tensor = self._model(**inputs, use_cache=False).logits
        return logits if self.files.has_head else logits[:, -1]

    def _padded(self, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Return ids and mask ``[B, S]``, padded on the right for an encoder and on the left for a decoder."""
        longest = max(len(row) for row in rows)
        ids = torch.full((len(rows), longest), self._pad_id)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            span = slice(0, len(row)) if self.files.is_encoder_decoder else slice(longest - len(row), longest)
            ids[place, span], mask[place, span] = torch.tensor(list(row)), 1
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def _load(self, quantization: Any) -> Any:
        check_precision(self.settings, self.files)
        is_stored = stored_precision(self.files) is not None
        options = load_options(self.settings.precision, self.device, is_stored=is_stored)
        if quantization is not None:
            options["quantization_config"] = quantization
        kind = AutoModelForSequenceClassification if self.files.has_head else AutoModelForCausalLM
        kind = AutoModelForSeq2SeqLM if self.files.is_encoder_decoder else kind
        model, report = loaded(kind, self.files, use_safetensors=True, output_loading_info=True, **options)
        source = self.files.folder
        if missing := sorted(report["missing_keys"]):
            found = f"{len(missing)} weights of a {type(model).__name__} missing ({missing[0]}, ...)"
            raise InputError(Fault(source=source, found=found, fix="a head that is made up would score at random"))
        if self.files.has_head and model.config.num_labels != 1:
            raise InputError(Fault(source=source, found=f"a head of {model.config.num_labels} logits", allowed="1"))
        if self.files.has_head and not hasattr(model, "score"):
            found = f"{type(model).__name__}, which does not score at its last token"
            raise InputError(Fault(source=source, found=found, allowed="decoders with a scoring head"))
        return model.eval()

    def _decoder_start(self) -> int:
        start = self._model.config.decoder_start_token_id
        if start is None:
            source = self.files.folder / "config.json"
            raise InputError(Fault(source=source, where="decoder_start_token_id", found="none"))
        return int(start)


class PairScorer:
    """Scores pairs by label tokens or by a scoring head.

    Of two labels the score is the difference of their logits: its log-sigmoid is monoT5's log-softmax, its sigmoid
    Qwen3-Reranker's probability, in the same order, and it does not run flat where those round to 0 and 1.

    Args:
        model: the ranker.
        settings: prompt and labels.

    Raises:
        InputError: prompt, labels and checkpoint do not fit.
    """

    def __init__(self, model: LargeModel, settings: LargeRanker) -> None:
        scoring = model.files.scoring(settings)
        prompt = pair_prompt(settings, model.files, scoring)
        self._model = model
        self._columns = [0] if scoring == "head" else label_ids(prompt.labels, model.tokenizer)
        if len(set(self._columns)) < len(self._columns):
            found = f"{' and '.join(prompt.labels)}, which are one token"
            raise InputError(Fault(source=SOURCE, where="labels", found=found))
        is_decoder = not model.files.is_encoder_decoder
        max_length = model.most_tokens(prompt.max_length)
        self.writer = PromptWriter(model.tokenizer, prompt.text, max_length, is_decoder=is_decoder)

    def score(self, pairs: Sequence[tuple[str, str]], advance: Callable[[int], object]) -> np.ndarray:
        """Return raw scores of (query, document) texts, float32 ``[n]``."""
        logits = self._model.logits(self.writer.tokens(pairs), self._columns, advance)
        return logits[:, 0] - logits[:, 1] if len(self._columns) == 2 else logits[:, 0]


def open_tokenizer(files: LargeFiles) -> Any:
    """Return the checkpoint's tokenizer.

    Raises:
        InputError: transformers cannot read it.
    """
    return loaded(AutoTokenizer, files)


def calibration_prompts(files: LargeFiles, settings: LargeRanker, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return the texts that GPTQ is calibrated on: the prompts of pairs, as the ranker is asked.

    Raises:
        InputError: prompt and checkpoint do not fit.
    """
    prompt = pair_prompt(settings, files, files.scoring(settings))
    writer = PromptWriter(open_tokenizer(files), prompt.text, prompt.max_length, is_decoder=True)
    return [writer.text(query, document) for query, document in pairs]


def quantize_once(files: LargeFiles, settings: LargeRanker, prompts: Sequence[str], folder: Path) -> None:
    """Round a float checkpoint by GPTQ and keep it in a folder.

    Raises:
        InputError: packages or the device do not do it.
    """
    max_length = pair_prompt(settings, files, files.scoring(settings)).max_length
    config = gptq_config(prompts, open_tokenizer(files), max_length)
    LargeModel(files, settings, config).save(folder)


def loaded(kind: Any, files: LargeFiles, **options: Any) -> Any:
    """Read something with transformers: files alone, no code of the checkpoint's.

    Raises:
        InputError: it cannot be read, or a package or device that the precision wants is missing.
    """
    try:
        return kind.from_pretrained(files.folder, trust_remote_code=False, local_files_only=True, **options)
    except ImportError as error:
        fix = "pip install 'rankpress[large]'"
        raise InputError(
            Fault(source=files.folder, found=f"a model that needs a package ({_first_line(error)})", fix=fix)
        ) from None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        found = f"a model that transformers cannot load so ({_first_line(error)})"
        raise InputError(Fault(source=files.folder, found=found)) from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
