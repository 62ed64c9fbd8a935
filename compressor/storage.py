"""Fingerprints, and folders and files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from compressor.errors import Fault, InputError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")
_HALF_WRITTEN = re.compile(r"\..+\.(partial|old)-\w+")


class HeldError(InputError):
    """Another process holds the folder. Whoever can wait may try again."""


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value's canonical text (sorted keys, no spaces) as hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` when the block ends well, and vanishes when it does not.

    A ``target`` that exists is replaced in one step, after the new one is complete.

    Raises:
        InputError: ``target`` is a file, or stands where nothing can be written.
    """
    if target.exists() and not target.is_dir():
        raise InputError(Fault(source=target, found="a file", allowed="a folder, or nothing yet"))
    partial = Path(_beside(target, tempfile.mkdtemp))
    partial.chmod(0o755)  # mkdtemp makes private folders; what a user keeps follows the usual rights
    try:
        yield partial
        if not target.exists():
            partial.replace(target)
            return
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
        old = target.replace(aside / target.name)
        try:
            partial.replace(target)
        except BaseException:
            old.replace(target)
            raise
        finally:
            if target.exists():  # what was there is dropped only where something stands in its place
                shutil.rmtree(aside)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never a part.

    A link stays a link: the file that it leads to is written.

    Raises:
        InputError: nothing can be written there.
    """
    if path.exists() and not path.is_file():  # a pipe or device, such as /dev/stdout, cannot be replaced
        path.write_text(text, encoding="utf-8")
        return
    path = path.resolve()
    handle, partial = _beside(path, tempfile.mkstemp)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)


def write_whole_bytes(path: Path, content: Iterable[bytes]) -> None:
    """Write a file piece by piece so that a reader sees the old content or the new, never a part.

    Raises:
        InputError: nothing can be written there.
    """
    handle, partial = _beside(path, tempfile.mkstemp)
    try:
        with os.fdopen(handle, "wb") as stream:
            for piece in content:
                stream.write(piece)
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, indented."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a folder, made where it is missing, for one process; first clear away what a killed one left half-written.

    Raises:
        HeldError: another process holds it.
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    with _held(folder):
        for path in [path for path in folder.rglob(".*") if is_half_written(path)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)  # gone with the folder around it
        yield


def check_folder_to_write(folder: Path) -> None:
    """Refuse a place where no folder can be made or written to, before there is anything to write.

    Raises:
        InputError: names the file or the closed folder that stands in the way.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        allowed = "a folder, or a name that is free"
        raise InputError(Fault(source=existing, found="a file", allowed=allowed, fix="name another"))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(Fault(source=existing, found="a folder without the right to write", fix="name another"))


def is_half_written(path: Path) -> bool:
    """Return whether a file or folder has the name of something that a killed process had not finished."""
    return _HALF_WRITTEN.fullmatch(path.name) is not None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing, cannot be read, or is not JSON; names the line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error) from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(Fault(source=path, where=where, found=f"broken JSON ({error})")) from None


def unreadable(path: Path, error: OSError) -> InputError:
    """Return the error to raise for a file that could not be opened: it is missing, a folder, or closed to us."""
    missing = isinstance(error, FileNotFoundError | NotADirectoryError)
    return InputError(Fault(source=path, found="no such file" if missing else f"a file that cannot be read ({error})"))


def inside(folder: Path, name: str) -> Path:
    """Return ``folder / name`` for a relative name taken from a file, refusing names that leave the folder.

    Raises:
        InputError: the name is empty or absolute, climbs out with ``..``, or leads out through a link.
    """
    relative = PurePosixPath(name.replace("\\", "/"))
    path = folder / relative
    steps_out = not relative.parts or relative.is_absolute() or ".." in relative.parts or "\0" in name
    if steps_out or not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(Fault(source=folder, found=f"the file name {name!r}", allowed="names inside the folder"))
    return path


def _beside(target: Path, make: Callable[..., T]) -> T:
    """Make a hidden neighbor of a target by `mkdtemp` or `mkstemp`."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return make(prefix=f".{target.name}.partial-", dir=target.parent)
    except OSError as error:
        raise _unwritable(target, error) from None


def _unwritable(path: Path, error: OSError) -> InputError:
    found = f"a place that cannot be written to ({error.strerror})"
    return InputError(Fault(source=path, found=found, fix="name another"))


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go however this process ends
        except BlockingIOError:
            fix = "wait until it ends, or name another folder"
            raise HeldError(Fault(source=folder, found="a folder that another run is writing to", fix=fix)) from None
        yield
    finally:
        os.close(handle)
