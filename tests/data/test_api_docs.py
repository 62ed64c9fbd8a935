"""The built-in collection: the same everywhere for the same versions, and no text on both sides of a split."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.data import api_docs, load_data
from compressor.data.normalization import normalized
from compressor.data_reference import DataReference

SPLITS = ("train", "dev", "test")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only two small packages, without the standard library: a second instead of twenty."""
    monkeypatch.setattr(api_docs, "PACKAGES", ("rich", "pydantic", "no-such-package"))
    versions = api_docs.installed_versions()
    monkeypatch.setattr(api_docs, "installed_versions", lambda: {key: versions[key] for key in ("rich", "pydantic")})


def test_versions_name_python_and_what_is_installed(monkeypatch):
    monkeypatch.setattr(api_docs, "PACKAGES", ("numpy", "no-such-package"))
    assert list(api_docs.installed_versions()) == ["stdlib", "numpy"]


def test_a_pair_is_a_summary_and_the_rest(small):
    data = load_data(DataReference.model_validate("api-docs/train"))
    assert data.name == "api-docs/train"
    query, text = next((query, text) for query, text in data.queries.items() if query.startswith("q:pydantic."))
    assert data.qrels[query] == {query.removeprefix("q:"): 1}
    assert normalized(text) not in normalized(data.documents[query.removeprefix("q:")])


def test_the_second_reading_builds_nothing(small, monkeypatch):
    first = load_data(DataReference.model_validate("api-docs/dev"))
    monkeypatch.setattr(api_docs, "build", lambda versions: pytest.fail("built again"))
    assert load_data(DataReference.model_validate("api-docs/dev")).fingerprint == first.fingerprint


def test_the_order_of_the_file_system_changes_nothing(small, monkeypatch, tmp_path):
    first = load_data(DataReference.model_validate("api-docs/train"))
    found = api_docs._distribution

    class Shuffled:
        def __init__(self, name: str) -> None:
            self.files = list(reversed(found(name).files))  # type: ignore[union-attr, arg-type]

    monkeypatch.setattr(api_docs, "_distribution", Shuffled)
    monkeypatch.setenv("RANKPRESS_CACHE", str(tmp_path / "other"))
    assert load_data(DataReference.model_validate("api-docs/train")).fingerprint == first.fingerprint


def test_other_versions_are_another_collection(small, monkeypatch, cache):
    load_data(DataReference.model_validate("api-docs/dev"))
    versions = api_docs.installed_versions()
    monkeypatch.setattr(api_docs, "installed_versions", lambda: versions | {"rich": "0.1"})
    load_data(DataReference.model_validate("api-docs/dev"))
    assert len(list((cache / "api-docs").iterdir())) == 2


def test_nothing_is_imported_or_run(tmp_path, monkeypatch):
    source = tmp_path / "hostile.py"
    lines = '"""A module that must never be run by anyone.\n\n' + "Words about nothing in particular. " * 10 + '"""\n'
    source.write_text(lines + "raise SystemExit('run')\n", encoding="utf-8")
    monkeypatch.setattr(api_docs, "_source_files", lambda package: [(source, Path("hostile.py"))])
    assert [passage.name for passage in api_docs.build({"x": "1"})] == ["hostile"]


@pytest.mark.slow
def test_the_whole_collection_is_large_and_its_splits_share_no_text(tmp_path_factory, monkeypatch):
    data = {split: load_data(DataReference.model_validate(f"api-docs/{split}")) for split in SPLITS}
    sizes = {split: len(data[split].queries) for split in SPLITS}
    assert sizes["test"] >= 600, "a loss of 1 % must be decidable"
    assert 5_000 <= sum(sizes.values()) <= 12_000
    texts = [set(map(normalized, [*data[split].queries.values(), *data[split].documents.values()])) for split in SPLITS]
    assert len(set.union(*texts)) == sum(map(len, texts)) == 2 * sum(sizes.values())
    for split in SPLITS:
        assert 0.6 < sizes[split] / sum(sizes.values()) / {"train": 0.7, "dev": 0.1, "test": 0.2}[split] < 1.4
        assert {next(iter(grades)) for grades in data[split].qrels.values()} == set(data[split].documents)
