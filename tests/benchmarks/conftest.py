"""Fixtures that the tests of the benchmarks share."""

from __future__ import annotations

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.contestants import VECTORS


@pytest.fixture
def two_small_contestants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only two models to compare, both of vectors."""
    monkeypatch.setattr(benchmarks, "VECTORS", {name: VECTORS[name] for name in ("8 linear layers", "lunet")})
    monkeypatch.setattr(benchmarks, "IMAGES", {})
