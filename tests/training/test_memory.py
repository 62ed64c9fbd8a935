"""What a process that trains asks of the allocator, and when it asks nothing."""

from __future__ import annotations

import ctypes
import os
import sys

import pytest

from compressor.training.memory import (
    give_freed_memory_back,
    keep_few_primitives,
    keep_freed_memory,
    memory_of_training,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc alone is asked for anything")


TRIMMED = 0


@pytest.fixture
def asked(monkeypatch):
    """Return what glibc was asked for."""
    calls: list[tuple[int, int]] = []

    class Library:
        @staticmethod
        def mallopt(parameter, value):
            calls.append((parameter, value))

        @staticmethod
        def malloc_trim(pad):
            calls.append((TRIMMED, pad))

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    for name in ("GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_what_is_freed_is_kept(asked):
    keep_freed_memory()
    assert dict(asked).keys() == {-1, -2, -4}  # the trim threshold, the top pad and the most mappings of malloc.h
    assert dict(asked)[-4] == 0
    assert dict(asked)[-1] > 2**30


@pytest.mark.parametrize(
    ("name", "value"), [("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1"), ("LD_PRELOAD", "/lib/libjemalloc.so.2")]
)
def test_a_user_who_chose_is_not_overruled(asked, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    keep_freed_memory()
    assert not asked


def test_few_compiled_products_are_kept_unless_a_user_says_how_many(monkeypatch):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, "7")
    keep_few_primitives()
    assert os.environ[name] == "7"
    monkeypatch.delenv(name)
    keep_few_primitives()
    assert int(os.environ[name]) < 100


def test_behind_a_training_what_is_free_is_given_back(asked, monkeypatch):
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    with memory_of_training(on_cpu=True):
        assert len(asked) == 3
    assert asked[3:] == [(TRIMMED, 0)]
    with memory_of_training(on_cpu=False):
        assert len(asked) == 4
    assert len(asked) == 4


def test_other_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    keep_freed_memory()
    give_freed_memory_back()
