"""Grids of images as PNG files: samples, and test images beside them; imports neither matplotlib nor pandas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.evaluation.record import Evaluation
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
    """Write the grids of each recipe's first complete seed and, one class per row, test images of each data set."""
    for name, data in results.datasets.items():
        shape = (len(data.class_names), results.params.evaluate.sample_columns)
        write_grid(folder / f"real-{name}.png", real_images(data.test_images, data.test_labels, *shape))
    first = {cell.key[:2]: cell for cell in reversed(results.cells) if cell.status == "complete"}
    for (dataset, recipe), cell in first.items():
        for grid, file in grids_of(cell.evaluation).items():
            write_grid(folder / f"{grid}-{dataset}-{recipe}.png", read_samples(cell, file))


def grids_of(evaluation: Evaluation) -> dict[Grid, str]:
    """The grids of images of a complete cell, with the names of their files."""
    grids: dict[Grid, str] = {"samples": "samples", "nearest": "nearest"}
    if "fitted" in (evaluation.class_samples or {}):
        grids["by_class"] = "by_class"
    elif evaluation.classes == "each" and evaluation.fitted_base_bits_per_dim is not None:
        grids["by_class"] = "fitted_base"  # an older run, whose other grids of this name have no classes
    if evaluation.interpolations:
        grids["interpolations"] = "interpolations"
    return grids
