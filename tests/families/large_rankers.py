"""Tiny random T5 and decoder rankers as transformers writes them, over bytes, a few words and the marks of chats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.families.stock_models import randomized

PAD, EOS, MARKS = "<pad>", "</s>", ("<|im_start|>", "<|im_end|>")
WORDS = ("true", "false", "yes", "no", "▁odd")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(*, appends_eos: bool = False, pad: str = PAD) -> Any:
    """Return a byte-level tokenizer that knows a few whole words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    merges = [(word[:end], word[end]) for word in WORDS[:4] for end in range(1, len(word))]
    pieces = [first + second for first, second in merges]
    texts = [PAD, EOS, *MARKS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *pieces, WORDS[4]]
    tokens = {text: number for number, text in enumerate(texts)}
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if appends_eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {EOS}", special_tokens=[(EOS, tokens[EOS])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token=EOS, extra_special_tokens=list(MARKS)
    )


def _shape(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8,
        "num_key_value_heads": 1, "vocab_size": len(build_tokenizer()), "pad_token_id": 0, "eos_token_id": 1,
        "bos_token_id": None, "max_position_embeddings": 2048, **more,
    }  # fmt: skip


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    """Save a model with random weights, and its tokenizer."""
    randomized(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_t5(folder: Path) -> Path:
    """Save a T5, as monoT5 is one."""
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = build_tokenizer(appends_eos=True)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return save(T5ForConditionalGeneration(config), tokenizer, folder)


def build_qwen3(folder: Path, *, chat: bool = True, **more: Any) -> Path:
    """Save a Qwen3 decoder, as Qwen3-Reranker is one; ``more`` are settings of its shape."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT if chat else None
    return save(Qwen3ForCausalLM(Qwen3Config(**_shape(**more))), tokenizer, folder)


def build_gpt2(folder: Path) -> Path:
    """Save a GPT-2: learned positions, and a tokenizer that ends what it reads."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = build_tokenizer(appends_eos=True)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1,
        pad_token_id=0,
    )  # fmt: skip
    return save(GPT2LMHeadModel(config), tokenizer, folder)


def build_llama_head(folder: Path, *, n_logits: int = 1) -> Path:
    """Save a Llama with a scoring head, as RankLLaMA is one, whose padding is its end of text."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(**_shape(num_labels=n_logits, pad_token_id=1))
    return save(LlamaForSequenceClassification(config), build_tokenizer(pad=EOS), folder)
