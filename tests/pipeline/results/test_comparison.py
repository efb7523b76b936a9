"""Tests of the comparison with published runs, in `comparison.json` and on the page."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_results import ENVIRONMENT, Project, parameters
from fake_stage import change
from parsed_page import HOSTILE, Page
from published_run import compared, manifest_of, publish

from pipeline.core.files import read_json
from pipeline.page.view import render

GPU = {**ENVIRONMENT, "device": "cuda", "gpu": "NVIDIA H100", "commit": None, "dirty": None}


@pytest.fixture(scope="module")
def this(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """This run: MNIST, two recipes, one seed."""
    small = parameters(grid__datasets=["mnist"], grid__recipes=["lunet", "realnvp"])
    project = Project(tmp_path_factory.mktemp("this"), small)
    project.collect()
    return project


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Another run: both data sets, three seeds, on a GPU, with cells that are missing."""
    recipes = ["lunet", "lunet_released", "realnvp"]
    project = Project(tmp_path_factory.mktemp("other"), parameters(grid__recipes=recipes, grid__seeds=[0, 1, 2]))
    for path in [*project.runs.glob("train/*/run.json"), *project.runs.glob("*/*.json")]:
        project.change(path.relative_to(project.runs).as_posix(), environment=GPU)
    for key in ("mnist-realnvp-2", *(f"fashion_mnist-lunet-{seed}" for seed in range(3))):
        (project.runs / f"train/{key}/run.json").unlink()
        (project.runs / f"evaluate/{key}.json").unlink()
    (project.runs / "measure/mnist-realnvp.json").unlink()
    return project


@pytest.fixture
def reports(this: Project, tmp_path: Path) -> Path:
    """A copy of this run's reports, nothing published yet."""
    return Path(shutil.copytree(this.reports, tmp_path / "reports"))


def page_of(this: Project, reports: Path) -> str:
    """The page with the runs that are published now."""
    compared(this, reports)
    return render(reports, "Runs")


def section(html: str) -> str:
    return Page(re.search(r'<section id="others".*?</section>', html, re.DOTALL)[0]).words  # type: ignore[index]


def value(content: dict[str, Any], rows: str, **wanted: str) -> list[dict[str, Any]]:
    """The values of the row with these names."""
    (row,) = [row for row in content[rows] if {**row, "recipe": row["recipe"]["label"]}.items() >= wanted.items()]
    return list(row["values"])


def test_none_published_says_how_to_publish_one_and_sweeps_are_no_run(this: Project, reports: Path) -> None:
    (reports / "published/sweeps").mkdir(parents=True)
    (reports / "published/sweeps/lunet.csv").write_text("a,b\n", encoding="utf-8")
    html = page_of(this, reports)
    assert "None is published yet. python -m pipeline.run --out archive packs a run" in section(html)
    assert "python -m pipeline.publish archive/run.tar.gz NAME shows it" in section(html)
    assert "<table" not in html[html.index('id="others"') : html.index('<section id="provenance"')]
    assert "beside it" not in html[: html.index('id="claims"')]


def test_each_run_has_a_column_from_its_own_records(this: Project, reports: Path, other: Project) -> None:
    publish(other, reports, "paper-h100")
    html = page_of(this, reports)
    words = section(html)
    assert "This run laptop preset A processor, CPU c0ffee000000" in words
    assert "paper-h100 laptop preset NVIDIA H100 beef00000000" in words
    # Seeds 0, 1 and 2 of the made-up LU-Net lie at 1.85, 1.86 and 1.87.
    assert "MNIST LU-Net 1.850 1.860[1.835, 1.885]" in words
    assert "Fashion-MNIST LU-Net, as released – " in words
    assert "MNIST LU-Net, as released – 1.610[1.585, 1.635]" in words
    step = read_json(reports / "timings.json")["mnist"]["lunet"]["step_ms"]
    assert f"Training step MNIST LU-Net {step['median']:#.4g}[" in words
    assert "batch 256" in words
    assert "by today’s rules" in words
    assert "1 earlier run, kept with the code, is shown beside it" in Page(html).words
    assert page_of(this, reports) == html


