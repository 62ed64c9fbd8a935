"""Queries that a model writes: asked for once, kept through kills, chosen before they are paid for."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from compressor.data import check_reference, load_data
from compressor.data import generated_queries as module
from compressor.data_reference import DataReference
from compressor.errors import InputError
from compressor.storage import sole_writer
from tests.families.language_models import build_decoder, build_t5


class Writer:
    """Stands in for a model: writes the document's first words and its seed's parity, two at a time."""

    asked: list[str] = []  # noqa: RUF012  # emptied by the fixture
    replies: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, folder, settings):
        self.settings = settings

    def write(self, orders, advance):
        for start in range(0, len(orders), 2):
            batch = list(enumerate(orders))[start : start + 2]
            Writer.asked += [order.document for _, order in batch]
            own = [f"what of {order.document.split('.')[0].lower()} {order.seed % 97}" for _, order in batch]
            yield [
                (row, Writer.replies.get(order.document, text)) for (row, order), text in zip(batch, own, strict=True)
            ]
            advance(len(batch))


@pytest.fixture
def family(monkeypatch):
    Writer.asked, Writer.replies = [], {}
    stand_in = SimpleNamespace(
        QueryWriter=Writer,
        Order=lambda document, seed: SimpleNamespace(document=document, seed=seed),
        generator_folder=lambda model, with_weights=True: model,
        generator_fingerprint=lambda folder: f"files of {folder}",
    )
    monkeypatch.setattr(module, "_family", lambda: stand_in)
    return stand_in


def load(tmp_path, per_document=1, candidates="bm25", queries=None, exclude=(), **generator: Any):
    made = {"generator": {"model": "m", **generator}, "per_document": per_document}
    value = {"collection": "pets", "make_queries": made, "candidates": candidates, "queries": queries}
    return load_data(DataReference.model_validate(value | {"exclude_queries": exclude}), base=tmp_path)


def test_every_document_gets_its_query_and_is_its_candidate(beir, tmp_path, family):
    beir(queries=None)
    data = load(tmp_path)
    assert list(data.queries) == ["d1~written", "d2~written", "d3~written", "d4~written"]
    assert data.queries["d2~written"].startswith("what of dogs bark at night ")
    assert all(query.split("~")[0] in found for query, found in data.candidates.items())
    assert (data.name, data.qrels) == ("pets, made queries", {})
    assert load(tmp_path).fingerprint == data.fingerprint
    assert len(Writer.asked) == 4, "a second load asks for nothing"


def test_a_sample_costs_as_many_as_it_has_and_a_larger_one_only_what_is_new(beir, tmp_path, family):
    beir()
    few = load(tmp_path, queries=2)
    assert len(few.queries) == len(Writer.asked) == 2
    every = load(tmp_path)
    assert few.queries.items() < every.queries.items()
    assert len(Writer.asked) == 4
    Writer.asked = []
    assert len(load(tmp_path, queries=3, exclude=["d1~written"], seed=5).queries) == len(Writer.asked) == 3


def test_several_queries_of_a_document_are_sampled_apart(beir, tmp_path, family):
    beir()
    data = load(tmp_path, per_document=3)
    assert len(Writer.asked) == 12
    assert {query.partition("~")[2] for query in data.queries} == {"written", "written-2", "written-3"}
    assert len(set(data.queries.values())) == len(data.queries) > 8
    load(tmp_path, per_document=2)
    assert len(Writer.asked) == 12


def test_copies_of_a_document_are_asked_for_once(beir, tmp_path, family):
    lines = [
        {"_id": key, "text": text} for key, text in (("a", "Cats sleep."), ("b", "cats sleep"), ("c", "Dogs bark."))
    ]
    beir(corpus="\n".join(map(json.dumps, lines)))
    assert list(load(tmp_path).queries) == ["a~written", "c~written"]


@pytest.mark.parametrize("changes", [{"model": "other"}, {"seed": 1}, {"top_k": 3}, {"prompt": "ask: {document}"}])
def test_other_models_and_settings_write_anew(beir, tmp_path, family, changes):
    beir()
    load(tmp_path)
    load(tmp_path, **changes)
    assert len(Writer.asked) == 8
    load(tmp_path, batch_tokens=7)
    assert len(Writer.asked) == 8, "speed changes no text"


def test_outputs_that_nobody_would_ask_are_left_out_and_it_is_said(beir, tmp_path, family, capsys):
    beir()
    Writer.replies = {
        "Dogs bark at night.": "",
        "Fish Fish swim.": " ".join(["long"] * 25),
        "Cats Cats sleep most of the day.": "What do  they?",
        "Birds sing in the morning and sleep at night.": "what do they",
    }
    data = load(tmp_path)
    assert data.queries == {"d1~written": "What do they?"}
    said = "pets: 3 of 4 written queries left out: empty, unfinished, too long, or like others"
    assert said in capsys.readouterr().err
    load(tmp_path)
    assert len(Writer.asked) == 4, "what was no query is not asked for again"
    Writer.replies = dict.fromkeys(Writer.replies, "one")
    with pytest.raises(InputError, match=r"make_queries\.generator: found no query to use among 4 that m wrote: empty"):
        load(tmp_path, seed=3)


@pytest.mark.parametrize("n_batches", [1, 2, 3])
def test_a_killed_run_goes_on_behind_its_last_batch(beir, tmp_path, family, monkeypatch, cache, n_batches):
    beir()
    whole = load(tmp_path, per_document=2, seed=9)
    (path,) = (cache / "generated-queries").rglob("queries.jsonl")
    kept = path.read_bytes()
    path.unlink()

    class Killed(Writer):
        def write(self, orders, advance):
            for number, batch in enumerate(super().write(orders, advance)):
                if number == n_batches:
                    raise KeyboardInterrupt
                yield batch

    with monkeypatch.context() as patch:
        patch.setattr(family, "QueryWriter", Killed)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path, per_document=2, seed=9)
    assert len(path.read_bytes().splitlines()) == 2 * n_batches
    Writer.asked = []
    assert load(tmp_path, per_document=2, seed=9).queries == whole.queries
    assert len(Writer.asked) == 8 - 2 * n_batches
    assert sorted(path.read_bytes().splitlines()) == sorted(kept.splitlines())


def test_a_broken_last_line_is_dropped_wherever_it_breaks(beir, tmp_path, family, cache):
    beir()
    whole = load(tmp_path)
    (path,) = (cache / "generated-queries").rglob("queries.jsonl")
    kept = path.read_bytes()
    last = kept.rstrip(b"\n").rfind(b"\n") + 1
    for end in (last + 1, last + 20, len(kept) - 2, len(kept) - 1):
        path.write_bytes(kept[:end])
        Writer.asked = []
        assert load(tmp_path).queries == whole.queries
        assert len(Writer.asked) == (0 if end == len(kept) - 1 else 1), "a line without its end is whole all the same"
        records = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert len(records) == 4
    path.write_bytes(b"\0" * 40 + b"\n[1]\n{}\n" + kept)
    assert load(tmp_path).queries == whole.queries


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from compressor.data import load_data
from compressor.data_reference import DataReference
fsync, count = os.fsync, 0

def counted(handle):
    global count
    fsync(handle)
    count += 1
    if count == 2:
        os.kill(os.getpid(), 9)

os.fsync = counted
load_data(DataReference.model_validate_json(sys.argv[2]), base=Path(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("build", [build_t5, build_decoder])
def test_a_real_model_killed_in_the_middle_writes_the_same(beir, tmp_path, repository, cache, build, monkeypatch):
    beir()
    folder = build(tmp_path / "model")
    generator = {"model": "model", "top_k": 64, "max_new_tokens": 30, "batch_tokens": 200, "prompt": "{document}"}
    value = {"collection": "pets", "make_queries": {"generator": generator, "per_document": 4}}
    reference = DataReference.model_validate(value)
    check_reference(reference, tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(repository), reference.model_dump_json(), str(tmp_path)],
        check=False, capture_output=True,
    )  # fmt: skip
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    (path,) = (cache / "generated-queries").rglob("queries.jsonl")
    before = path.read_bytes().splitlines()
    assert 0 < len(before) < 16
    resumed = load_data(reference, base=tmp_path)
    assert path.read_bytes().splitlines()[: len(before)] == before
    assert len(path.read_bytes().splitlines()) == 16
    monkeypatch.setenv("RANKPRESS_CACHE", str(tmp_path / "other"))
    assert load_data(reference, base=tmp_path).queries == resumed.queries
    assert resumed.queries
    assert folder.is_dir()


def test_two_runs_ask_once(beir, tmp_path, family, cache):
    beir()
    load(tmp_path, queries=1)
    (path,) = (cache / "generated-queries").rglob("queries.jsonl")
    with sole_writer(path.parent):
        waiting = threading.Thread(target=load, args=(tmp_path,))
        waiting.start()
        waiting.join(timeout=0.3)
        assert waiting.is_alive()
        assert len(Writer.asked) == 1
    waiting.join(timeout=20)
    assert len(Writer.asked) == 4


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_package_names_its_extra(beir, tmp_path, monkeypatch, package):
    beir()
    names = [name for name in sys.modules if name.startswith("compressor.families.query_generator")]
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("compressor.families.query_generator", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    found = (
        rf"a language model, and the package {package}, which runs it, is not installed; pip install 'rankpress\[comp"
    )
    with pytest.raises(InputError, match=found):
        load(tmp_path)


def test_a_model_that_is_not_there_is_refused_when_the_recipe_is_checked(beir, tmp_path):
    beir()
    reference = DataReference.model_validate({"collection": "pets", "make_queries": {"generator": "absent"}})
    with pytest.raises(InputError, match=r"make_queries\.generator: found 'absent', no folder and no hub id"):
        check_reference(reference, tmp_path)


def test_a_relative_model_is_looked_for_beside_the_recipe(beir, tmp_path):
    beir()
    build_t5(tmp_path / "models" / "t5")
    reference = DataReference.model_validate({"collection": "pets", "make_queries": {"generator": "models/t5"}})
    made = reference.resolved(tmp_path).make_queries
    assert made is not None
    assert made.generator is not None
    assert made.generator.model == str(tmp_path / "models" / "t5")
    assert reference.resolved(tmp_path).resolved(tmp_path / "elsewhere") == reference.resolved(tmp_path)
