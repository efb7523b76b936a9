"""Folders of IDX files, as the sources of data sets offer them."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

posix = pytest.mark.skipif(os.name != "posix", reason="the stand-ins for package managers are shell scripts")


def write_idx_files(folder: Path, files: dict[str, bytes], *, packed: bool = False) -> Path:
    folder.mkdir(parents=True)
    for file, content in files.items():
        path = folder / (f"{file}.gz" if packed else file)
        path.write_bytes(gzip.compress(content) if packed else content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
