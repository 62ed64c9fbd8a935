"""The gate's limits as flags of a command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from compressor.errors import Fault, InputError
from compressor.gate_settings import GateSettings

_FORMS = {
    "max_loss": "MEASURE=MARGIN, such as nDCG@10=1% or RR@10=0.005",
    "min_speedup": "BASELINE=RATIO, such as stock_onnx_fp32=3",
    "min_agreement": "kendall_tau=SHARE or overlap@10=SHARE",
}


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
        faults += [_fault(one) for one in error.errors()]
    if faults:
        raise InputError(faults)
    return read


def _fault(error: Any) -> Fault:
    field, *place = [str(part) for part in error["loc"] if part != "[key]"]
    name = f"{place[0]}={error['input']}" if place and place[0] != error["input"] else str(error["input"])
    return Fault(
        source="command line", where=_flag(field), found=repr(name), allowed=error["msg"].removeprefix("Value error, ")
    )


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")
