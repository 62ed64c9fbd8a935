"""In which precision a large ranker is loaded: plain, rounded by bitsandbytes while it loads, or stored by GPTQ."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from compressor.errors import Fault, InputError
from compressor.families.large_files import SOURCE, LargeFiles
from compressor.large_settings import LargeRanker, Precision
from compressor.storage import whole_folder

_EXTRA = "pip install 'rankpress[large]'"
_NEEDED: dict[Precision, tuple[tuple[str, ...], str]] = {
    "int8": (("bitsandbytes", "accelerate"), _EXTRA),
    "int4": (("bitsandbytes", "accelerate"), _EXTRA),
    "gptq": (("optimum", "gptqmodel", "accelerate"), f"{_EXTRA} gptqmodel"),
}
_HEADS = ("lm_head", "score")  # what gives the logits stays as it is


def check_precision(settings: LargeRanker, files: LargeFiles) -> None:
    """Check that the packages which a precision needs are there, and that the stored weights are what it asks for.

    Raises:
        InputError: a package is missing: names the extra; weights that are stored in another precision; a float
            checkpoint without data to calibrate GPTQ on.
    """
    packages, install = _NEEDED.get(settings.precision, ((), ""))
    if missing := [name for name in packages if not is_installed(name)]:
        verb = "is" if len(missing) == 1 else "are"
        found = f"{settings.precision}, and {' and '.join(missing)}, which it runs on, {verb} not installed"
        raise InputError(Fault(source=SOURCE, where="precision", found=found, fix=install))
    stored = stored_precision(files)
    if stored is not None and stored != settings.precision:
        found = f"{settings.precision} of weights that are stored in {stored}"
        raise InputError(Fault(source=SOURCE, where="precision", found=found, allowed=stored))
    if settings.precision == "gptq":
        _check_calibration(settings, files, is_stored=stored is not None)


def is_installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def stored_precision(files: LargeFiles) -> Precision | None:
    """Return the precision of weights that are stored rounded, None for floats.

    Raises:
        InputError: they are stored in a way that is not supported.
    """
    if not files.quantized_by:
        return None
    if files.quantized_by == "gptq":
        return "gptq"
    if files.quantized_by == "bitsandbytes":
        return "int8" if files.config["quantization_config"].get("load_in_8bit") else "int4"
    found = f"weights that are stored by the method {files.quantized_by}"
    allowed = "floats, bitsandbytes, gptq"
    raise InputError(Fault(source=files.folder, where="quantization_config", found=found, allowed=allowed))


def load_options(precision: Precision, device: torch.device, *, is_stored: bool) -> dict[str, Any]:
    """Return what ``from_pretrained`` is told about types, rounding and places.

    int8 computes around fp16 and int4 in bf16, as their kernels want it; what is rounded is rounded on the device.

    Args:
        precision: as asked for.
        device: where the model is to run.
        is_stored: whether the checkpoint itself is rounded already: then its own config says how.
    """
    from transformers import BitsAndBytesConfig

    dtypes = {"fp32": torch.float32, "int4": torch.bfloat16, "bf16": torch.bfloat16}
    options: dict[str, Any] = {"dtype": dtypes.get(precision, torch.float16)}
    if device.type != "cpu" or precision not in ("fp32", "bf16"):
        options["device_map"] = {"": str(device)}
    if is_stored:
        return options
    if precision == "int8":
        # LLM.int8() (arXiv 2208.07339): columns with a value beyond 6 are multiplied in fp16.
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=6.0, llm_int8_skip_modules=list(_HEADS)
        )
    elif precision == "int4":
        # QLoRA's NF4 with scales that are rounded in turn (arXiv 2305.14314).
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=list(_HEADS),
        )
    return options


def gptq_config(prompts: Sequence[str], tokenizer: Any, max_length: int) -> Any:
    """Return how GPTQ (arXiv 2210.17323) rounds a float checkpoint: 4 bits in groups of 128, on these prompts.

    Args:
        prompts: texts as the ranker is asked.
        tokenizer: its own.
        max_length: most tokens of a prompt.
    """
    from transformers import GPTQConfig

    return GPTQConfig(
        bits=4, group_size=128, dataset=list(prompts), tokenizer=tokenizer, model_seqlen=max_length, batch_size=1
    )


def save_quantized(model: Any, tokenizer: Any, folder: Path) -> None:
    """Keep what GPTQ has rounded: a folder that appears whole, and is loaded from then on."""
    with whole_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def _check_calibration(settings: LargeRanker, files: LargeFiles, *, is_stored: bool) -> None:
    if is_stored and settings.calibration:
        fix = "take 'calibration' away"
        raise InputError(Fault(source=SOURCE, where="calibration", found="weights that GPTQ has rounded", fix=fix))
    if not is_stored and settings.calibration is None:
        found, allowed = (
            "none, for a checkpoint in floats",
            "data whose prompts it is quantized on, or a GPTQ checkpoint",
        )
        raise InputError(Fault(source=SOURCE, where="calibration", found=found, allowed=allowed))
    if not is_stored and (files.is_encoder_decoder or files.has_head or settings.is_listwise):
        how = "first_token" if settings.is_listwise else files.config["architectures"][0]
        found = f"gptq of a checkpoint in floats, for {how}"
        allowed = "label tokens of a decoder (...ForCausalLM), or a checkpoint that GPTQ has rounded already"
        raise InputError(Fault(source=SOURCE, where="precision", found=found, allowed=allowed, fix="int8 or int4 does"))
