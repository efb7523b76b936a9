"""Tests of the headline metrics, the times and the memory: their values, intervals and units."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from collected import content, table
from fake_results import SMALL, Project, parameters

from pipeline.collect import collect
from pipeline.core.params import load_params
from pipeline.results.metrics import metrics_of, subjects_of, troubles_of
from pipeline.results.reading import CellStatus, read_results
from pipeline.results.tables import curves_table


def test_metrics_are_means_over_the_complete_seeds(whole: Project) -> None:
    metrics = content(whole, "metrics.json")
    assert list(metrics) == ["mnist", "fashion_mnist"]
    lunet = metrics["mnist"]["lunet"]
    assert list(lunet) == [
        "bits_per_dim", "bits_per_dim_median", "bits_per_dim_gaussian_base", "bits_per_dim_class_base",
        "poster_bits_per_pixel",
        "holdout_bits_per_dim", "best_epoch", "parameters_free", "parameters_stored", "pixels_exact",
        "sample_class_share",
    ]  # fmt: skip
    assert lunet["bits_per_dim"]["mean"] == pytest.approx(1.86, abs=1e-9)
    # t(0.975, 2) = 4.302653 times the standard error of 1.85, 1.86, 1.87
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert lunet["bits_per_dim"]["ci_low"] == pytest.approx(1.86 - half, abs=1e-5)
    assert lunet["parameters_free"] == {"mean": 2461760, "ci_low": 2461760, "ci_high": 2461760, "n": 3}
    assert metrics["mnist"]["realnvp"]["bits_per_dim"]["mean"] == pytest.approx((1.45 + 1.47) / 2, abs=1e-9)
    assert metrics["mnist"]["realnvp"]["bits_per_dim"]["n"] == 2
    assert metrics["fashion_mnist"]["realnvp"] == {}
    assert lunet["bits_per_dim_gaussian_base"]["mean"] == pytest.approx(1.81, abs=1e-9)
    assert lunet["sample_class_share"]["mean"] == pytest.approx(361 / 400, abs=1e-5)
    assert "poster_bits_per_pixel" not in metrics["mnist"]["histogram"]
    assert "best_epoch" not in metrics["mnist"]["gaussian"]


def test_subjects_have_what_claims_use_and_metrics_json_lacks(tmp_path: Path) -> None:
    changes = {**SMALL, "recipes__lunet__classes": "each", "recipes__realnvp__classes": "each"}
    project = Project(tmp_path, parameters(**changes))
    samples = {"fitted": {"of_each": 10, "right": [9, 8, 7]}, "standard_normal": {"of_each": 10, "right": [3, 2, 1]}}
    class_base = {"bits_per_dim": 1.75, "fitted_images": 96, "shrinkage": 0.3}
    project.change("evaluate/mnist-lunet-0.json", class_samples=samples, bases={"class_gaussians": class_base})
    by_class = {"closed_form": {"0": 2.0, "1": 2.35, "2": 1.9}, "identity": dict.fromkeys("012", 5.0)}
    project.change("evaluate/mnist-lunet-0.json", **{f"{name}_by_class": found for name, found in by_class.items()})
    exact = {"0": 1.0, "1": 0.999, "2": 1.0}
    project.change("evaluate/mnist-lunet-0.json", round_trip__pixels_exact_by_class=exact)
    results = project.read()
    subjects = subjects_of(results, curves_table(results.cells))["mnist"]
    lunet = subjects["lunet"]
    wanted = {
        "gain_over_gaussian": 0.4, "gain_over_identity": 3, "margin": 1e-3, "outside_least": 0.01, "outside_most": 0.03,
        "gain_over_start": 0.8, "standard_normal_share": 0.2, "sample_class_share": 0.8,
        "bits_per_dim_class_base": 1.75,
    }  # fmt: skip
    assert {name: lunet.metrics[name][0] for name in wanted} == pytest.approx(wanted)
    assert lunet.by_class["bits_per_dim"] == {0: pytest.approx({"0": 1.75, "1": 1.85, "2": 1.95})}
    assert set(lunet.by_class) == {"bits_per_dim", "gain_over_gaussian", "gain_over_identity", "pixels_lost"}
    assert lunet.by_class["gain_over_gaussian"] == {0: pytest.approx({"0": 0.25, "1": 0.5, "2": -0.05})}
    assert lunet.by_class["gain_over_identity"] == {0: pytest.approx({"0": 3.25, "1": 3.15, "2": 3.05})}
    assert lunet.by_class["pixels_lost"] == {0: pytest.approx({"0": 0, "1": 1000, "2": 0})}
    assert lunet.class_samples["fitted"][0].right == [9, 8, 7]
    assert [*lunet.curves[0]] == ["0", "1", "2"]
    assert lunet.curves[0]["1"].epochs == [0, 1, 2, 3]
    assert lunet.curves[0]["1"].bits_per_dim == pytest.approx([2.85, 2.45, 2.15, 2.05])
    shown = metrics_of(lunet)
    assert "margin" not in shown
    assert shown["bits_per_dim_class_base"]["mean"] == 1.75


def test_one_seed_has_no_interval(small_project: Project) -> None:
    small_project.collect()
    assert content(small_project, "metrics.json")["mnist"]["lunet"]["bits_per_dim"] == {
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
    medians = [np.median(values) for values in (raw[:3], raw[3:6], raw[6:])]
    assert (len(raw), step["n"], step["processes"]) == (8, 8, 3)
    assert step["median"] == pytest.approx(np.prod(medians) ** (1 / 3), rel=1e-5)
    assert step["ci_low"] < step["median"] < step["ci_high"]
    assert (step["unit"], step["per"], step["batch"]) == ("ms", "step", 256)
    assert timings["lunet"]["memory_training_mib"]["median"] == 420
    assert timings["lunet"]["memory_training_above_start_mib"]["median"] == 120
    assert "step_ms" not in timings["gaussian"]


def test_times_of_one_process_have_no_interval(small_project: Project) -> None:
    small_project.change("measure/mnist-lunet.json", times__step__process=None)
    small_project.collect()
    step = content(small_project, "timings.json")["mnist"]["lunet"]["step_ms"]
    assert (step["ci_low"], step["ci_high"], step["n"], step["processes"]) == (None, None, 8, 1)


def test_data_sets_with_images_of_one_size_have_the_times_of_one_measurement(whole: Project) -> None:
    timings = content(whole, "timings.json")
    assert timings["mnist"] == timings["fashion_mnist"]
    assert "step_ms" in timings["mnist"]["lunet"]


def test_every_recipe_has_the_one_determinant_that_was_measured(small_project: Project) -> None:
    path = small_project.runs / "measure/mnist-lunet.json"
    determinant = json.loads(path.read_text(encoding="utf-8"))["determinant"]
    small_project.change("measure/mnist-lunet.json", determinant=None)
    small_project.change("measure/mnist-realnvp.json", determinant=determinant)
    results = small_project.read()
    measured = subjects_of(results, curves_table(results.cells))["mnist"]["lunet"].determinant
    assert measured is not None
    assert measured.widths == determinant["widths"]


def test_without_a_measurement_of_the_size_there_is_a_reason(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(grid__recipes=["lunet", "realnvp"]))
    for recipe in ("lunet", "realnvp"):
        project.change(f"measure/mnist-{recipe}.json", image_shape=[14, 14])
    project.collect()
    assert content(project, "timings.json")["fashion_mnist"] == {"lunet": {}, "realnvp": {}}
    for claim in content(project, "claims.json")["claims"]:
        if claim["id"] in ("step", "sampling"):
            mnist, fashion = claim["datasets"]
            assert "add" not in mnist["sentence"]
            assert fashion["verdict"] == "not_tested"
            assert "measured on no images of 28×28; add fashion_mnist to measure.datasets." in fashion["sentence"]


def test_a_failed_measurement_is_the_reason_on_each_data_set_that_it_would_stand_for(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(grid__recipes=["lunet", "realnvp"]))
    failure = {"status": "out_of_memory", "times": None, "memory": None, "determinant": None}
    project.change("measure/mnist-lunet.json", message="no", **failure)
    unfinished = CellStatus(stage="measure", dataset="mnist", recipe="realnvp", status="missing", message="not begun")
    collect(project.params, project.data, project.runs, project.reports, unfinished=[unfinished])
    claims = {claim["id"]: claim for claim in content(project, "claims.json")["claims"]}
    for dataset in claims["determinant"]["datasets"]:
        assert dataset["sentence"] == "The measurement of lunet: out of memory."
    results = read_results(load_params(project.params), project.data, project.runs, [unfinished])
    assert troubles_of(results, "fashion_mnist", "realnvp") == ["the measurement of realnvp: missing"]


def test_a_gpu_s_memory_is_the_allocator_s(small_project: Project) -> None:
    small_project.change(
        "measure/mnist-lunet.json", memory__training__allocated_peak_mib=77.0, memory__sampling__allocated_peak_mib=11.0
    )
    small_project.collect()
    timings = content(small_project, "timings.json")["mnist"]["lunet"]
    assert timings["memory_training_mib"]["median"] == 77
    assert "memory_training_gpu_process_mib" not in timings
    assert "gpu_process" not in timings["memory_training_mib"]
    assert "memory_training_above_start_mib" not in timings


def test_gpu_memory_of_the_whole_process_is_a_second_entry(small_project: Project) -> None:
    small_project.change(
        "measure/mnist-lunet.json",
        memory__training__allocated_peak_mib=77.0,
        memory__training__gpu_process_mib=612.0,
        memory__training__gpu_process_source="counted",
    )
    small_project.collect()
    timings = content(small_project, "timings.json")["mnist"]["lunet"]
    assert timings["memory_training_gpu_process_mib"]["median"] == 612
    assert timings["memory_training_mib"]["gpu_process"] == "counted"
    assert timings["memory_training_mib"]["median"] == 77


def test_models_per_class_are_averaged_by_their_held_out_images(tmp_path: Path) -> None:
    changes = {**SMALL, "recipes__lunet__classes": "each", "recipes__realnvp__classes": "each"}
    project = Project(tmp_path, parameters(**changes))
    change = {"models__1__best_holdout_bits_per_dim": 5.05, "models__1__holdout_images": 12}
    project.change("train/mnist-lunet-0/run.json", **change)
    project.collect()
    lunet = content(project, "metrics.json")["mnist"]["lunet"]
    assert lunet["holdout_bits_per_dim"]["mean"] == pytest.approx((2 * 4 * 2.05 + 12 * 5.05) / 20, abs=1e-5)
    assert lunet["sample_class_accuracy"]["mean"] == 0.93
