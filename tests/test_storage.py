"""Files and folders appear whole or not at all, names stay inside their folder, and fingerprints are stable."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from compressor.errors import InputError
from compressor.storage import (
    inside,
    read_json,
    sha256_file,
    sha256_json,
    sole_writer,
    whole_folder,
    write_json,
    write_whole,
)


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_sha256_of_a_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc" * 100_000)
    assert sha256_file(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_sha256_of_json_ignores_the_order_of_keys_and_nothing_else():
    value = {"a": 1, "b": [1, 2.5, None, True], "c": {"x": "ü", "y": ""}}
    assert sha256_json(value) == sha256_json({"c": {"y": "", "x": "ü"}, "b": [1, 2.5, None, True], "a": 1})
    others = [
        {**value, "a": 2},
        {**value, "a": "1"},
        {**value, "b": [2.5, 1, None, True]},
        {"a": 1, "b": value["b"]},
    ]
    assert len({sha256_json(each) for each in [value, *others]}) == 5
    assert sha256_json(json.loads(json.dumps(value))) == sha256_json(value)


def test_folder_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "er" / "target"
    with whole_folder(target) as partial:
        (partial / "a").write_text("1")
        assert not target.exists()
        assert partial.parent == target.parent  # on the same disk, so that the last step is a rename
    assert (target / "a").read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    assert rights(target) == 0o755


def test_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "target"
    for content in ("old", "new"):
        with whole_folder(target) as partial:
            (partial / content).write_text(content)
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def write_half(target: Path, error: type[BaseException]) -> None:
    with whole_folder(target) as partial:
        (partial / "half").write_text("")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_folder_vanishes_when_the_block_fails(tmp_path, error):
    with pytest.raises(error):
        write_half(tmp_path / "target", error)
    assert list(tmp_path.iterdir()) == []


def test_old_folder_stays_when_the_block_fails(tmp_path):
    target = tmp_path / "target"
    with whole_folder(target) as partial:
        (partial / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_half(target, KeyboardInterrupt)
    assert [path.name for path in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_old_folder_comes_back_when_the_last_step_fails(tmp_path, monkeypatch):
    target = tmp_path / "target"
    with whole_folder(target) as partial:
        (partial / "old").write_text("old")
    rename = Path.replace

    def fail(self: Path, other: Path) -> Path:
        if self.name.startswith(".target.partial-"):
            raise OSError("disk is gone")
        return rename(self, other)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk is gone"), whole_folder(target) as partial:
        (partial / "new").write_text("new")
    assert [path.name for path in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_in_the_place_of_the_folder_is_not_destroyed(tmp_path):
    target = tmp_path / "thesis.txt"
    target.write_text("precious")
    with pytest.raises(InputError, match=r"thesis\.txt: found a file"), whole_folder(target):
        pass
    assert target.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [target]


def test_text_is_written_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_whole(path, "tree ü")
    write_whole(path, "sea")
    assert path.read_text(encoding="utf-8") == "sea"
    assert rights(path) == 0o644
    assert [each.name for each in path.parent.iterdir()] == ["a.txt"]


def test_text_that_cannot_be_written_leaves_the_old(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "half \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_comes_back(tmp_path):
    value = {"b": [1, 2.5, None], "a": {"ü": "\u2028"}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "ü" in text  # readable, not escaped
    assert text.endswith("}\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n "a": 1,\n}', "a.json: line 3: found broken JSON"),
        (b"", "a.json: line 1: found broken JSON"),
        (b"\xff\xfe", "a.json: found broken JSON ('utf-8' codec"),
        (b"[" * 100_000, "a.json: found broken JSON (maximum recursion"),
    ],
)
def test_broken_json_is_named(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(tmp_path / "a.json")
    assert message in str(caught.value)


def test_json_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for name, found in {
        "none.json": "no such file",
        "file/a.json": "no such file",
        "folder": "a file that cannot be read",
    }.items():
        with pytest.raises(InputError) as caught:
            read_json(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: found {found}")


def test_names_inside_a_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    assert inside(tmp_path, "a.json") == tmp_path / "a.json"
    assert inside(tmp_path, "sub/a.json") == tmp_path / "sub" / "a.json"
    assert inside(tmp_path, "sub\\a.json") == tmp_path / "sub" / "a.json"
    assert inside(tmp_path, "..a") == tmp_path / "..a"


@pytest.mark.parametrize("name", ["../a", "sub/../../a", "/etc/passwd", "..\\a", "sub/..", "a\0b", "", "."])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(InputError) as caught:
        inside(tmp_path, name)
    assert f"found the file name {name!r}; allowed: names inside the folder" in str(caught.value)


def test_links_that_leave_the_folder_are_refused(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_text("")
    (folder / "out").symlink_to(tmp_path)
    (folder / "link").symlink_to(folder)
    with pytest.raises(InputError, match="out/secret"):
        inside(folder, "out/secret")
    assert inside(folder, "link/a") == folder / "link" / "a"
    (folder / "loose").symlink_to("nowhere")
    assert inside(folder, "loose") == folder / "loose"


def test_text_for_a_device_or_a_link_goes_where_it_leads(tmp_path):
    read, write = os.pipe()
    write_whole(Path(f"/proc/self/fd/{write}"), "line\n")
    assert os.read(read, 100) == b"line\n"
    for handle in (read, write):
        os.close(handle)
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_whole(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_places_that_cannot_be_written_to_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/x: found a place that cannot be written to \(.+\); name another"):
        write_whole(tmp_path / "file" / "x", "text")
    with pytest.raises(InputError, match="a place that cannot be written to"), whole_folder(tmp_path / "file" / "x"):
        pass
    with pytest.raises(InputError, match="a place that cannot be written to"), sole_writer(tmp_path / "file" / "x"):
        pass


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    (tmp_path / "stages").mkdir()
    for name in ("stages/.1-drop.partial-a1_b2", "stages/.1-drop.old-x"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / ".spec.json.partial-d4").write_text("{")
    (tmp_path / ".report.json.partial-c3").write_text("{")
    kept = [tmp_path / ".hidden", tmp_path / ".partial-result", tmp_path / "stages" / "whole.partial"]
    for path in kept:
        path.write_text("")
    with sole_writer(tmp_path):
        assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
        assert not list((tmp_path / "stages").glob(".*"))


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    partial = tmp_path / "out" / ".model.partial-a1"
    with sole_writer(tmp_path / "out"):
        partial.mkdir()
        message = "out: found a folder that another run is writing to"
        with pytest.raises(InputError, match=message), sole_writer(tmp_path / "out"):
            pass
        assert partial.is_dir(), "the second writer cleared away what the first is writing"
    with sole_writer(tmp_path / "out"):
        assert not partial.exists()
