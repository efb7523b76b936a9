"""Custom data sets in every form that the data stage reads."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from png_files import write_png

from pipeline.core.dataset import ARRAYS
from pipeline.sources.published import FILES, idx_bytes

Arrays = dict[str, NDArray[Any]]


def small(side: int = 16, classes: int = 3) -> Arrays:
    """Images of every class in both parts, with the labels in order."""
    random = np.random.default_rng(0)
    arrays: Arrays = {}
    for part, each in (("train", 4), ("test", 2)):
        arrays[f"{part}_images"] = random.integers(0, 256, (each * classes, side, side), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.repeat(np.arange(classes), each).astype(np.uint8)
    return arrays


def put_npz(path: Path, arrays: Arrays) -> Path:
    np.savez(path.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
    return path.with_suffix(".npz")


def put_idx(path: Path, arrays: Arrays, *, packed: bool = False) -> Path:
    path.mkdir()
    for array, file in zip(ARRAYS, FILES, strict=True):
        content = idx_bytes(arrays[array])
        (path / f"{file}{'.gz' if packed else ''}").write_bytes(gzip.compress(content) if packed else content)
    return path


def put_pngs(path: Path, arrays: Arrays, names: tuple[str, ...] = ("0", "1", "2")) -> Path:
    for part in ("train", "test"):
        for number, (image, label) in enumerate(zip(arrays[f"{part}_images"], arrays[f"{part}_labels"], strict=True)):
            write_png(path / part / names[label] / f"{number:04}.png", image)
    return path
