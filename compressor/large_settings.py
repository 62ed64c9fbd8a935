"""Large rankers as a recipe asks for them: decoders and T5 models that Hugging Face runs, and how each is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from compressor.data_reference import DataReference
from compressor.records import Record

Scoring = Literal["label_tokens", "head", "first_token"]
Precision = Literal["fp32", "bf16", "int8", "int4", "gptq"]
PLACES: Final = ("query", "document", "bos", "eos")
PLACE: Final = re.compile(r"\{([a-z_]+)\}")
MAX_WINDOW: Final = 26  # letters
_WINDOWS: Final = (20, 10, "ranks")  # as RankGPT and FIRST have them


class PairPrompt(NamedTuple):
    """How a published ranker is asked about a pair.

    Attributes:
        text: with ``{query}``, ``{document}`` and perhaps ``{bos}`` and ``{eos}``, the tokenizer's own tokens.
        labels: the words whose logits give the score; none for a scoring head.
        max_length: most tokens of a prompt, as its authors had it.
    """

    text: str
    labels: tuple[str, ...]
    max_length: int


PROMPTS: Mapping[str, PairPrompt] = MappingProxyType({
    "monot5": PairPrompt("Query: {query} Document: {document} Relevant:", ("true", "false"), 512),
    "rankt5": PairPrompt("Query: {query} Document: {document}", ("<extra_id_10>",), 512),
    "qwen3_reranker": PairPrompt(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
        "<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ("yes", "no"),
        8192,
    ),
    "rankllama": PairPrompt("{bos}query: {query}{bos}document: {document}", (), 512),
})  # fmt: skip
"""monoT5 (arXiv 2003.06713), RankT5 (arXiv 2210.10634), Qwen3-Reranker (arXiv 2506.05176), RankLLaMA (arXiv
2310.08319)."""


class LargeRanker(Record):
    """A decoder or T5 ranker that stays a Hugging Face model: it scores, and is not compressed.

    ``large``: a folder with safetensors, or a hub id pinned to a commit: ``organization/model@COMMIT``, 40 hex digits.
    ``scoring``: ``label_tokens``, the logit of the first label less that of the second at one position (monoT5,
    Qwen3-Reranker), or the logit of the only label (RankT5); ``head``, a decoder's scoring head of one logit at its
    last token (RankLLaMA); ``first_token``, FIRST (arXiv 2406.15657): a window of documents with letters, ranked by the
    logits of the letters where the answer would begin. ``auto``: what the checkpoint's class says, never the last.
    ``prompt``: ``monot5``, ``rankt5``, ``qwen3_reranker``, ``rankllama``, or text with ``{query}`` and ``{document}``
    (and ``{bos}``, ``{eos}``). ``auto``: monot5 for a T5, qwen3_reranker for a Qwen3 decoder; others have to be named.
    ``labels``: one word or two, relevant first, each one token; by default the prompt's.
    ``precision``: of the weights. ``int8`` and ``int4`` (NF4) through bitsandbytes, ``gptq`` (4 bits) through optimum.
    ``calibration``: for gptq, data whose prompts a float checkpoint is quantized on; once, then it is kept.
    ``max_length``: most tokens of a prompt, by default the authors' (512 for a prompt of your own, 4096 for windows).
    Documents are cut to fit, prompts never.
    ``window``, ``stride``: of first_token: documents at once, and how far the window slides towards the top.
    ``list_scores``: of first_token: ``ranks``, minus the logarithm of the final rank; ``logits``, those of the letters,
    for lists of one window.
    ``batch_tokens``: tokens read at once, padding included; changes speed and memory alone.
    """

    large: str = Field(min_length=1)
    scoring: Literal["auto"] | Scoring = "auto"
    prompt: str = Field(default="auto", min_length=1)
    labels: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=2)
    precision: Precision = "fp32"
    calibration: DataReference | None = None
    max_length: PositiveInt | None = None
    window: int = Field(default=_WINDOWS[0], ge=2, le=MAX_WINDOW)
    stride: PositiveInt = _WINDOWS[1]
    list_scores: Literal["ranks", "logits"] = _WINDOWS[2]
    batch_tokens: PositiveInt = 16384

    @field_validator("prompt")
    @classmethod
    def _has_places(cls, value: str) -> str:
        if value == "auto" or value in PROMPTS:
            return value
        found = PLACE.findall(value)
        if found.count("document") != 1 or found.count("query") < 1:
            names = ", ".join(PROMPTS)
            raise ValueError(f"write {names}, or text with {{query}}, and {{document}} once, where they are to stand")
        if unknown := sorted(set(found) - set(PLACES)):
            raise ValueError(f"{{{unknown[0]}}} stands for nothing; places: {', '.join(PLACES)}")
        return value

    @field_validator("labels")
    @classmethod
    def _differ(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value and (len(set(value)) < len(value) or not all(value)):
            raise ValueError("two different words, or one")
        return value

    @model_validator(mode="after")
    def _settings_have_a_use(self) -> Self:
        if self.scoring == "first_token" and (self.prompt != "auto" or self.labels):
            raise ValueError("first_token has a prompt and labels of its own: take 'prompt' and 'labels' away")
        if self.scoring == "head" and self.labels:
            raise ValueError("a scoring head reads no labels: take 'labels' away")
        if self.scoring != "first_token" and (self.window, self.stride, self.list_scores) != _WINDOWS:
            raise ValueError("window, stride and list_scores are for 'scoring: first_token'")
        if self.stride > self.window:
            raise ValueError("a stride beyond the window would leave documents out")
        if self.calibration and self.precision != "gptq":
            raise ValueError("only 'precision: gptq' is calibrated: take 'calibration' away")
        return self

    @property
    def is_listwise(self) -> bool:
        """Whether a score depends on the other documents of its list."""
        return self.scoring == "first_token"

    @property
    def short_name(self) -> str:
        """The model's name without its place and commit, and the precision where it is not fp32."""
        name = Path(self.large.partition("@")[0]).name
        return name if self.precision == "fp32" else f"{name} ({self.precision})"

    def placed(self, base: Path) -> Self:
        """Return the settings with paths made absolute; hub ids stay.

        Raises:
            InputError: there is no such calibration data.
        """
        path = (base / Path(self.large).expanduser()).resolve()
        changes: dict[str, object] = {"large": str(path)} if path.exists() else {}
        if self.calibration:
            changes["calibration"] = self.calibration.resolved(base)
        return self.model_copy(update=changes)
