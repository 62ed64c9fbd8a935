"""pack and unpack: the same bytes again, small where there are zeros, and nothing believed that a file says."""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.commands import pack as pack_command
from compressor.errors import InputError
from compressor.export import export_folder
from compressor.export.packing import pack, packed_bytes
from compressor.passes.sparsify import Sparsify
from compressor.runtime.packed import LENGTH_BYTES, MAGIC, unpack
from compressor.runtime.ranker import OnnxRanker
from compressor.storage import sha256_file
from tests import tiny
from tests.passes.students import applied

PREFIX = len(MAGIC) + 32
PAIRS = [(query, document) for query in list(tiny.QUERIES.values())[:2] for document in tiny.DOCUMENTS.values()]


def wide() -> Any:
    """Return a ranker with matrices of 4 kB and more."""
    ffn: Any = tiny.tiny_layer().ffn
    layer = tiny.tiny_layer(ffn=ffn.changed(up=ffn.up.changed(outputs=256), down=ffn.down.changed(inputs=256)))
    return tiny.build_ranker(tiny.tiny_spec(layers=(layer, layer)), seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An exported ranker, nine of ten weights zero."""
    path = tmp_path_factory.mktemp("export") / "model"
    sparse = applied(Sparsify(method="magnitude", sparsity=0.9), wide())
    export_folder(sparse, path, manifest={"recipe": "tiny"})
    return path


@pytest.fixture(scope="module")
def packed(folder):
    path = folder.parent / "model.pack"
    pack(folder, path)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def scores(folder: Path) -> np.ndarray:
    return OnnxRanker.load(folder).score(PAIRS)


def sealed(text: bytes, streams: bytes = b"") -> bytes:
    """Return a pack with the hash that it has to have."""
    rest = len(text).to_bytes(LENGTH_BYTES, "little") + text + streams
    return MAGIC + hashlib.sha256(rest).digest() + rest


def one_file(**changes: Any) -> bytes:
    """Return a pack of one file of eight bytes, with some entries of its header changed."""
    content = b"contents"
    stream = lzma.compress(content)
    file = {"name": "a.txt", "sha256": hashlib.sha256(content).hexdigest()}
    part = {"kind": "bytes", "size_bytes": 8, "packed_bytes": len(stream)}
    file |= {name: value for name, value in changes.items() if name in file}
    part |= {name: value for name, value in changes.items() if name not in (*file, "streams", "files")}
    header = {"files": [{**file, "parts": [part]}] * changes.get("files", 1)}
    return sealed(json.dumps(header).encode(), changes.get("streams", stream * changes.get("files", 1)))


def test_the_same_bytes_come_back(folder, packed, tmp_path):
    unpack(packed, tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(folder)
    assert {"onnx/model.onnx", "model.safetensors", "rankpress.json"} <= files_of(folder).keys()


def test_zeros_cost_little(folder, packed, tmp_path):
    dense = tmp_path / "dense"
    export_folder(wide(), dense, manifest={})
    name = "onnx/model.onnx"
    assert packed_bytes(folder / name) < 0.5 * packed_bytes(dense / name)
    pack(dense, tmp_path / "dense.pack")
    assert packed.stat().st_size < 0.6 * (tmp_path / "dense.pack").stat().st_size


def test_the_main_file_alone_ranks_alike(folder, tmp_path):
    pack(folder, tmp_path / "small.pack", main_only=True)
    unpack(tmp_path / "small.pack", tmp_path / "again")
    found = files_of(tmp_path / "again")
    assert [name for name in found if name.endswith((".onnx", ".safetensors"))] == ["onnx/model.onnx"]
    np.testing.assert_array_equal(scores(tmp_path / "again"), scores(folder))
    listed = json.loads(found["rankpress.json"])["files"]
    assert all(hashlib.sha256(found[name]).hexdigest() == entry["sha256"] for name, entry in listed.items())


@pytest.mark.parametrize(("values", "atol"), [("float16", 0.01), ("int8", 0.3)])
def test_rounded_matrices_are_said_to_be_and_zeros_stay(folder, packed, tmp_path, values, atol):
    path = tmp_path / "rounded.pack"
    assert pack(folder, path, values=values).rounded == values
    assert path.stat().st_size < packed.stat().st_size
    again = tmp_path / "again"
    unpack(path, again)
    change = np.abs(scores(again) - scores(folder)).max()
    assert 0 < change < atol
    manifest = json.loads((again / "rankpress.json").read_text())
    assert manifest["rounded"]["values"] == values
    assert manifest["recipe"] == "tiny"
    entries = manifest["files"]
    assert all(sha256_file(again / name) == entry["sha256"] for name, entry in entries.items())
    assert f"rounded to {values}" in (again / "README.md").read_text()
    from safetensors.numpy import load_file

    before, after = load_file(folder / "model.safetensors"), load_file(again / "model.safetensors")
    for name, tensor in before.items():
        assert not after[name][tensor == 0].any()
        if "classifier" in name or tensor.ndim == 1:
            np.testing.assert_array_equal(after[name], tensor)


def test_every_damaged_byte_is_noticed(packed, tmp_path):
    whole = packed.read_bytes()
    for place in [0, 20, PREFIX, PREFIX + 50, *range(PREFIX + 99, len(whole), len(whole) // 40)]:
        broken = bytearray(whole)
        broken[place] ^= 1
        (tmp_path / "broken.pack").write_bytes(broken)
        with pytest.raises(InputError) as caught:
            unpack(tmp_path / "broken.pack", tmp_path / "out")
        assert len(caught.value.faults) == 1
    for length in (0, 5, PREFIX, PREFIX + 4, len(whole) // 2, len(whole) - 1):
        (tmp_path / "broken.pack").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"no pack|damaged"):
            unpack(tmp_path / "broken.pack", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["broken.pack"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (one_file(name="../a.txt"), "'../a.txt'"),
        (one_file(name="/etc/a.txt"), "'/etc/a.txt'"),
        (one_file(name="a/../../b"), "'a/../../b'"),
        (one_file(name=""), "file name ''"),
        (one_file(files=2), "'a.txt' twice"),
        (one_file(sha256="0" * 64), "does not fit its hash"),
        (one_file(sha256="zz"), "header.files.0.sha256"),
        (one_file(size_bytes=7), "not of 7 bytes"),
        (one_file(size_bytes=9), "not of 9 bytes"),
        (one_file(size_bytes=10**15), "would become 1,000,000,000,000,000"),
        (one_file(packed_bytes=3), "not of 8 bytes"),
        (one_file(packed_bytes=10**9, streams=b""), "not of 8 bytes"),
        (one_file(streams=lzma.compress(b"contents") + b"more"), "bytes behind the last stream"),
        (one_file(streams=b"x" * 68), "a broken stream"),
        (one_file(kind="code"), "header.files.0.parts.0"),
        (one_file(more=1), "header.files.0.parts.0"),
        (sealed(b"{"), "header"),
        (sealed(b'{"files": [], "schema_version": 2}'), "schema_version"),
        (MAGIC + hashlib.sha256(b"\xff" * 8).digest() + b"\xff" * 8, "a header of"),
    ],
)
def test_what_a_file_says_is_not_believed(tmp_path, content, found):
    (tmp_path / "bad.pack").write_bytes(content)
    with pytest.raises(InputError) as caught:
        unpack(tmp_path / "bad.pack", tmp_path / "out")
    assert found in str(caught.value)
    assert len(caught.value.faults) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pack"], "something was written"


def numbers(**changes: Any) -> bytes:
    mask, values = lzma.compress(b"\xc0"), lzma.compress(bytes(range(8)))
    part = {
        "kind": "numbers", "item_bytes": 4, "shape": [2, 2], "n_kept": 2, "streams": [len(mask), len(values), 0],
        **changes,
    }  # fmt: skip
    planes = np.frombuffer(bytes(range(8)), np.uint8).reshape(4, 2).T.tobytes()
    file = {"name": "a", "sha256": hashlib.sha256(planes + bytes(8)).hexdigest(), "parts": [part]}
    return sealed(json.dumps({"files": [file]}).encode(), mask + values)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"n_kept": 3}, "a mask of 2 numbers for 3"),
        ({"n_kept": 5}, "5 of 4 numbers"),
        ({"streams": [0, 1, 0]}, "2 of 4 numbers"),
        ({"shape": [20000, 20000]}, "would become"),
        ({"shape": [0, 4]}, "header.files.0.parts.0"),
        ({"item_bytes": 3}, "header.files.0.parts.0"),
        ({"item_bytes": 2, "values": "float16"}, "numbers of 2 bytes held as float16"),
        ({"values": "int8"}, "a stream that is not of"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(tmp_path, changes, found):
    (tmp_path / "good.pack").write_bytes(numbers())
    unpack(tmp_path / "good.pack", tmp_path / "out")
    assert (tmp_path / "out" / "a").stat().st_size == 16
    (tmp_path / "bad.pack").write_bytes(numbers(**changes))
    with pytest.raises(InputError) as caught:
        unpack(tmp_path / "bad.pack", tmp_path / "other")
    assert found in str(caught.value)


def test_sizes_beyond_the_limit_are_refused(packed, tmp_path):
    with pytest.raises(InputError, match="raise --max-gb"):
        unpack(packed, tmp_path / "out", most_bytes=1000)


def test_what_cannot_be_packed_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        pack(tmp_path / "nowhere", tmp_path / "a.pack")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="an empty folder"):
        pack(tmp_path / "empty", tmp_path / "a.pack")
    with pytest.raises(InputError, match="did you mean 'float16'"):
        pack_command(folder, tmp_path / "a.pack", values="float1", main_only=False)
