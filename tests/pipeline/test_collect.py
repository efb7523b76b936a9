"""Made-up runs of the whole grid through collect: metrics, verdicts and figures."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_results import SMALL, Project, parameters, with_failures

from pipeline.collect import collect
from pipeline.results.drawing import memory_floors, poster_times
from pipeline.results.metrics import HEADLINES


def content(project: Project, name: str) -> Any:
    return json.loads((project.reports / name).read_text(encoding="utf-8"))


def table(project: Project, name: str) -> list[dict[str, str]]:
    with (project.reports / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = with_failures(tmp_path_factory.mktemp("whole"))
    project.collect()
    return project


@pytest.fixture
def small(tmp_path: Path) -> Project:
    return Project(tmp_path, parameters(**SMALL))


# What is written


def test_metrics_are_means_over_the_complete_seeds(whole: Project) -> None:
    metrics = content(whole, "metrics.json")
    assert list(metrics) == ["mnist", "fashion_mnist"]
    lunet = metrics["mnist"]["lunet"]
    assert set(lunet) == set(HEADLINES) - {"sample_class_accuracy", "classification_accuracy", "infinite_pixels"}
    assert lunet["bits_per_dim"]["mean"] == pytest.approx(1.86, abs=1e-9)
    # t(0.975, 2) = 4.302653 times the standard error of 1.85, 1.86, 1.87
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert lunet["bits_per_dim"]["ci_low"] == pytest.approx(1.86 - half, abs=1e-5)
    assert lunet["parameters_free"] == {"mean": 2461760, "ci_low": 2461760, "ci_high": 2461760, "n": 3}
    assert metrics["mnist"]["realnvp"]["bits_per_dim"]["mean"] == pytest.approx((1.45 + 1.47) / 2, abs=1e-9)
    assert metrics["mnist"]["realnvp"]["bits_per_dim"]["n"] == 2
    assert metrics["fashion_mnist"]["realnvp"] == {}
    assert "poster_bits_per_pixel" not in metrics["mnist"]["histogram"]
    assert "best_epoch" not in metrics["mnist"]["gaussian"]


def test_one_seed_has_no_interval(small: Project) -> None:
    small.collect()
    assert content(small, "metrics.json")["mnist"]["lunet"]["bits_per_dim"] == {
        "mean": 1.85,
        "ci_low": None,
        "ci_high": None,
        "n": 1,
    }


def test_timings_are_medians_with_unit_and_batch(whole: Project) -> None:
    timings = content(whole, "timings.json")["mnist"]
    raw = [
        float(row["value"])
        for row in table(whole, "timings.csv")
        if (row["dataset"], row["recipe"], row["quantity"]) == ("mnist", "lunet", "step")
    ]
    step = timings["lunet"]["step_ms"]
    assert len(raw) == step["n"] == 8
    assert step["median"] == pytest.approx(np.median(raw), rel=1e-5)
    assert step["ci_low"] < step["median"] < step["ci_high"]
    assert (step["unit"], step["per"], step["batch"]) == ("ms", "step", 256)
    assert timings["lunet"]["memory_training_mib"]["median"] == 420
    assert timings["lunet"]["memory_training_above_start_mib"]["median"] == 120
    assert "step_ms" not in timings["gaussian"]


def test_a_gpu_s_memory_is_the_allocator_s(small: Project) -> None:
    small.change(
        "measure/mnist-lunet.json", memory__training__allocated_peak_mib=77.0, memory__sampling__allocated_peak_mib=11.0
    )
    small.collect()
    timings = content(small, "timings.json")["mnist"]["lunet"]
    assert timings["memory_training_mib"]["median"] == 77
    assert "memory_training_gpu_process_mib" not in timings
    assert "memory_training_above_start_mib" not in timings


def test_the_whole_process_on_a_gpu_stands_beside_the_allocator(small: Project) -> None:
    small.change(
        "measure/mnist-lunet.json", memory__training__allocated_peak_mib=77.0, memory__training__gpu_process_mib=612.0
    )
    small.collect()
    timings = content(small, "timings.json")["mnist"]["lunet"]
    assert timings["memory_training_gpu_process_mib"]["median"] == 612
    assert timings["memory_training_mib"]["median"] == 77


def test_the_poster_s_times_are_drawn_beside_the_honest_ones_they_compare_with(small: Project) -> None:
    small.collect()
    times = poster_times(content(small, "claims.json")["poster"])
    assert set(times) == {"optimizer_step", "density_large"}
    assert times["optimizer_step"] == {"lunet": 1.2, "realnvp": 56.0}
    assert times["density_large"]["lunet"] == pytest.approx(37.10 / 234.375)
    assert content(small, "timings.json")["mnist"]["lunet"]["released_density_ms"]["images"] == 1024


def test_claims_say_which_cells_failed(whole: Project) -> None:
    claims = {claim["id"]: claim for claim in content(whole, "claims.json")["claims"]}
    assert [found["verdict"] for found in claims["nll"]["datasets"]] == ["not_replicated", "not_tested"]
    assert "Seed 0 of realnvp: out of memory" in claims["nll"]["datasets"][1]["sentence"]


def test_every_figure_is_drawn(whole: Project) -> None:
    names = {path.name for path in (whole.reports / "figures").iterdir()}
    kinds = ("curves", "likelihood", "times", "memory", "determinant")
    assert {f"{kind}-{dataset}.svg" for kind in kinds for dataset in ("mnist", "fashion_mnist")} <= names
    assert "samples-mnist-realnvp.png" in names
    assert "samples-fashion_mnist-realnvp.png" not in names
    assert {"real-mnist.png", "real-fashion_mnist.png"} <= names


def test_the_same_runs_give_the_same_bytes(whole: Project, tmp_path: Path) -> None:
    again = tmp_path / "again"
    collect(whole.params, whole.data, whole.runs, again, paper="laptop")
    first = {path.relative_to(whole.reports): path.read_bytes() for path in whole.reports.rglob("*") if path.is_file()}
    second = {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}
    assert first == second
    assert len(first) > 20


def test_no_folder_of_the_machine_is_told(whole: Project) -> None:
    for path in whole.reports.rglob("*"):
        if path.suffix in {".json", ".csv", ".svg"}:
            text = path.read_text(encoding="utf-8")
            assert "/home/" not in text, path.name
            assert str(whole.root) not in text, path.name
    messages = [row["message"] for row in table(whole, "results.csv") if row["status"] == "out_of_memory"]
    assert messages[0] == "needed 9 GiB, see <path>"


def test_what_else_stands_in_reports_stays(small: Project) -> None:
    kept = small.reports / "published" / "v1" / "metrics.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}", encoding="utf-8")
    small.collect()
    assert kept.read_text(encoding="utf-8") == "{}"


def test_memory_cannot_be_below_what_parameters_gradients_and_states_take(tmp_path: Path) -> None:
    changes = {"recipes__realnvp__training__optimizer": "sgd", "recipes__realnvp__dtype": "float64"}
    recipes = ["lunet", "realnvp", "gaussian"]
    project = Project(tmp_path, parameters(grid__datasets=["mnist"], grid__recipes=recipes, **changes))
    for recipe, stored in (("lunet", 3), ("realnvp", 2), ("gaussian", 5)):
        counts = {"stored": stored * 2**20, "free": 2 * 2**20}
        project.change(f"measure/mnist-{recipe}.json", parameters=counts)
    # Four bytes a number, eight in double precision; Adam keeps two for each free parameter, SGD one.
    assert memory_floors("mnist", project.read()) == {
        "lunet": {"sampling": 4 * 3, "training": 4 * (3 + 2 + 2 * 2)},
        "realnvp": {"sampling": 8 * 2, "training": 8 * (2 + 2 + 2)},
        "gaussian": {"sampling": 4 * 5},
    }
    assert memory_floors("fashion_mnist", project.read()) == {}


def test_stages_have_their_cells_and_what_they_took(small: Project) -> None:
    small.collect()
    stages = {row["stage"]: (row["cells"], row["seconds"]) for row in content(small, "provenance.json")["stages"]}
    assert stages == {
        "data": (1, None),
        "train": (2, 15.0),
        "evaluate": (2, 2.0),
        "measure": (2, None),
        "mixture": (1, 9.0),
        "collect": (1, None),
        "report": (1, None),
    }
    small.change("evaluate/mnist-lunet-0.json", seconds=None)
    small.collect()
    stages = {row["stage"]: row["seconds"] for row in content(small, "provenance.json")["stages"]}
    assert stages["evaluate"] is None


# Only the grid


def test_cells_that_the_grid_does_not_name_are_not_read(small: Project) -> None:
    for stray in ("train/mnist-lunet-7/run.json", "evaluate/mnist-lunet-7.json", "measure/mnist-old.json"):
        path = small.runs / stray
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not even JSON", encoding="utf-8")
    small.collect()
    assert {row["seed"] for row in table(small, "results.csv")} == {"0"}


# Wrong runs


def test_a_failed_measurement_leaves_its_times_out(small: Project) -> None:
    small.change("measure/mnist-realnvp.json", status="out_of_memory", message="no", times=None, memory=None)
    small.collect()
    assert content(small, "timings.json")["mnist"]["realnvp"] == {}
    claims = {claim["id"]: claim for claim in content(small, "claims.json")["claims"]}
    assert "out of memory" in claims["step"]["datasets"][0]["sentence"]


def test_models_a_class_are_averaged_by_their_held_out_images(tmp_path: Path) -> None:
    changes = {**SMALL, "recipes__lunet__classes": "each", "recipes__realnvp__classes": "each"}
    project = Project(tmp_path, parameters(**changes))
    change = {"models__1__best_holdout_bits_per_dim": 5.05, "models__1__holdout_images": 12}
    project.change("train/mnist-lunet-0/run.json", **change)
    project.collect()
    lunet = content(project, "metrics.json")["mnist"]["lunet"]
    assert lunet["holdout_bits_per_dim"]["mean"] == pytest.approx((2 * 4 * 2.05 + 12 * 5.05) / 20, abs=1e-5)
    assert lunet["sample_class_accuracy"]["mean"] == 0.93
