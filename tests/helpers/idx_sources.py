"""Folders of IDX files, as the sources of data sets offer them."""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

posix = pytest.mark.skipif(os.name != "posix", reason="the stand-ins for package managers are shell scripts")


def write_idx_files(folder: Path, files: dict[str, bytes], *, packed: bool = False) -> Path:
    folder.mkdir(parents=True)
    for file, content in files.items():
        path = folder / (f"{file}.gz" if packed else file)
        path.write_bytes(gzip.compress(content) if packed else content)
    return folder


def replace_mirrors(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Replace torchvision by one that knows only these mirrors of both data sets."""
    mirrors = SimpleNamespace(mirrors=[*addresses])
    datasets = SimpleNamespace(MNIST=mirrors, FashionMNIST=mirrors)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=datasets))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
