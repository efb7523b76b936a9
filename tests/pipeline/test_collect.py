"""Made-up runs of the whole grid through collect, and the ways in which runs can be wrong."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results import Project, parameters

from pipeline.collect import HEADLINES, collect, differences, without_paths
from pipeline.console import UserError
from pipeline.params import PRESETS

LAPTOP = PRESETS / "laptop.yaml"
SMALL = {"grid__datasets": ["mnist"], "grid__recipes": ["lunet", "realnvp"], "grid__seeds": [0]}


def run(project: Project) -> None:
    collect(project.params, project.data, project.runs, project.reports, paper=LAPTOP)


def content(project: Project, name: str) -> Any:
    return json.loads((project.reports / name).read_text(encoding="utf-8"))


def table(project: Project, name: str) -> list[dict[str, str]]:
    with (project.reports / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two data sets, four recipes, three seeds, one of which diverged and one of which ran out of memory."""
    project = Project(tmp_path_factory.mktemp("whole"), parameters(grid__seeds=[0, 1, 2]))
    project.fail("mnist-realnvp-1")
    for seed in range(3):
        project.fail(f"fashion_mnist-realnvp-{seed}", "out_of_memory", "needed 9 GiB, see /home/someone/runs/log.txt")
    run(project)
    return project


@pytest.fixture
def small(tmp_path: Path) -> Project:
    return Project(tmp_path, parameters(**SMALL))


# What is written


def test_metrics_are_means_over_the_complete_seeds(whole: Project) -> None:
    metrics = content(whole, "metrics.json")
    assert list(metrics) == ["mnist", "fashion_mnist"]
    lunet = metrics["mnist"]["lunet"]
    assert set(lunet) == set(HEADLINES) - {"sample_class_accuracy"}
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
    run(small)
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
    run(small)
    timings = content(small, "timings.json")["mnist"]["lunet"]
    assert timings["memory_training_mib"]["median"] == 77
    assert "memory_training_above_start_mib" not in timings


def test_results_have_a_row_for_every_cell_and_class(whole: Project) -> None:
    rows = table(whole, "results.csv")
    cells = {(row["dataset"], row["recipe"], row["seed"]) for row in rows if row["class"] == "all"}
    assert len(cells) == 2 * 4 * 3
    own = [row for row in rows if (row["dataset"], row["recipe"], row["seed"]) == ("mnist", "lunet", "2")]
    assert [row["class"] for row in own] == ["all", "0", "1", "2"]
    assert float(own[0]["bits_per_dim_mean"]) == pytest.approx(1.87)
    assert float(own[3]["bits_per_dim_mean"]) == pytest.approx(1.97)
    assert (own[0]["device"], own[0]["host"], own[0]["commit"]) == ("cpu", "0123abcd", "c0ffee000000")


def test_failed_cells_are_rows_without_figures(whole: Project) -> None:
    rows = [row for row in table(whole, "results.csv") if row["status"] != "complete"]
    assert len(rows) == 4
    assert {row["status"] for row in rows} == {"diverged", "out_of_memory"}
    assert all(row["bits_per_dim_mean"] == "" for row in rows)
    assert rows[0]["message"] == "the loss is not finite at step 7"
    claims = {claim["id"]: claim for claim in content(whole, "claims.json")["claims"]}
    assert [found["verdict"] for found in claims["nll"]["datasets"]] == ["not_replicated", "not_tested"]
    assert "Seed 0 of realnvp: out of memory" in claims["nll"]["datasets"][1]["sentence"]


def test_curves_are_the_histories_one_after_the_other(whole: Project) -> None:
    rows = table(whole, "curves.csv")
    own = [row for row in rows if (row["dataset"], row["recipe"], row["seed"]) == ("mnist", "lunet", "0")]
    assert [row["epoch"] for row in own] == ["0.0", "1.0", "2.0", "3.0"]
    assert own[0]["train_bits_per_dim"] == ""
    assert {row["recipe"] for row in rows} == {"lunet", "realnvp"}


