"""The shape of a build: the ranker with more of it rounded, or to fewer bits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from compressor.builds import Build, BuildPrecision
from compressor.errors import Fault, InputError
from compressor.ranker.cost import linears_of
from compressor.ranker.rounding import round_spec, with_precisions
from compressor.ranker.spec import Int8Dynamic, Int8Rows, Int8Static, RankerSpec, float_kind

_SOURCE = "export.builds"


def build_spec(spec: RankerSpec, precision: BuildPrecision) -> RankerSpec:
    """Return the shape that a build of a ranker has, its tables in int8 too; head and exits stay as they are.

    Raises:
        InputError: the ranker has no such build.
    """
    precisions = dict(linears_of(spec))
    if any(float_kind(linear.precision) != "fp32" for linear in precisions.values()):
        raise _refused("a ranker in half precision", "rankers in fp32 or int8", "leave quantize to the builds")
    if all(linear.precision.kind == "fp32" for linear in precisions.values()):
        return round_spec(spec, Int8Dynamic(reduce_range=precision == "int8_reduced_range"), Int8Rows())
    if precision == "int8":
        raise _refused("an int8 build of a ranker that is rounded", "rankers in fp32", "its main file is that build")
    wide = {
        name: linear.precision.changed(reduce_range=True)
        for name, linear in precisions.items()
        if isinstance(linear.precision, Int8Dynamic | Int8Static) and not linear.precision.reduce_range
    }
    if not wide:
        found = "a build of 7 bits, where no matrix has 8 bits by rows"
        raise _refused(found, "rankers in fp32, int8_dynamic or int8_static", "leave it out")
    return with_precisions(spec, wide)


def check_builds(spec: RankerSpec, builds: Iterable[Build], source: str = _SOURCE) -> None:
    """Refuse builds that a ranker of this shape does not have.

    Args:
        spec: the shape that is exported.
        builds: what is to stand beside it.
        source: where they were read.

    Raises:
        InputError: names the first.
    """
    for build in builds:
        if spec.cascade:
            # Its graphs are those of the main file: how a list is ranked would depend on the CPU.
            fix = "leave the builds out, or the cascade"
            raise InputError(
                Fault(source=source, found="a ranker with a cascade", allowed="builds of rankers without", fix=fix)
            )
        try:
            build_spec(spec, build.precision)
        except InputError as error:
            raise InputError(replace(fault, source=source) for fault in error.faults) from None


def _refused(found: str, allowed: str, fix: str) -> InputError:
    return InputError(Fault(source=_SOURCE, found=found, allowed=allowed, fix=fix))
