"""Builds: int8 files of one folder beside its main file, each for the CPUs that compute it well and rightly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from compressor.cpu import SATURATING, CpuClass
from compressor.records import Record

BuildPrecision = Literal["int8", "int8_reduced_range"]

# Names under which consumers look for int8: transformers.js, infinity (quantized), sentence-transformers (qint8_...).
_FILE = re.compile(r"onnx/model_(quantized|q?u?int8(_[a-z0-9]+)*)\.onnx")
_FILES: dict[BuildPrecision, str] = {
    "int8": "onnx/model_quantized.onnx",
    "int8_reduced_range": "onnx/model_qint8_avx2.onnx",
}
_CPUS: dict[BuildPrecision, tuple[CpuClass, ...]] = {
    "int8": ("amx_int8", "avx512_vnni", "avx_vnni", "arm_i8mm", "arm_dotprod"),
    "int8_reduced_range": SATURATING,
}


class Build(Record):
    """One file beside the main one, and the classes of CPUs on which rankpress loads it in the main file's place.

    ``precision``: ``int8``, the ranker in dynamic int8; ``int8_reduced_range``, the same with weights of 7 bits, or, of
    a ranker that is in int8 already, that one with weights of 7 bits.
    ``cpus``: by default, of ``int8`` those with wide sums of int8 products (VNNI, AMX, ARM's dot products), of
    ``int8_reduced_range`` x86 CPUs without.
    ``file``: its name, one that consumers look for.

    In a recipe the precision alone will do.
    """

    precision: BuildPrecision
    cpus: tuple[CpuClass, ...] = Field(min_length=1)
    file: str

    @model_validator(mode="before")
    @classmethod
    def _usual_place(cls, value: Any) -> Any:
        value = {"precision": value} if isinstance(value, str) else value
        if not isinstance(value, Mapping):
            return value
        precision = value.get("precision")
        if not isinstance(precision, str) or precision not in _FILES:
            raise ValueError(f"{precision!r} is no precision of a build: {', '.join(_FILES)}")
        usual: Any = precision
        return {"cpus": _CPUS[usual], "file": _FILES[usual], **value}

    @classmethod
    def usual(cls, precision: BuildPrecision) -> Self:
        """Return the build of a precision under its usual name, for its usual CPUs."""
        return cls.model_validate(precision)

    @field_validator("cpus")
    @classmethod
    def _known(cls, value: tuple[CpuClass, ...]) -> tuple[CpuClass, ...]:
        if "unknown" in value:
            raise ValueError("CPUs of an unknown class take the main file: leave 'unknown' out")
        return value

    @field_validator("file")
    @classmethod
    def _looked_for(cls, value: str) -> str:
        if not _FILE.fullmatch(value):
            raise ValueError(
                f"{value!r} is no name that consumers look for int8 under: {', '.join(_FILES.values())}, "
                "onnx/model_int8.onnx, onnx/model_qint8_avx512_vnni.onnx and the like"
            )
        return value


class Builds(Record):
    """Builds of one folder: each has a file of its own, and no class of CPUs has two."""

    builds: tuple[Build, ...] = ()

    @model_validator(mode="after")
    def _nothing_twice(self) -> Self:
        named: dict[str, list[str]] = {
            "file": [build.file for build in self.builds],
            "CPU class": [cpu for build in self.builds for cpu in build.cpus],
        }
        for what, found in named.items():
            if twice := sorted({one for one in found if found.count(one) > 1}):
                raise ValueError(f"builds name a {what} twice: {', '.join(twice)}")
        return self

    def for_cpu(self, cpu: CpuClass) -> Build | None:
        """Return the build for a class of CPUs; None where they take the main file."""
        return next((build for build in self.builds if cpu in build.cpus), None)
