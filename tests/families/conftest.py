"""Fixtures over stock checkpoints."""

from __future__ import annotations

import pytest

from tests.families.stock_models import CHECKPOINTS, Stock, build_stock


@pytest.fixture(scope="session", params=sorted(CHECKPOINTS))
def stock(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return build_stock(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def stock_bert(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return build_stock("bert", tmp_path_factory.mktemp("bert"))
