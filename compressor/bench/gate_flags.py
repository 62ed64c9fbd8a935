"""The gate's limits as flags of a command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from compressor.errors import Fault, InputError
from compressor.gate_settings import GateSettings
from compressor.recipe_faults import flag_faults

_FORMS = {
    "max_loss": "MEASURE=MARGIN, such as nDCG@10=1% or RR@10=0.005",
    "min_speedup": "BASELINE=RATIO, such as stock_onnx_fp32=3",
    "min_agreement": "kendall_tau=SHARE or overlap@10=SHARE",
}
_LIMITS = (*_FORMS, "max_size_mb", "max_score_rmse")


def gate_settings_from_flags(
    *, max_loss: Sequence[str] = (), min_speedup: Sequence[str] = (), min_agreement: Sequence[str] = (),
    **numbers: float | None,
) -> GateSettings:  # fmt: skip
    """Read flags such as ``--max-loss nDCG@10=1%``, each of which may be given several times.

    Args:
        numbers: ``max_size_mb``, ``max_score_rmse``, ``confidence``, ``min_queries``; None leaves the default.

    Raises:
        InputError: names every flag at fault.
    """
    faults: list[Fault] = []
    settings: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    for field, given in (("max_loss", max_loss), ("min_speedup", min_speedup), ("min_agreement", min_agreement)):
        settings[field] = {}
        for text in given:
            name, equals, value = text.rpartition("=")
            if not equals or not name or not value:
                faults.append(Fault(source="command line", where=_flag(field), found=repr(text), allowed=_FORMS[field]))
            elif name in settings[field]:
                faults.append(Fault(source="command line", where=_flag(field), found=f"{name!r} twice"))
            else:
                settings[field][name] = value
    try:
        read = GateSettings.model_validate(settings)
    except ValidationError as error:
        faults += flag_faults(error, settings, GateSettings)
    if not faults and read.is_empty:
        faults.append(Fault(source="command line", found="no limits", allowed=", ".join(map(_flag, _LIMITS))))
    if faults:
        raise InputError(faults)
    return read


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")