def test_provenance_tells_where_all_comes_from(whole: Project) -> None:
    provenance = content(whole, "provenance.json")
    assert len(provenance["cells"]) == 2 * 4 * 4
    assert len(provenance["environments"]) == 1
    assert len(provenance["environments"][0]["cells"]["train"]) == 24
    checksums = json.loads((whole.data / "mnist" / "dataset.json").read_text(encoding="utf-8"))["sha256"]
    assert provenance["datasets"]["mnist"]["sha256"] == checksums
    assert "report" not in provenance["params"]
    differing = {row["key"]: (row["ours"], row["paper"]) for row in provenance["differences"]}
    assert differing["grid.seeds"] == ([0, 1, 2], [0])
    assert differing["evaluate.sample_rows"] == (3, 10)
    assert (
        "python -m pipeline.train --dataset mnist --recipe lunet --seed 2 --out runs/train/mnist-lunet-2"
        in provenance["commands"]["train"]
    )


def test_every_figure_is_drawn(whole: Project) -> None:
    names = {path.name for path in (whole.reports / "figures").iterdir()}
    kinds = ("curves", "likelihood", "times", "memory", "determinant")
    assert {f"{kind}-{dataset}.svg" for kind in kinds for dataset in ("mnist", "fashion_mnist")} <= names
    assert "samples-mnist-realnvp.png" in names
    assert "samples-fashion_mnist-realnvp.png" not in names
    assert {"real-mnist.png", "real-fashion_mnist.png"} <= names


def test_the_same_runs_give_the_same_bytes(whole: Project, tmp_path: Path) -> None:
    again = tmp_path / "again"
    collect(whole.params, whole.data, whole.runs, again, paper=LAPTOP)
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
    run(small)
    assert kept.read_text(encoding="utf-8") == "{}"


# Only the grid


def test_cells_that_the_grid_does_not_name_are_not_read(small: Project) -> None:
    for stray in ("train/mnist-lunet-7/run.json", "evaluate/mnist-lunet-7.json", "measure/mnist-old.json"):
        path = small.runs / stray
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not even JSON", encoding="utf-8")
    run(small)
    assert {row["seed"] for row in table(small, "results.csv")} == {"0"}


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("train/mnist-realnvp-0/run.json", "pipeline.train --dataset mnist --recipe realnvp --seed 0"),
        ("train/mnist-realnvp-0/history.csv", "pipeline.train --dataset mnist --recipe realnvp --seed 0"),
        ("evaluate/mnist-realnvp-0.json", "pipeline.evaluate --dataset mnist --recipe realnvp --seed 0"),
        ("samples/mnist-realnvp-0/samples.npy", "pipeline.evaluate --dataset mnist --recipe realnvp --seed 0"),
        ("measure/mnist-realnvp.json", "pipeline.measure --dataset mnist --recipe realnvp"),
    ],
)
def test_a_missing_cell_is_named_with_its_command(small: Project, missing: str, command: str) -> None:
    (small.runs / missing).unlink()
    with pytest.raises(UserError, match="missing") as error:
        run(small)
    assert missing in str(error.value)
    assert command in str(error.value)


# Wrong runs


@pytest.mark.parametrize(
    ("path", "changes", "place"),
    [
        ("evaluate/mnist-lunet-0.json", {"test__bits_per_dim__mean": math.nan}, "test.bits_per_dim.mean is nan"),
        ("evaluate/mnist-lunet-0.json", {"per_class__1__bits_per_dim__max": math.inf}, "per_class.1"),
        ("measure/mnist-lunet.json", {"times__step__samples": [1.0, math.nan]}, "times.step.samples.1 is nan"),
        ("measure/mnist-lunet.json", {"times__step__samples": [0.0]}, "times.step.samples.0"),
        ("train/mnist-lunet-0/run.json", {"status": "fine"}, "status is 'fine'"),
    ],
)
def test_nan_and_nonsense_are_refused(small: Project, path: str, changes: dict[str, Any], place: str) -> None:
    small.change(path, **changes)
    with pytest.raises(UserError) as error:
        run(small)
    assert path in str(error.value)
    assert place in str(error.value)


