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


def test_memory_floors_count_parameters_gradients_and_optimiser_states(tmp_path: Path) -> None:
    changes = {"recipes__realnvp__training__optimizer": "sgd", "recipes__realnvp__dtype": "float64"}
    recipes = ["lunet", "realnvp", "gaussian"]
    project = Project(tmp_path, parameters(grid__datasets=["mnist"], grid__recipes=recipes, **changes))
    for recipe, stored in (("lunet", 3), ("realnvp", 2), ("gaussian", 5)):
        counts = {"stored": stored * 2**20, "free": 2 * 2**20}
        project.change(f"measure/mnist-{recipe}.json", parameters=counts)
    # Four bytes per number, eight in double precision; Adam keeps two numbers for each free parameter, SGD one.
    assert memory_floors("mnist", project.read()) == {
        "lunet": {"sampling": 4 * 3, "training": 4 * (3 + 2 + 2 * 2)},
        "realnvp": {"sampling": 8 * 2, "training": 8 * (2 + 2 + 2)},
        "gaussian": {"sampling": 4 * 5},
    }
    assert memory_floors("fashion_mnist", project.read()) == {}
