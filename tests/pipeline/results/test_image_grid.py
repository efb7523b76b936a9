"""Tests of grids of images: every pixel is kept, and the modules that draw figures are not imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.results.image_grid import real_images, write_grid


def test_a_grid_keeps_every_pixel(tmp_path: Path) -> None:
    grid = np.random.default_rng(0).integers(0, 256, (2, 3, 28, 28), dtype=np.uint8)
    write_grid(tmp_path / "grid.png", grid)
    read = np.asarray(Image.open(tmp_path / "grid.png"))
    assert read.shape == (58, 88)
    assert np.array_equal(read[30:58, 60:88], grid[1, 2])


def test_real_images_have_one_class_per_row() -> None:
    labels = np.array([1, 0, 1, 0, 1], dtype=np.uint8)
    pictures = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((5, 28, 28), dtype=np.uint8)
    grid = real_images(pictures, labels, 2, 2)
    assert grid[:, :, 0, 0].tolist() == [[1, 3], [0, 2]]
    assert real_images(pictures, labels, 3, 4)[0, :, 0, 0].tolist() == [1, 3, 0, 0]


def test_matplotlib_and_pandas_are_not_imported() -> None:
    code = "import sys, pipeline.results.image_grid; sys.exit(bool({'matplotlib', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
