"""Tests of the poster's times and the lower bounds on memory that the figures show."""

from __future__ import annotations

from pathlib import Path

import pytest
from collected import content
from fake_results import Project, parameters

from pipeline.results.drawing import memory_floors, poster_times


def test_the_poster_s_times_are_corrected_to_compare_with_ours(small_project: Project) -> None:
    small_project.collect()
    times = poster_times(content(small_project, "claims.json")["poster"])
    assert set(times) == {"optimizer_step", "density_large"}
    assert times["optimizer_step"] == {"lunet": 1.2, "realnvp": 56.0}
    assert times["density_large"]["lunet"] == pytest.approx(37.10 / 234.375)
    assert content(small_project, "timings.json")["mnist"]["lunet"]["released_density_ms"]["images"] == 1024


def test_memory_floors_are_those_of_the_measurements(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(grid__datasets=["mnist"], grid__recipes=["lunet", "realnvp", "gaussian"]))
    project.change("measure/mnist-lunet.json", floors_mib={"sampling": 12.0, "training": 36.5})
    project.change("measure/mnist-realnvp.json", floors_mib=None)
    assert memory_floors("mnist", project.read()) == {
        "lunet": {"sampling": 12.0, "training": 36.5},
        "gaussian": {"sampling": 9.4},
    }
    assert memory_floors("fashion_mnist", project.read()) == {}
