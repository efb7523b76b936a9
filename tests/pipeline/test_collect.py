"""Tests of the collect stage on made-up runs of the whole grid: metrics, verdicts and figures."""

from __future__ import annotations

from pathlib import Path

from collected import content, table
from fake_results import Project

from pipeline.collect import collect


def test_claims_say_which_cells_failed(whole: Project) -> None:
    claims = {claim["id"]: claim for claim in content(whole, "claims.json")["claims"]}
    assert [dataset["verdict"] for dataset in claims["nll"]["datasets"]] == ["undecided", "not_tested"]
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


def test_the_reports_contain_no_path_of_the_machine(whole: Project) -> None:
    for path in whole.reports.rglob("*"):
        if path.suffix in {".json", ".csv", ".svg"}:
            text = path.read_text(encoding="utf-8")
            assert "/home/" not in text, path.name
            assert str(whole.root) not in text, path.name
    messages = [row["message"] for row in table(whole, "results.csv") if row["status"] == "out_of_memory"]
    assert messages[0] == "needed 9 GiB, see <path>"


def test_other_files_in_reports_stay(small_project: Project) -> None:
    path = small_project.reports / "published" / "v1" / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}", encoding="utf-8")
    small_project.collect()
    assert path.read_text(encoding="utf-8") == "{}"


def test_stages_have_their_cells_and_seconds(small_project: Project) -> None:
    small_project.collect()
    stages = {
        row["stage"]: (row["cells"], row["seconds"]) for row in content(small_project, "provenance.json")["stages"]
    }
    assert stages == {
        "data": (1, None),
        "train": (2, 15.0),
        "evaluate": (2, 2.0),
        "measure": (2, None),
        "mixture": (1, 9.0),
        "collect": (1, None),
        "report": (1, None),
    }
    train, evaluate = content(small_project, "provenance.json")["stages"][1:3]
    assert (train["stage"], train["other_cores"], evaluate["other_cores"]) == ("train", 0.05, None)
    small_project.change("evaluate/mnist-lunet-0.json", seconds=None)
    small_project.collect()
    stages = {row["stage"]: row["seconds"] for row in content(small_project, "provenance.json")["stages"]}
    assert stages["evaluate"] is None


def test_cells_that_the_grid_does_not_name_are_not_read(small_project: Project) -> None:
    for stray in ("train/mnist-lunet-7/run.json", "evaluate/mnist-lunet-7.json", "measure/mnist-old.json"):
        path = small_project.runs / stray
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not even JSON", encoding="utf-8")
    small_project.collect()
    assert {row["seed"] for row in table(small_project, "results.csv")} == {"0"}


def test_a_failed_measurement_leaves_its_times_out(small_project: Project) -> None:
    small_project.change("measure/mnist-realnvp.json", status="out_of_memory", message="no", times=None, memory=None)
    small_project.collect()
    assert content(small_project, "timings.json")["mnist"]["realnvp"] == {}
    claims = {claim["id"]: claim for claim in content(small_project, "claims.json")["claims"]}
    assert "out of memory" in claims["step"]["datasets"][0]["sentence"]
