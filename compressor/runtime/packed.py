"""Packed folders: one small file in which zeros of matrices cost a bit each, unpacked to the same bytes.

    magic | SHA-256 of all that follows | length of the header | header, JSON | streams, one after another

The header lists files and their parts, in order. A part is bytes as they are, or numbers: those that are not zero, byte
planes apart (first bytes of all numbers, then second bytes, ...), behind a mask of one bit for each number. Every
stream is xz. Numbers may be held in fewer bits; what comes out then is rounded, and its hash is that of the rounded
file.

A file from elsewhere can do no harm: names that leave the folder, sizes beyond a limit, streams that give more than
they say, and anything that a hash does not fit are refused, and a folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import lzma
import math
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from compressor.errors import Fault, InputError
from compressor.progress import progress
from compressor.records import Record
from compressor.runtime.folder import MANIFEST
from compressor.storage import inside, unreadable, whole_folder

MAGIC = b"rankpress pack 1\n"
HASH_BYTES, LENGTH_BYTES = 32, 8
MOST_HEADER_BYTES = 2**25
MOST_GROWTH, FREE_GROWTH_BYTES = 500, 2**24  # all zeros shrink further, a ranker does not
DEFAULT_MOST_BYTES = 16 * 2**30
_DECODER_BYTES = 2**28
_CHUNK = 2**20

Values = Literal["exact", "float16", "int8"]


class BytesPart(Record):
    """Bytes as they are: ``size_bytes`` of them, ``packed_bytes`` in the file."""

    kind: Literal["bytes"] = "bytes"
    size_bytes: NonNegativeInt
    packed_bytes: NonNegativeInt

    @property
    def streams(self) -> tuple[int, ...]:
        return (self.packed_bytes,)


class NumbersPart(Record):
    """Numbers of ``item_bytes`` each, ``shape`` of them, little-endian, row after row.

    ``values``: how those are held that are not zero: ``exact``; else, of float32, as ``float16``, or as ``int8`` with a
    float32 scale for each row (``axis`` 0) or column (1). ``n_kept``: how many are not zero. ``streams``: bytes of the
    mask (0 where none is zero), of the values and of the scales (0 where there are none) in the file.
    """

    kind: Literal["numbers"] = "numbers"
    item_bytes: Literal[1, 2, 4, 8]
    shape: tuple[PositiveInt, PositiveInt]
    values: Values = "exact"
    axis: Literal[0, 1] = 0
    n_kept: NonNegativeInt
    streams: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.item_bytes


class PackedFile(Record):
    """A file of the folder, made of parts."""

    name: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    parts: tuple[Annotated[BytesPart | NumbersPart, Field(discriminator="kind")], ...]

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self.parts)


class Header(Record):
    """What is in a pack."""

    schema_version: Literal[1] = 1
    files: tuple[PackedFile, ...]
    rounded: Values = "exact"

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def described(self, folder: Path) -> str:
        """Say what the folder is that was made of the pack."""
        size = f"{folder}: {len(self.files)} files, {self.size_bytes / 1e6:,.1f} MB"
        if self.rounded == "exact":
            return size
        return f"{size}\nmatrices were rounded to {self.rounded}: measure this folder, its scores are its own"


def unpack(path: Path, folder: Path, *, most_bytes: int = DEFAULT_MOST_BYTES) -> Header:
    """Make the folder of a pack; it appears whole or not at all.

    Args:
        path: the pack.
        folder: where to; a ranker's folder that exists is replaced, any other has to be empty.
        most_bytes: larger folders are refused before anything is written.

    Raises:
        InputError: the file is damaged, no pack, or not to be trusted; or the folder has other things in it.
    """
    if folder.is_dir() and not (folder / MANIFEST).is_file() and (others := sorted(folder.iterdir())):
        raise InputError(
            Fault(
                source=folder,
                found=f"a folder with other things in it ({', '.join(other.name for other in others[:3])})",
                allowed="a folder that is empty or new, or that of a ranker, which is replaced",
            )
        )
    try:
        with path.open("rb") as stream:
            header = read_header(path, stream, most_bytes)
            with whole_folder(folder) as partial, progress("Unpacking", header.size_bytes) as advance:
                for file in header.files:
                    _write(path, stream, file, partial, advance)
                if stream.read(1):
                    raise _broken(path, "bytes behind the last stream")
            return header
    except lzma.LZMAError as error:
        raise _broken(path, f"a broken stream ({error})") from None
    except OSError as error:
        if error.filename and Path(error.filename) != path:  # a folder that cannot be written
            raise
        raise unreadable(path, error) from None


def read_header(path: Path, stream: BufferedReader, most_bytes: int) -> Header:
    """Read a pack's header and leave the stream behind it.

    Raises:
        InputError: no pack, a damaged one, or one that would become too large.
    """
    if stream.read(len(MAGIC)) != MAGIC:
        raise InputError(Fault(source=path, found="no pack", allowed="a file that rankpress pack wrote"))
    expected, start = stream.read(HASH_BYTES), stream.tell()
    if hashlib.file_digest(stream, "sha256").digest() != expected:
        raise InputError(Fault(source=path, found="a damaged file: its hash differs", fix="download it again"))
    packed_bytes = stream.tell()
    stream.seek(start)
    length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
    if length > MOST_HEADER_BYTES:
        raise _broken(path, f"a header of {length:,} bytes")
    try:
        header = Header.model_validate_json(stream.read(length))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(Fault(source=path, where=f"header.{where}".rstrip("."), found=first["msg"])) from None
    names = [file.name for file in header.files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise _broken(path, f"{twice[0]!r} twice")
    limit = min(most_bytes, MOST_GROWTH * packed_bytes + FREE_GROWTH_BYTES)
    if header.size_bytes > limit:
        raise InputError(
            Fault(
                source=path,
                found=f"a pack of {packed_bytes:,} bytes that would become {header.size_bytes:,}",
                allowed=f"at most {limit:,}",
                fix="raise --max-gb if you trust it" if limit == most_bytes else "",
            )
        )
    return header


def _write(path: Path, stream: BufferedReader, file: PackedFile, folder: Path, advance: Callable[..., None]) -> None:
    target = inside(folder, file.name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        output = target.open("xb")
    except OSError:
        raise _broken(path, f"the file name {file.name!r}, which cannot stand beside the others") from None
    digest = hashlib.sha256()
    with output:
        for part in file.parts:
            content = _part(path, stream, part, file.name)
            digest.update(content)
            output.write(content)
            advance(len(content))
    if digest.hexdigest() != file.sha256:
        raise _broken(path, f"{file.name!r}, whose content does not fit its hash")


def _part(path: Path, stream: BufferedReader, part: BytesPart | NumbersPart, name: str) -> bytes:
    if isinstance(part, BytesPart):
        return _expanded(path, stream, part.packed_bytes, part.size_bytes, name)
    count = math.prod(part.shape)
    mask_bytes, value_bytes, scale_bytes = part.streams
    if part.n_kept > count or (not mask_bytes and part.n_kept != count):
        raise _broken(path, f"{name!r}: {part.n_kept:,} of {count:,} numbers")
    if part.values != "exact" and part.item_bytes != 4:
        raise _broken(path, f"{name!r}: numbers of {part.item_bytes} bytes held as {part.values}")
    kept = None
    if mask_bytes:
        bits = np.frombuffer(_expanded(path, stream, mask_bytes, -(-count // 8), name), np.uint8)
        kept = np.unpackbits(bits, count=count).astype(bool)
        if int(kept.sum()) != part.n_kept:
            raise _broken(path, f"{name!r}: a mask of {int(kept.sum()):,} numbers for {part.n_kept:,}")
    item = {"exact": part.item_bytes, "float16": 2, "int8": 1}[part.values]
    planes = np.frombuffer(_expanded(path, stream, value_bytes, part.n_kept * item, name), np.uint8)
    held = np.ascontiguousarray(planes.reshape(item, part.n_kept).T).reshape(-1)
    scales = _expanded(path, stream, scale_bytes, 4 * part.shape[part.axis] if part.values == "int8" else 0, name)
    numbers = restored(held, kept, scales, part)
    return numbers.tobytes()


def restored(held: np.ndarray, kept: np.ndarray | None, scales: bytes, part: NumbersPart) -> np.ndarray:
    """Return the numbers of a part as bytes of ``item_bytes`` each.

    Args:
        held: uint8, what is held of those that are not zero.
        kept: bool ``[count]``, which these are; None: all.
        scales: float32 bytes, of int8.
        part: says how they are held.
    """
    if part.values == "exact":
        values = held.view(f"V{part.item_bytes}")
    elif part.values == "float16":
        values = held.view("<f2").astype("<f4")
    else:
        places = np.arange(math.prod(part.shape)) if kept is None else kept.nonzero()[0]
        lines = places // part.shape[1] if part.axis == 0 else places % part.shape[1]
        values = held.view(np.int8).astype("<f4") * np.frombuffer(scales, "<f4")[lines]
    if kept is None:
        return values
    numbers = np.zeros(math.prod(part.shape), values.dtype)
    numbers[kept] = values
    return numbers


def _expanded(path: Path, stream: BufferedReader, packed: int, size: int, name: str) -> bytes:
    """Return the next stream's content, which has to be of ``size`` bytes; it is never let grow beyond."""
    if not packed and not size:
        return b""
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_DECODER_BYTES)
    content = bytearray()
    for chunk in _chunks(stream, packed):
        if decoder.eof:
            raise _broken(path, f"{name!r}: bytes behind the end of a stream")
        content += decoder.decompress(chunk, max_length=size + 1 - len(content))
        while not decoder.eof and not decoder.needs_input and len(content) <= size:
            content += decoder.decompress(b"", max_length=size + 1 - len(content))
        if len(content) > size or decoder.unused_data:
            break
    if len(content) != size or not decoder.eof or decoder.unused_data:
        raise _broken(path, f"{name!r}: a stream that is not of {size:,} bytes")
    return bytes(content)


def _chunks(stream: BufferedReader, size: int) -> Iterator[bytes]:
    while size and (chunk := stream.read(min(size, _CHUNK))):
        size -= len(chunk)
        yield chunk


def _broken(path: Path, found: str) -> InputError:
    return InputError(Fault(source=path, found=found, allowed="a file that rankpress pack wrote"))