def test_the_verdicts_of_each_run_are_in_its_column(this: Project, reports: Path, other: Project) -> None:
    publish(other, reports, "other")
    content = compared(this, reports)
    claims = read_json(reports / "claims.json")
    verdicts = {row["title"]: row["values"] for row in content["verdicts"]}
    assert len(verdicts) == len(claims["claims"]) == len(claims["kept"]["other"])
    for ours, theirs in zip(claims["claims"], claims["kept"]["other"], strict=True):
        mine, kept = verdicts[ours["title"]]
        assert (mine["label"], kept["label"]) == (ours["label"], theirs["label"])


def test_what_is_missing_is_visible_in_its_place(this: Project, reports: Path, other: Project) -> None:
    publish(other, reports, "part")
    words = section(page_of(this, reports))
    assert "part is not whole. 5 of its 21 cells have no figures." in words
    assert "MNIST RealNVP 1.450 1.455seed 2: missing" in words
    assert "Fashion-MNIST LU-Net – seed 0: missing seed 1: missing seed 2: missing" in words
    assert re.search(r"Training step MNIST RealNVP [\d.]+\[[\d., ]+\] batch 256 missing", words)
    assert re.search(r"Training step Fashion-MNIST LU-Net – [\d.]+\[", words)
    assert "train mnist realnvp 2 missing not begun" in words
    assert "measure mnist realnvp – missing not begun" in words


def test_a_missing_measurement_is_visible_on_each_data_set_that_it_would_stand_for(
    this: Project, reports: Path, other: Project
) -> None:
    publish(other, reports, "part")
    content = compared(this, reports)
    row = {"quantity": "Training step", "dataset": "Fashion-MNIST"}
    nothing: dict[str, Any] = {"found": None, "trouble": []}
    assert value(content, "timings", **row, recipe="LU-Net")[0] == nothing
    assert value(content, "timings", **row, recipe="LU-Net")[1]["trouble"] == []
    rows = [row for row in content["timings"] if row["dataset"] == "Fashion-MNIST"]
    assert not [row for row in rows if row["recipe"]["label"] == "RealNVP"]  # no run has it
    mnist = value(content, "timings", quantity="Training step", dataset="MNIST", recipe="RealNVP")
    assert mnist[1] == {"found": None, "trouble": ["missing"]}


def test_a_run_on_a_part_of_the_data_says_so(this: Project, reports: Path, other: Project) -> None:
    data = manifest_of(other).model_dump(mode="json")["data"]
    publish(other, reports, "smoke")
    assert "on a subset" not in section(page_of(this, reports))
    data["mnist"]["subset"] = True
    publish(other, reports, "smoke", data=data)
    assert "NVIDIA H100 beef00000000 on a subset of MNIST " in section(page_of(this, reports))


def test_the_classes_of_a_partial_cell_are_shown_and_no_mean_over_all(
    this: Project, reports: Path, tmp_path: Path
) -> None:
    small = parameters(grid__datasets=["mnist"], grid__recipes=["lunet", "realnvp"], recipes__realnvp__classes="each")
    (tmp_path / "partial").mkdir()
    project = Project(tmp_path / "partial", small)
    change(project.runs / "train/mnist-realnvp-0/run.json", "models", 2)
    change(project.runs / "evaluate/mnist-realnvp-0.json", "per_class", 2)
    project.collect()
    publish(project, reports, "part")
    words = section(page_of(this, reports))
    assert "part is not whole. 1 of its 4 cells has no figures, or those of some classes only." in words
    assert "MNIST RealNVP 1.450 seed 0: partial, 2 of 3 classes trained" in words
    assert "mnist realnvp 0 0 1.350 mnist realnvp 0 1 1.450" in words
    page = Page(render(project.reports, "Partial")).words
    assert "RealNVP seed 0: partial, 2 of 3 classes trained – 0 of 1" in page
    claims = read_json(project.reports / "claims.json")["claims"]
    (nll,) = [claim["datasets"][0] for claim in claims if claim["id"] == "nll"]
    assert (nll["verdict"], nll["sentence"]) == ("not_tested", "Seed 0 of realnvp: partial, 2 of 3 classes trained.")


