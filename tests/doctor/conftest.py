"""The folder that the doctor's tests start from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from compressor.export import export_folder
from tests.doctor.changes import edit


@pytest.fixture(scope="session")
def exported(tiny_ranker, tmp_path_factory) -> Path:
    """The tiny ranker's folder, whose words no consumer guesses from."""
    folder = tmp_path_factory.mktemp("folders") / "model"
    export_folder(tiny_ranker, folder, manifest={})
    edit("tokenizer_config.json", model_max_length=512)(folder)  # rows as long as those that are in use
    return folder


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    """A copy of it, to be changed."""
    shutil.copytree(exported, tmp_path / "model")
    return tmp_path / "model"
