"""The order of the tests, for `make test`, which gives whole files to several processes."""

from __future__ import annotations

import os

import pytest

# The first holds the whole run of the pipeline, which takes longer than all the rest beside it.
LONGEST = ("test_dvc.py", "test_train.py", "test_run.py", "test_maps.py")
LOWER_PRIORITY = 10


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first, so that no process is left with one at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let the other processes of `make test` step back behind the one with the longest file, where they can."""
    parallel, nice = "PYTEST_XDIST_WORKER" in os.environ, getattr(os, "nice", None)
    if parallel and nice and item.path.name != LONGEST[0] and nice(0) < LOWER_PRIORITY:
        nice(LOWER_PRIORITY)
