"""The order of the tests, for `make test`, which gives whole files to several processes."""

from __future__ import annotations

import pytest

LONGEST = ("test_dvc.py", "test_train.py", "test_run.py", "test_kills.py", "test_maps.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first, so that no process is left with one at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