def test_nan_in_the_history_of_a_complete_run_is_refused(small: Project) -> None:
    history = small.runs / "train" / "mnist-lunet-0" / "history.csv"
    history.write_text(history.read_text(encoding="utf-8") + "all,40,4,10.0,0.002,nan,1.9\n", encoding="utf-8")
    with pytest.raises(UserError, match="not finite"):
        run(small)


def test_the_history_of_a_diverged_model_ends_before_its_nan(small: Project) -> None:
    small.fail("mnist-realnvp-0")
    history = small.runs / "train" / "mnist-realnvp-0" / "history.csv"
    text = history.read_text(encoding="utf-8")
    more = "all,40,4,10.0,0.002,nan,1.9\nall,50,5,11.0,0.002,1.0,1.0\n0,40,4,10.0,0.002,1.5,1.6\n"
    history.write_text(text + more, encoding="utf-8")
    run(small)
    rows = [row for row in table(small, "curves.csv") if row["recipe"] == "realnvp"]
    assert [(row["model"], row["step"]) for row in rows[-2:]] == [("all", "30.0"), ("0", "40.0")]


def test_a_run_with_other_parameters_is_refused(small: Project) -> None:
    small.change("train/mnist-lunet-0/run.json", recipe_params__training__epochs=99.0)
    with pytest.raises(UserError, match=r"other parameters than recipes\.lunet"):
        run(small)


def test_a_file_about_another_cell_is_refused(small: Project) -> None:
    small.change("evaluate/mnist-lunet-0.json", seed=5)
    with pytest.raises(UserError, match="is about"):
        run(small)


def test_a_failed_measurement_leaves_its_times_out(small: Project) -> None:
    small.change("measure/mnist-realnvp.json", status="out_of_memory", message="no", times=None, memory=None)
    run(small)
    assert content(small, "timings.json")["mnist"]["realnvp"] == {}
    claims = {claim["id"]: claim for claim in content(small, "claims.json")["claims"]}
    assert "out of memory" in claims["step"]["datasets"][0]["sentence"]


def test_models_a_class_are_averaged_by_their_held_out_images(tmp_path: Path) -> None:
    changes = {**SMALL, "recipes__lunet__classes": "each", "recipes__realnvp__classes": "each"}
    project = Project(tmp_path, parameters(**changes))
    change = {"models__1__best_holdout_bits_per_dim": 5.05, "models__1__holdout_images": 12}
    project.change("train/mnist-lunet-0/run.json", **change)
    run(project)
    lunet = content(project, "metrics.json")["mnist"]["lunet"]
    assert lunet["holdout_bits_per_dim"]["mean"] == pytest.approx((2 * 4 * 2.05 + 12 * 5.05) / 20, abs=1e-5)
    assert lunet["sample_class_accuracy"]["mean"] == 0.93


# Parts


def test_differences_name_keys_values_and_what_one_side_lacks() -> None:
    ours = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": {"f": 1}}
    paper = {"a": 1, "b": {"c": [1, 3], "d": None}, "g": 0}
    assert differences(ours, paper) == [
        {"key": "b.c", "ours": [1, 2], "paper": [1, 3]},
        {"key": "e", "ours": "(a section)", "paper": None},
        {"key": "g", "ours": None, "paper": 0},
    ]


@pytest.mark.parametrize(
    ("message", "clean"),
    [
        (None, None),
        ("3.2 bits/dim after 5/6 epochs", "3.2 bits/dim after 5/6 epochs"),
        ("cannot read '/home/me/data/x.npy'", "cannot read '<path>'"),
        (r"C:\Users\me\x failed", "<path> failed"),
    ],
)
def test_paths_are_left_out_of_messages(message: str | None, clean: str | None) -> None:
    assert without_paths(message) == clean


def test_neither_collect_nor_report_imports_torch() -> None:
    program = "import sys, pipeline.collect, pipeline.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
