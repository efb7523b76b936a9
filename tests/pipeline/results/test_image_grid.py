"""Tests of grids of images: every pixel is kept, and the modules that draw figures are not imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_results import Project
from PIL import Image

from pipeline.evaluation.record import Evaluation
from pipeline.results.image_grid import grids_of, real_images, write_grid, write_images


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


@pytest.mark.parametrize(
    ("fields", "file"),
    [
        ({"class_samples": {"fitted": {"of_each": 4, "right": [4, 3]}}}, "by_class"),
        ({"classes": "each", "fitted_base_bits_per_dim": 1.5}, "fitted_base"),
        ({"classes": "all", "fitted_base_bits_per_dim": 1.5}, None),
        ({}, None),
    ],
)
def test_rows_by_class_are_those_of_an_older_run_with_one_model_a_class(
    small_project: Project, fields: dict[str, Any], file: str | None
) -> None:
    evaluation = small_project.read().cells[0].evaluation.model_dump(exclude={"class_samples"})
    grids = grids_of(Evaluation.model_validate(evaluation | fields))
    assert grids.get("by_class") == file
    assert [*grids][:2] == ["samples", "nearest"]


def test_real_images_have_a_row_for_each_class_as_samples_by_class_have(small_project: Project, tmp_path: Path) -> None:
    write_images(tmp_path, small_project.read())
    for name in ("real-mnist", "by_class-mnist-lunet"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.size == (4 * 30 - 2, 3 * 30 - 2)
    assert {path.stem.partition("-")[0] for path in tmp_path.glob("*.png")} == {
        "real",
        "samples",
        "by_class",
        "nearest",
        "interpolations",
    }


def test_matplotlib_and_pandas_are_not_imported() -> None:
    code = "import sys, pipeline.results.image_grid; sys.exit(bool({'matplotlib', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
