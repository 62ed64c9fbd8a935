"""Stock checkpoints, tiny and random, as transformers writes them, and their ONNX exports."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests import tiny

VOCABULARY = len(tiny.vocabulary())

_POST_NORM = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 64, "num_labels": 1,
}  # fmt: skip
_MODERN = {
    **_POST_NORM, "intermediate_size": 24, "num_hidden_layers": 4, "local_attention": 6, "pad_token_id": 0,
    "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3,
}  # fmt: skip

# Name -> model type and config. Every family, and what is particular in it.
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", _POST_NORM),
    "bert_one_segment": ("bert", {**_POST_NORM, "type_vocab_size": 1}),
    "bert_tanh_gelu": ("bert", {**_POST_NORM, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
    "tinybert": ("bert", {**_POST_NORM, "hidden_size": 24, "num_attention_heads": 12, "intermediate_size": 96,
                          "hidden_act": "relu"}),
    "electra_projected": ("electra", {**_POST_NORM, "embedding_size": 8}),
    "electra_plain": ("electra", {**_POST_NORM, "embedding_size": 16}),
    "roberta": ("roberta", {**_POST_NORM, "type_vocab_size": 1, "pad_token_id": 1}),
    "xlm_roberta": ("xlm-roberta", {**_POST_NORM, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}),
    "distilbert": ("distilbert", {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 3, "n_heads": 4, "hidden_dim": 40,
                                  "max_position_embeddings": 64, "num_labels": 1}),
    "modernbert_first": ("modernbert", _MODERN),
    "modernbert_mean": ("modernbert", {**_MODERN, "classifier_pooling": "mean", "classifier_bias": True}),
    "modernbert_biases": ("modernbert", {**_MODERN, "norm_bias": True, "attention_bias": True, "mlp_bias": True,
                                         "layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 2,
                                         "classifier_activation": "silu", "hidden_activation": "relu"}),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Stock:
    """A stock model and the folder it was saved to."""

    folder: Path
    model: Any

    def logits(self, inputs: dict[str, torch.Tensor]) -> np.ndarray:
        known = {"bert": 3, "electra": 3}.get(self.model.config.model_type, 2)
        with torch.inference_mode():
            return self.model(**dict(list(inputs.items())[:known])).logits.numpy()


def randomized(model: Any, seed: int = 0) -> Any:
    """Give every parameter a value that shows: transformers starts biases at zero and matrices very small."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.25
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        parameter.data = noise + 1 if is_norm else noise
    return model.eval()


def tokenizer_files(pad_id: int) -> dict[str, bytes]:
    """Return the tiny tokenizer's files: BERT's, or with the padding token at 1 and one segment, as RoBERTa has it."""
    files = tiny.tokenizer_files(document_segment=0 if pad_id else 1)
    if pad_id:
        tokenizer = json.loads(files["tokenizer.json"])
        swapped = {"[PAD]": 1, "[UNK]": 0}
        tokenizer["model"]["vocab"] |= swapped
        for token in tokenizer["added_tokens"]:
            token["id"] = swapped.get(token["content"], token["id"])
        tokenizer["added_tokens"].sort(key=lambda token: token["id"])
        files["tokenizer.json"] = json.dumps(tokenizer).encode()
        # transformers builds segments by the tokenizer's class, whatever tokenizer.json says.
        config = json.loads(files["tokenizer_config.json"]) | {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"],
        }  # fmt: skip
        files["tokenizer_config.json"] = json.dumps(config).encode()
    return files


def build_stock(name: str, folder: Path) -> Stock:
    """Save one of `CHECKPOINTS` with a tokenizer beside it."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    model_type, fields = CHECKPOINTS[name]
    config = AutoConfig.for_model(model_type, **fields)
    model = randomized(AutoModelForSequenceClassification.from_config(config))
    model.save_pretrained(folder)
    for file, content in tokenizer_files(config.pad_token_id).items():
        (folder / file).write_bytes(content)
    return Stock(folder=folder, model=model)


def ragged_inputs(pad_id: int, *, lengths: tuple[int, ...] = (40, 1, 17, 4, 29), segments: bool = True):
    """Return a padded batch of random token rows; segments change in the middle of each row."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    places = torch.arange(max(lengths))
    counts = torch.tensor(lengths)[:, None]
    mask = (places < counts).long()
    second = (places >= counts // 2).long() * mask
    return {
        "input_ids": torch.where(mask == 1, ids, pad_id),
        "attention_mask": mask,
        "token_type_ids": second if segments else torch.zeros_like(second),
    }


class _Logits(torch.nn.Module):
    """A stock model whose only output is its logits."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values):
        return self.model(**dict(zip(self.names, values, strict=True))).logits


def export(stock, path, *, dynamo=False, attention="sdpa"):
    """Export a stock model as a user would; the tokenizer lies beside the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stock.model.set_attn_implementation(attention)
    pad_id = stock.model.config.pad_token_id
    inputs = ragged_inputs(pad_id, segments=getattr(stock.model.config, "type_vocab_size", 0) == 2)
    names = [
        name for name in inputs if name != "token_type_ids" or stock.model.config.model_type in ("bert", "electra")
    ]
    module, values = _Logits(stock.model, names).eval(), tuple(inputs[name] for name in names)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    options: dict[str, Any] = (
        {"dynamo": True, "dynamic_shapes": ((free,) * len(names),), "external_data": False}
        if dynamo
        else {"dynamo": False, "opset_version": 17, "dynamic_axes": {n: {0: "b", 1: "s"} for n in names}}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both exporters announce deprecations of their own inner calls
        torch.onnx.export(
            module, values, str(path), input_names=names, output_names=["logits"], verbose=False, **options
        )
    stock.model.set_attn_implementation("sdpa")
    for file in stock.folder.iterdir():
        if file.suffix != ".safetensors":
            (path.parent / file.name).write_bytes(file.read_bytes())
    return path