def test_each_cell_says_of_which_run_device_and_commit_it_is(this: Project, reports: Path, other: Project) -> None:
    runs = [{"created": f"2026-0{month}-01T00:00:00+00:00", "dirty": False} for month in (1, 2)]
    runs[0] |= {"commit": 40 * "a", "code": "1"}
    runs[1] |= {"commit": 40 * "b", "code": "2"}
    cells = manifest_of(other).model_dump(mode="json")["cells"]
    for cell in cells:
        cell["run"] = runs[cell["stage"] != "measure"]["created"]
    publish(other, reports, "two", runs=runs, cells=cells, commit=None, dirty=None)
    words = section(page_of(this, reports))
    assert "of each cell of two. The code of these runs differs." in words
    assert "2026-01-01 00:00 UTC NVIDIA H100 aaaaaaaaaaaa measure mnist-lunet, mnist-lunet_released 2026-02" in words
    assert "2026-02-01 00:00 UTC NVIDIA H100 bbbbbbbbbbbb train mnist-lunet-0, mnist-lunet-1" in words
    assert "NVIDIA H100 aaaaaaaaaaaa, bbbbbbbbbbbb" in words


def test_other_work_on_the_machine_is_the_most_that_any_cell_had(this: Project, reports: Path, tmp_path: Path) -> None:
    (tmp_path / "busy").mkdir()
    project = Project(tmp_path / "busy", parameters(grid__datasets=["mnist"], grid__recipes=["lunet", "realnvp"]))
    for recipe, cores in {"lunet": 0.5, "realnvp": 0.9}.items():
        project.change(f"measure/mnist-{recipe}.json", other_cores=cores)
    publish(project, reports, "busy")
    assert compared(this, reports)["runs"][1]["other_cores"] == {"measure": 0.9, "train": 0.05}
    words = section(render(reports, "Busy"))
    assert "measurements not recorded 0.90" in words
    assert "trainings 0.05" in words


def test_noise_that_training_and_test_share_is_mentioned(this: Project, reports: Path, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    project = Project(tmp_path / "shared", parameters(grid__datasets=["mnist"], grid__recipes=["lunet"]))
    publish(project, reports, "separate")
    assert "shares noise" not in section(page_of(this, reports))
    project.change("evaluate/mnist-lunet-0.json", separate_noise=False)
    publish(project, reports, "shared")
    assert "shared shares noise between training and test." in section(page_of(this, reports))


def test_a_run_that_cannot_be_read_is_a_warning_on_the_page(this: Project, reports: Path, other: Project) -> None:
    publish(other, reports, "whole")
    (publish(other, reports, "broken") / "params.yaml").unlink()
    words = section(page_of(this, reports))
    assert "Caution. The published run broken cannot be read: params.yaml is missing. Restore it with git, or" in words
    assert "whole laptop preset NVIDIA H100 beef00000000" in words
    assert "broken laptop preset" not in words


def test_none_that_can_be_read(this: Project, reports: Path, other: Project) -> None:
    (publish(other, reports, "broken") / "manifest.json").write_text("", encoding="utf-8")
    words = section(page_of(this, reports))
    assert "None can be shown." in words
    assert "The published run broken cannot be read: manifest.json: the file: is b''; invalid JSON" in words


def test_markup_in_a_published_run_stays_text(this: Project, reports: Path, tmp_path: Path) -> None:
    (tmp_path / "hostile").mkdir()
    project = Project(tmp_path / "hostile", parameters(grid__datasets=["mnist"], grid__recipes=["lunet", "realnvp"]))
    project.fail("mnist-realnvp-0", message=HOSTILE)
    project.change("measure/mnist-lunet.json", environment__processor=HOSTILE)
    data = manifest_of(project).model_dump(mode="json")["data"]
    data["mnist"] |= {"title": HOSTILE, "subset": True}
    publish(project, reports, "hostile", data=data)
    html = page_of(this, reports)
    page = Page(html)
    assert page.open == []
    assert html.count("<script") == 1
    assert not [image for image in page.all("img") if image.get("onerror")]
    assert section(html).count("{{ 7 * 7 }}") >= 4
