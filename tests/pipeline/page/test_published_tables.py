"""Tests of the published benchmark and sweeps on the page, whole, damaged and absent."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from fake_results import Project, parameters
from parsed_page import HOSTILE, Page

from pipeline.page.published_tables import read_benchmark, read_sweeps
from pipeline.page.view import render

KEPT = Path(__file__).parents[3] / "reports/published"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reports of a run, with the benchmark and the sweeps of this repository."""
    project = Project(tmp_path_factory.mktemp("costs"), parameters(grid__datasets=["mnist"], grid__recipes=["lunet"]))
    project.collect()
    for name in ("benchmarks", "sweeps"):
        shutil.copytree(KEPT / name, project.reports / "published" / name)
    return project.reports


@pytest.fixture
def reports(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "reports"))


def shown(reports: Path) -> Page:
    return Page(render(reports, "Costs"))


def test_the_published_benchmark_is_shown_with_every_figure_and_time(reports: Path) -> None:
    page = shown(reports)
    labels = [attributes.get("aria-label") or "" for attributes in page.all("svg")]
    figures = [label for label in labels if label.endswith("of an LU-Net.")]
    assert len(figures) == len([*(reports / "published/benchmarks").glob("cost-*.svg")]) == 5
    assert any("Memory of training against the number of layers" in label for label in figures)
    table = pd.read_csv(reports / "published/benchmarks/times_table.csv")
    assert all(model in page.words for model in table["model"])
    assert f"All {len(table)} times" in page.words
    assert "torch 2." in page.words


def test_slopes_are_those_of_the_wide_layers(reports: Path) -> None:
    path = reports / "published/benchmarks/cost_times.csv"
    times = pd.read_csv(path)
    wide = times["value"] >= 1024
    times.loc[wide, "ms"] = times.loc[wide, "value"] ** 1.5
    times.loc[~wide, "ms"] = 7.0
    times.to_csv(path, index=False)
    benchmark = read_benchmark(path.parent)
    assert benchmark is not None
    assert benchmark["slopes"] == pytest.approx({"training step": 1.5, "density": 1.5, "sampling": 1.5})


def test_every_variant_of_the_published_sweeps_is_shown(reports: Path) -> None:
    path = reports / "published/sweeps/lunet.csv"
    table = pd.read_csv(path)
    table.loc[0, ["status", "variant"]] = ["diverged", HOSTILE]
    table.loc[0, ["holdout_bits_per_dim", "train_bits_per_dim", "epochs", "seconds", "commit"]] = None
    table.to_csv(path, index=False)
    page = shown(reports)
    assert all(" ".join(variant.split()) in page.words for variant in table["variant"])
    assert "diverged" in page.words
    assert len(page.all("script")) == 1


def test_the_page_omits_tables_that_are_not_published(reports: Path) -> None:
    shutil.rmtree(reports / "published")
    page = shown(reports)
    assert "What an LU-Net costs" not in page.words
    assert "What settings buy" not in page.words


def test_a_damaged_sweep_is_reported(reports: Path) -> None:
    (reports / "published/sweeps/lunet.csv").write_text("variant\nx\n", encoding="utf-8")
    sweeps = {sweep["name"]: sweep for sweep in read_sweeps(reports / "published/sweeps")}
    assert "The sweep lunet cannot be shown" in sweeps["lunet"]["trouble"]
    assert "The sweep lunet cannot be shown" in shown(reports).words


@pytest.mark.parametrize("name", ["cost_times.csv", "times_table.csv", "cost_environment.csv"])
@pytest.mark.parametrize("damage", [None, "", HOSTILE, "axis,value\n1,2\n"], ids=["gone", "empty", "hostile", "short"])
def test_a_damaged_benchmark_is_reported(reports: Path, name: str, damage: str | None) -> None:
    path = reports / "published/benchmarks" / name
    path.unlink() if damage is None else path.write_text(damage, encoding="utf-8")
    benchmark = read_benchmark(path.parent)
    assert benchmark is not None
    assert "cannot be shown" in benchmark["trouble"]


def test_a_damaged_benchmark_leaves_the_page_whole_and_scripts_nothing(reports: Path) -> None:
    (reports / "published/benchmarks/cost_times.csv").write_text(HOSTILE, encoding="utf-8")
    page = shown(reports)
    assert "The benchmark in benchmarks cannot be shown" in page.words
    assert len(page.all("script")) == 1


def test_a_hostile_model_name_stays_text(reports: Path) -> None:
    path = reports / "published/benchmarks/times_table.csv"
    table = pd.read_csv(path)
    table.loc[0, "model"] = HOSTILE
    table.to_csv(path, index=False)
    page = shown(reports)
    assert " ".join(HOSTILE.split()) in page.words
    assert len(page.all("script")) == 1


def test_the_searches_for_both_models_are_counted(reports: Path) -> None:
    sweeps = reports / "published/sweeps"
    counts = {path.stem: len(pd.read_csv(path)) for path in sweeps.glob("*.csv")}
    realnvp = counts.pop("realnvp")
    expected = f"The searches were not equal: {sum(counts.values())} trainings of LU-Nets, {realnvp} of RealNVPs."
    assert expected in shown(reports).words
    (sweeps / "realnvp.csv").unlink()
    assert "trainings of LU-Nets, 0 of RealNVPs." in shown(reports).words
