"""Fixtures that several files of tests share."""

from __future__ import annotations

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.contestants import VECTORS

# The measurement


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "VECTORS", {name: VECTORS[name] for name in ("8 linear layers", "lunet")})
    monkeypatch.setattr(benchmarks, "IMAGES", {})
