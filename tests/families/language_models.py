"""Tiny random language models as transformers writes them: a T5, and a GPT-2 whose words include a line break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.families.stock_models import randomized
from tests.tiny import WORDS

SPECIALS = ("[PAD]", "</s>", "[UNK]")
PLAIN_WORDS = tuple(word for word in WORDS if len(word) > 3)[:20]


def _tokenizer(words: tuple[str, ...], ending: str) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = {token: index for index, token in enumerate((*SPECIALS, *words))}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="[UNK]"))  # noqa: S106  # a token of text, no secret
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if ending:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {ending}", special_tokens=[(ending, tokens[ending])]
        )
    names = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIALS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def build_t5(folder: Path) -> Path:
    """Save a T5 of 20 words, random."""
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = _tokenizer(PLAIN_WORDS, "</s>")
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    randomized(T5ForConditionalGeneration(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_decoder(folder: Path, n_positions: int = 1024) -> Path:
    """Save a GPT-2 of 20 words and a line break, random."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = _tokenizer((*PLAIN_WORDS, "\n"), "")
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=n_positions, n_embd=16, n_layer=2, n_head=2, bos_token_id=1,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    randomized(GPT2LMHeadModel(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
