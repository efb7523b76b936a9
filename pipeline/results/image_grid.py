"""Grids of images as PNG files: samples, and test images beside them; imports neither matplotlib nor pandas."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.results.reading import Grid, Results, read_samples


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


def write_images(folder: Path, results: Results) -> None:
    """Write the samples of each recipe's first complete seed and, in the same shape, test images of each data set."""
    shape = (results.params.evaluate.sample_rows, results.params.evaluate.sample_columns)
    for name, data in results.datasets.items():
        write_grid(folder / f"real-{name}.png", real_images(data.test_images, data.test_labels, *shape))
    first = {cell.key[:2]: cell for cell in reversed(results.cells) if cell.status == "complete"}
    for (dataset, recipe), cell in first.items():
        left_out = {
            "interpolations": not cell.evaluation.interpolations,
            "fitted_base": cell.evaluation.fitted_base_bits_per_dim is None,
        }
        for name in get_args(Grid):
            if not left_out.get(name):
                write_grid(folder / f"{name}-{dataset}-{recipe}.png", read_samples(cell, name))
