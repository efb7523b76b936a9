"""The tests that need a CUDA GPU have the marker ``cuda`` and are skipped without one.

``pytest -m cuda`` needs what the pipeline imports, but neither DVC nor pytest's plugins.
"""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: needs a CUDA GPU")
    config.addinivalue_line("markers", "order: when to run a test, for pytest-order if it is installed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if marked := [item for item in items if item.get_closest_marker("cuda")]:
        import torch  # here, since many tests need no torch

        for item in marked:
            item.add_marker(pytest.mark.filterwarnings("default"))  # those of compilers and of capture are no errors
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
