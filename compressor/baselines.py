"""The two baselines of every report: the teacher as users run it today, and its stock export.

``torch_fp32_padded`` is the stock transformers model in fp32; ``stock_onnx_fp32`` is what `torch.onnx.export` makes of
it, run in the same ONNX Runtime, with the same threads and the same sorted, trimmed batches as ours.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.bench.rows import RowSpec
from compressor.errors import Fault, InputError
from compressor.gate_settings import STOCK_ONNX, TORCH
from compressor.ranker.tokenizer_files import TOKENIZER_FILES
from compressor.storage import whole_folder

if TYPE_CHECKING:
    from torch.nn import Module

    from compressor.ranker.ranker import Ranker
    from compressor.ranker.spec import RankerSpec


def baseline_rows(folder: Path, load_teacher: Callable[[], Ranker], say: Callable[[str], None]) -> list[RowSpec]:
    """Return both baselines of a teacher, making their folders where they do not exist yet.

    Args:
        folder: where they are kept; appears whole.
        load_teacher: loads the teacher, called only when something must be made.
        say: prints one line of news.

    Raises:
        InputError: the teacher has no stock form (it was compressed before).
    """
    if not folder.is_dir():
        say("making the baselines: the stock checkpoint and its torch.onnx export")
        _make(folder, load_teacher())
    return [
        RowSpec(
            name=TORCH,
            kind="baseline",
            folder=folder / "checkpoint",
            engine="torch_fp32_padded",
            scores_of=STOCK_ONNX,
        ),
        RowSpec(name=STOCK_ONNX, kind="baseline", folder=folder / "stock_onnx"),
    ]


def refuse_without_stock(spec: RankerSpec) -> None:
    """Refuse a teacher that transformers cannot load, for its baselines could not be made.

    Raises:
        InputError: says what stands in the way.
    """
    from compressor.families import can_be_stock

    reason = can_be_stock(spec.without_exits())
    if spec.output_name == "embedding":
        reason = "a bi-encoder, whose stock form scores no pairs"
    if reason:
        raise InputError(
            Fault(
                source="teacher",
                found=f"a ranker without a stock form ({reason})",
                allowed="a checkpoint that transformers loads: baselines are made of it",
                fix="start from the stock teacher, or leave data.test away and use 'rankpress bench'",
            )
        )


def _make(folder: Path, teacher: Ranker) -> None:
    from compressor.families import stock_checkpoint

    refuse_without_stock(teacher.spec)
    with whole_folder(folder) as partial:
        stock_checkpoint(teacher.without_exits(), partial / "checkpoint")
        export_stock(partial / "checkpoint", partial / "stock_onnx")


def export_stock(checkpoint: Path, folder: Path) -> None:
    """Export a stock sequence-classification checkpoint with `torch.onnx.export`, as a user would.

    Args:
        checkpoint: a local Hugging Face folder.
        folder: gets ``onnx/model.onnx`` and the tokenizer's files.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    (folder / "onnx").mkdir(parents=True)
    for name in (*TOKENIZER_FILES, "config.json"):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
    with _quiet():
        model = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, dtype=torch.float32, local_files_only=True
        ).eval()
        names = _input_names(folder)
        inputs = {name: torch.ones(2, 7, dtype=torch.int64) for name in names}
        torch.onnx.export(
            _logits_of(model, names),
            tuple(inputs.values()),
            folder / "onnx" / "model.onnx",
            input_names=names,
            output_names=["logits"],
            dynamic_axes={name: {0: "batch", 1: "sequence"} for name in names} | {"logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )


def _input_names(folder: Path) -> list[str]:
    from compressor.storage import read_json

    names = ["input_ids", "attention_mask"]
    return names + (["token_type_ids"] if read_json(folder / "config.json").get("type_vocab_size", 0) > 1 else [])


def _logits_of(model: Module, names: Sequence[str]) -> Module:
    """Wrap a model so that it takes tensors in the order of ``names`` and returns the logits alone."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            return self.model(**dict(zip(names, values, strict=True))).logits

    return Logits().eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter and transformers from printing into our progress."""
    from transformers.utils import logging as transformers_logging

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers_logging.enable_progress_bar()
            logging.disable(logging.NOTSET)
