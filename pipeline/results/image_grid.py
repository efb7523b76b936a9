"""Grids of images as PNG files; imports neither matplotlib nor pandas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def write_grid(path: Path, grid: NDArray[np.uint8]) -> None:
    """A grid of images of shape (rows, columns, height, width) as a PNG, with thin mid-grey gaps between the images."""
    framed = np.pad(grid, ((0, 0), (0, 0), (0, 2), (0, 2)), constant_values=128)
    rows, columns, height, width = framed.shape
    canvas = framed.swapaxes(1, 2).reshape(rows * height, columns * width)[:-2, :-2]
    # One channel: matplotlib's writer would write four, and so twice the bytes.
    Image.fromarray(canvas).save(path, format="png", optimize=True)


def real_images(pictures: NDArray[np.uint8], labels: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """The first test images of each class, one class per row, in the shape of a grid of samples."""
    grid = np.zeros((rows, columns, *pictures.shape[1:]), dtype=np.uint8)
    for row in range(rows):
        of_class = pictures[labels == row % (int(labels.max()) + 1)][:columns]
        grid[row, : len(of_class)] = of_class
    return grid
