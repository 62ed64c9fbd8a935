"""Pack a folder into one small file: zeros of matrices cost a bit each, other numbers go by byte planes.

Of a normal 1536 × 384 float32 matrix with 80 % zeros, 2.36 MB, xz makes 0.496 MB as it stands, and 0.420 MB of its mask
and byte planes; zlib makes 0.427 MB of these, in a quarter of the time.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import Fault, InputError
from compressor.progress import progress
from compressor.runtime.folder import BUILDS_KEY, CASCADE_KEY, MANIFEST, SHARED_QUERY_KEY, main_file
from compressor.runtime.packed import MAGIC, BytesPart, Header, NumbersPart, PackedFile, Values, restored
from compressor.storage import read_json, write_whole_bytes

_LEAST_BYTES = 4096  # smaller tensors are bytes like others
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "F64": 8}  # safetensors' names
_ONNX_ITEM_BYTES = {1: 4, 10: 2, 16: 2, 3: 1, 2: 1, 11: 8}  # FLOAT, FLOAT16, BFLOAT16, INT8, UINT8, DOUBLE
_FLOAT32 = ("F32", 1)
_EXACT_NAMES = ("head", "classifier", "pooler", "score", "norm")  # never rounded
_WEIGHTS = (".onnx", ".safetensors", ".bin", ".data", "_data")


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """Where the numbers of a matrix stand in a file."""

    name: str
    offset: int
    item_bytes: int
    shape: tuple[int, int]
    may_round: bool

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.item_bytes


def pack(folder: Path, path: Path, *, values: Values = "exact", main_only: bool = False) -> Header:
    """Write a folder as one file, from which `compressor.runtime.packed.unpack` makes it again.

    With exact values, what comes out is what went in, to the bit. With others, float32 matrices are rounded, heads and
    norms apart: scores change, so what has to be measured is the unpacked folder. Its manifest and card say so.

    Args:
        folder: an exported ranker, or any folder with ONNX or safetensors files.
        path: where to; a file that exists is replaced.
        values: how numbers that are not zero are held.
        main_only: leave graphs and checkpoints out that are not the one that consumers load.

    Raises:
        InputError: no such folder, nothing in it, or a file that cannot be read.
    """
    names = _names(folder, main_only)
    files: list[PackedFile] = []
    streams: list[bytes] = []
    with progress("Packing", len(names)) as advance:
        for name in sorted(names, key=lambda one: one in (MANIFEST, "README.md")):  # these speak of the others
            data = (folder / name).read_bytes()
            if name == MANIFEST and (values != "exact" or main_only):
                data = _manifest(folder, files, values)
            elif name == "README.md" and values != "exact":
                data += _note(values).encode()
            file, packed = _packed_file(name, data, values)
            files.append(file)
            streams += packed
            advance()
    header = Header(files=tuple(files), rounded=values)
    text = header.model_dump_json().encode()
    rest = [len(text).to_bytes(8, "little"), text, *streams]
    digest = hashlib.sha256()
    for one in rest:
        digest.update(one)
    write_whole_bytes(path, [MAGIC, digest.digest(), *rest])
    return header


def packed_bytes(path: Path) -> int:
    """Return how many bytes one file takes in a pack, exactly held."""
    _, streams = _packed_file(path.name, path.read_bytes(), "exact")
    return sum(map(len, streams))


def _names(folder: Path, main_only: bool) -> list[str]:
    if not folder.is_dir():
        raise InputError(Fault(source=folder, found="no such folder", allowed="the folder of an exported ranker"))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    if main_only:
        main = main_file(folder).relative_to(folder).as_posix()
        beside = (main, f"{main}.data", f"{main}_data")
        names = [name for name in names if name in beside or not name.endswith(_WEIGHTS)]
    if not names:
        raise InputError(Fault(source=folder, found="an empty folder", allowed="the folder of an exported ranker"))
    return names


def _packed_file(name: str, data: bytes, values: Values) -> tuple[PackedFile, list[bytes]]:
    parts: list[BytesPart | NumbersPart] = []
    streams: list[bytes] = []
    digest = hashlib.sha256()
    place = 0

    def plain(content: bytes) -> None:
        if content:
            stream = _xz(content)
            parts.append(BytesPart(size_bytes=len(content), packed_bytes=len(stream)))
            streams.append(stream)
            digest.update(content)

    for tensor in _tensors(name, data):
        plain(data[place : tensor.offset])
        place = tensor.offset + tensor.size_bytes
        part, own, content = _packed_numbers(tensor, data[tensor.offset : place], values)
        parts.append(part)
        streams += own
        digest.update(content)
    plain(data[place:])
    return PackedFile(name=name, sha256=digest.hexdigest(), parts=tuple(parts)), streams


def _packed_numbers(tensor: _Tensor, data: bytes, values: Values) -> tuple[NumbersPart, list[bytes], bytes]:
    """Return how a matrix is held, its streams, and the bytes that they will give again."""
    if values == "exact" or not tensor.may_round:
        how, axis, scales = "exact", 0, b""
        held = np.frombuffer(data, np.uint8).reshape(-1, tensor.item_bytes)
    else:
        how, axis, held, scales = _rounded(np.frombuffer(data, "<f4").reshape(tensor.shape), values)
    kept = np.asarray(held.any(axis=1))
    is_whole = bool(kept.mean() > 0.98)  # a mask would cost more than the zeros
    own = held if is_whole else held[kept]
    streams = [b"" if is_whole else _xz(np.packbits(kept).tobytes()), _xz(np.ascontiguousarray(own.T).tobytes())]
    streams.append(_xz(scales) if scales else b"")
    part = NumbersPart.model_validate(
        {
            "item_bytes": tensor.item_bytes, "shape": tensor.shape, "values": how, "axis": axis, "n_kept": len(own),
            "streams": tuple(map(len, streams)),
        }
    )  # fmt: skip
    content = restored(np.ascontiguousarray(own).reshape(-1), None if is_whole else kept, scales, part)
    return part, streams, content.tobytes()


def _rounded(matrix: np.ndarray, values: Values) -> tuple[Values, int, np.ndarray, bytes]:
    """Return a matrix in fewer bits: how, the axis of its scales, the numbers ``[count, bytes]``, the scales."""
    if values == "float16" and np.abs(matrix).max() < np.finfo(np.float16).max:
        return "float16", 0, matrix.astype("<f2").reshape(-1, 1).view(np.uint8), b""
    if values == "int8" and np.isfinite(matrix).all():
        best: tuple[float, int, np.ndarray, np.ndarray] | None = None
        for axis in (0, 1):  # graphs hold some matrices transposed
            largest = np.abs(matrix).max(axis=1 - axis, keepdims=True)
            scales = np.where(largest > 0, largest / 127, 1).astype("<f4")
            numbers = np.clip(np.rint(matrix / scales), -127, 127).astype(np.int8)
            error = float(np.square(numbers * scales - matrix).sum())
            if best is None or error < best[0]:
                best = error, axis, numbers, scales
        if best:
            return "int8", best[1], best[2].reshape(-1, 1).view(np.uint8), best[3].tobytes()
    return "exact", 0, np.frombuffer(matrix.tobytes(), np.uint8).reshape(-1, 4), b""


def _tensors(name: str, data: bytes) -> list[_Tensor]:
    """Return the matrices of a file, in the order in which they stand there; none of files of other kinds."""
    if name.endswith(".safetensors"):
        found = list(_of_safetensors(data))
    elif name.endswith(".onnx"):
        found = list(_of_onnx(name, data))
    else:
        return []
    return sorted((one for one in found if one.size_bytes >= _LEAST_BYTES), key=lambda one: one.offset)


def _of_safetensors(data: bytes) -> Iterator[_Tensor]:
    start = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:start])
    for name, one in header.items():
        if name != "__metadata__" and one["dtype"] in _ITEM_BYTES and len(one["shape"]) == 2 and all(one["shape"]):
            yield _Tensor(
                name=name, offset=start + one["data_offsets"][0], item_bytes=_ITEM_BYTES[one["dtype"]],
                shape=tuple(one["shape"]), may_round=_may_round(name, one["dtype"]),
            )  # fmt: skip


def _of_onnx(name: str, data: bytes) -> Iterator[_Tensor]:
    import onnx

    try:
        graph = onnx.load_from_string(data).graph
    except Exception as error:  # noqa: BLE001  # protobuf has several
        raise InputError(Fault(source=name, found=f"a broken ONNX file ({error})")) from None
    place = 0
    for one in graph.initializer:
        if len(one.raw_data) >= _LEAST_BYTES:
            place = data.find(one.raw_data, place)  # they stand in this order
            if len(one.dims) == 2 and one.data_type in _ONNX_ITEM_BYTES:
                yield _Tensor(
                    name=one.name, offset=place, item_bytes=_ONNX_ITEM_BYTES[one.data_type],
                    shape=(one.dims[0], one.dims[1]), may_round=_may_round(one.name, one.data_type),
                )  # fmt: skip
            place += len(one.raw_data)


def _may_round(name: str, kind: str | int) -> bool:
    return kind in _FLOAT32 and not any(word in name.lower() for word in _EXACT_NAMES)


def _xz(content: bytes) -> bytes:
    return lzma.compress(content, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32)


def _manifest(folder: Path, files: Sequence[PackedFile], values: Values) -> bytes:
    """Return the manifest of what will be unpacked."""
    manifest = read_json(folder / MANIFEST)
    if isinstance(manifest, dict):
        listed = manifest.get("files")
        known = listed if isinstance(listed, dict) else {}
        own = {file.name: file for file in files}
        manifest["files"] = {
            name: {**entry, "size_bytes": own[name].size_bytes, "sha256": own[name].sha256}
            for name, entry in known.items()
            if name in own and isinstance(entry, dict)
        }
        if isinstance(builds := manifest.get(BUILDS_KEY), list):
            manifest[BUILDS_KEY] = [one for one in builds if isinstance(one, dict) and one.get("file") in own]
        for key in (CASCADE_KEY, SHARED_QUERY_KEY):  # their graphs are left out where the main file alone is packed
            if not set(_graphs(manifest.get(key))) <= own.keys():
                del manifest[key]
        if values != "exact":
            manifest["rounded"] = {"values": values, "note": _note(values).strip()}
    return (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()


def _graphs(entry: Any) -> list[str]:
    """Return the graphs that an entry of a manifest names."""
    if isinstance(entry, dict):
        return [name for one in entry.values() for name in _graphs(one)]
    if isinstance(entry, list):
        return [name for one in entry for name in _graphs(one)]
    return [entry] if isinstance(entry, str) and entry.endswith(".onnx") else []


def _note(values: Values) -> str:
    return (
        f"\n\nMatrices were rounded to {values} when this folder was packed. Scores differ from those that were "
        "measured before: figures of quality and parity are those of the folder that was packed.\n"
    )
