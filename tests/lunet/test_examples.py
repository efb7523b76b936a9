from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import lunet

FINDER = doctest.DocTestFinder(exclude_empty=True)
EXAMPLES = [
    example
    for module in pkgutil.iter_modules(lunet.__path__, "lunet.")
    for example in FINDER.find(importlib.import_module(module.name), extraglobs={**vars(lunet), "torch": torch})
    if example.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example(example: doctest.DocTest) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    failed = runner.run(example, out=report.append).failed
    assert not failed, "".join(report)


def test_lu_net_has_an_example() -> None:
    assert "lunet.lu_net.LUNet" in {example.name for example in EXAMPLES}
