"""Tests of the published runs on the page: each is read from its own files, and an unreadable one gives a warning."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_results import ENVIRONMENT, Project, parameters
from fake_stage import change
from parsed_page import HOSTILE, Page
from published_run import publish, seal

from pipeline.collect import collect
from pipeline.page.published_runs import read_published
from pipeline.page.view import render
from pipeline.results.reading import CellStatus

GPU = {**ENVIRONMENT, "device": "cuda", "gpu": "NVIDIA H100", "commit": None, "dirty": None}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """This run: MNIST, two recipes, one seed."""
    small = parameters(grid__datasets=["mnist"], grid__recipes=["lunet", "realnvp"])
    project = Project(tmp_path_factory.mktemp("this"), small)
    project.collect()
    return project


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reports of another run: both data sets, three seeds, on a GPU, with a training that came part of its way."""
    recipes = ["lunet", "lunet_released", "realnvp"]
    project = Project(tmp_path_factory.mktemp("other"), parameters(grid__recipes=recipes, grid__seeds=[0, 1, 2]))
    for path in [*project.runs.glob("train/*/run.json"), *project.runs.glob("*/*.json")]:
        project.change(path.relative_to(project.runs).as_posix(), environment=GPU)
    about: dict[str, Any] = {"dataset": "mnist", "recipe": "realnvp"}
    missing: dict[str, Any] = {"dataset": "fashion_mnist", "recipe": "lunet", "message": "not begun"}
    unfinished = [
        CellStatus(stage="train", **about, seed=2, status="partial", message="12.5 of 100 epochs"),
        CellStatus(stage="measure", **about, status="failed", message="exit status 3"),
        *(CellStatus(stage="train", **missing, status="missing", seed=seed) for seed in range(3)),
    ]
    collect(project.params, project.data, project.runs, project.reports, unfinished=unfinished)
    return project.reports


@pytest.fixture
def reports(source: Project, tmp_path: Path) -> Path:
    """A copy of this run's reports, nothing published yet."""
    shutil.copytree(source.reports, tmp_path / "reports")
    return tmp_path / "reports"


def section(html: str) -> str:
    return Page(re.search(r'<section id="others".*?</section>', html, re.DOTALL)[0]).words  # type: ignore[index]


# What is shown


def test_none_published_says_how_to_publish_one_and_sweeps_are_no_run(reports: Path) -> None:
    (reports / "published/sweeps").mkdir(parents=True)
    (reports / "published/sweeps/lunet.csv").write_text("a,b\n", encoding="utf-8")
    html = render(reports, "None")
    assert "None is published yet. python -m pipeline.run --out archive packs a run" in section(html)
    assert "python -m pipeline.publish archive/run.tar.gz NAME shows it" in section(html)
    assert "<table" not in html[html.index('id="others"') : html.index('<section id="provenance"')]
    assert "beside it" not in html[: html.index('id="claims"')]


def test_each_run_has_a_column_from_its_own_files(reports: Path, other: Path) -> None:
    publish(other, reports, "paper-h100")
    html = render(reports, "Two")
    words = section(html)
    assert "This run laptop preset A processor, CPU c0ffee000000" in words
    assert "paper-h100 laptop preset NVIDIA H100 beef00000000" in words
    # Seeds 0, 1 and 2 of the made-up LU-Net lie at 1.85, 1.86 and 1.87.
    assert "MNIST LU-Net 1.850 1.860[1.835, 1.885]" in words
    assert "Fashion-MNIST LU-Net, as released – " in words
    assert "MNIST LU-Net, as released – 1.610[1.585, 1.635]" in words
    step = json.loads((reports / "timings.json").read_text(encoding="utf-8"))["mnist"]["lunet"]["step_ms"]
    assert f"Training step MNIST LU-Net {step['median']:#.4g}[" in words
    assert "batch 256" in words
    assert "LU-Net trains by maximum likelihood ✓ Replicated ✓ Replicated" in words
    assert "1 earlier run, kept with the code, stands beside it" in Page(html).words
    assert render(reports, "Two") == html


def test_a_run_on_a_part_of_the_data_says_so(reports: Path, other: Path) -> None:
    folder = publish(other, reports, "smoke")
    assert "on a subset" not in section(render(reports, "Whole"))
    spoil(folder, "provenance.json", lambda content: content["datasets"]["mnist"].update(subset=True))
    seal(folder, commit=None, dirty=None)
    assert "NVIDIA H100 unknown commit on a subset of MNIST " in section(render(reports, "Part"))


def test_the_figures_are_read_and_never_copied(reports: Path, other: Path) -> None:
    folder = publish(other, reports, "changed")
    text = (folder / "results.csv").read_text(encoding="utf-8")
    (folder / "results.csv").write_text(text.replace(",1.86,", ",7.125,", 1), encoding="utf-8")
    timings = json.loads((folder / "timings.json").read_text(encoding="utf-8"))
    timings["mnist"]["lunet"]["memory_training_mib"]["median"] = 1234.5
    (folder / "timings.json").write_text(json.dumps(timings), encoding="utf-8")
    seal(folder, commit=None, dirty=None)
    words = section(render(reports, "Other"))
    assert f"MNIST LU-Net 1.850 {(1.85 + 7.125 + 1.87) / 3:#.4g}[" in words
    assert "Memory of training, at the peak MNIST LU-Net 420 1,234" in words.replace("1,235", "1,234")
    assert "NVIDIA H100 unknown commit" in words


def test_what_is_partial_missing_or_failed_is_visible_in_its_place(reports: Path, other: Path) -> None:
    publish(other, reports, "part")
    words = section(render(reports, "Part"))
    assert "part is not whole. 5 of its 21 cells have no figures." in words
    assert "MNIST RealNVP 1.450 1.455[1.391, 1.519] seed 2: partial, 12.5 of 100 epochs" in words
    assert "Fashion-MNIST LU-Net – seed 0: missing seed 1: missing seed 2: missing" in words
    assert re.search(r"Training step MNIST RealNVP [\d.]+\[[\d., ]+\] batch 256 failed", words)
    assert re.search(r"Training step Fashion-MNIST LU-Net – [\d.]+\[", words)
    assert "train mnist realnvp 2 partial 12.5 of 100 epochs" in words
    assert "measure mnist realnvp – failed exit status 3" in words


def test_a_failed_measurement_is_visible_on_each_data_set_that_it_would_stand_for(reports: Path, other: Path) -> None:
    publish(other, reports, "part")
    [run], _ = read_published(reports / "published")
    assert run.value("fashion_mnist", "realnvp", "step_ms") == {"found": None, "trouble": ["failed"]}
    assert run.value("fashion_mnist", "lunet", "step_ms")["trouble"] == []
    assert run.value("kmnist", "realnvp", "step_ms")["trouble"] == []


def test_the_classes_of_a_partial_cell_are_shown_and_no_mean_over_all(reports: Path, tmp_path: Path) -> None:
    small = parameters(grid__datasets=["mnist"], grid__recipes=["lunet", "realnvp"], recipes__realnvp__classes="each")
    (tmp_path / "partial").mkdir()
    project = Project(tmp_path / "partial", small)
    change(project.runs / "train/mnist-realnvp-0/run.json", "models", 2)
    change(project.runs / "evaluate/mnist-realnvp-0.json", "per_class", 2)
    project.collect()
    publish(project.reports, reports, "part")
    words = section(render(reports, "Part"))
    assert "part is not whole. 1 of its 4 cells has no figures, or those of some classes only." in words
    assert "MNIST RealNVP 1.450 seed 0: partial, 2 of 3 classes trained" in words
    assert "mnist realnvp 0 0 1.350 mnist realnvp 0 1 1.450" in words
    page = Page(render(project.reports, "Partial")).words
    assert "RealNVP seed 0: partial, 2 of 3 classes trained – 0 of 1" in page
    claims = json.loads((project.reports / "claims.json").read_text(encoding="utf-8"))["claims"]
    (nll,) = [claim["datasets"][0] for claim in claims if claim["id"] == "nll"]
    assert (nll["verdict"], nll["sentence"]) == ("not_tested", "Seed 0 of realnvp: partial, 2 of 3 classes trained.")


def test_each_cell_says_of_which_run_device_and_commit_it_is(reports: Path, other: Path) -> None:
    runs = [{"created": f"2026-0{month}-01T00:00:00+00:00", "dirty": False} for month in (1, 2)]
    runs[0] |= {"commit": 40 * "a", "code": "1"}
    runs[1] |= {"commit": 40 * "b", "code": "2"}
    lunet: dict[str, Any] = {"dataset": "mnist", "recipe": "lunet", "status": "complete", "message": None}
    cells = [
        {**lunet, "stage": "measure", "run": runs[0]["created"]},
        *({**lunet, "stage": stage, "seed": 0, "run": runs[1]["created"]} for stage in ("train", "evaluate")),
    ]
    publish(other, reports, "two", runs=runs, cells=cells, commit=None, dirty=None)
    words = section(render(reports, "Two"))
    assert "of each cell of two. The code of these runs differs." in words
    assert "2026-01-01 00:00 UTC NVIDIA H100 aaaaaaaaaaaa measure mnist-lunet" in words
    assert "2026-02-01 00:00 UTC NVIDIA H100 bbbbbbbbbbbb train mnist-lunet-0; evaluate mnist-lunet-0" in words
    assert "NVIDIA H100 aaaaaaaaaaaa, bbbbbbbbbbbb" in words


# What cannot be read


def spoil(folder: Path, name: str, change: Callable[[Any], object]) -> None:
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    change(content)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def resealed(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    """A change of a file that the manifest agrees to."""

    def damage(folder: Path) -> None:
        spoil(folder, name, change)
        seal(folder, commit=None, dirty=None)

    return damage


def without_table(folder: Path) -> None:
    (folder / "results.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    seal(folder, commit=None, dirty=None)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (lambda folder: (folder / "timings.json").unlink(), "it has no timings.json"),
    "unsealed": (lambda folder: (folder / "manifest.json").unlink(), "its manifest.json is missing"),
    "changed": (
        lambda folder: spoil(folder, "claims.json", lambda found: found["claims"].pop()),
        "claims.json is not what was published, its SHA-256 is another",
    ),
    "cut": (
        lambda folder: (folder / "manifest.json").write_text('{"commit": ', encoding="utf-8"),
        "its manifest.json cannot be read as JSON",
    ),
    "a list": (
        lambda folder: (folder / "manifest.json").write_text("[]", encoding="utf-8"),
        "its manifest: is []; input should be a valid",
    ),
    "a colour": (
        resealed("provenance.json", lambda found: found["recipes"]["lunet"].update(colour="red; background: url(x)")),
        "its provenance.recipes.lunet.colour: is 'red; background: url(x)'; string should match",
    ),
    "a number": (
        resealed("timings.json", lambda found: found["mnist"]["lunet"]["step_ms"].update(median=float("nan"))),
        "its timings.mnist.lunet.step_ms.median: is nan; input should be a finite number",
    ),
    "a verdict": (
        resealed("claims.json", lambda found: found["claims"][0].update(verdict=HOSTILE)),
        "its claims.claims.0.verdict: is ",
    ),
    "a table": (without_table, "its results.csv is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_that_cannot_be_read_is_a_warning_on_the_page(reports: Path, other: Path, damage: str) -> None:
    publish(other, reports, "whole")
    change, reason = DAMAGES[damage]
    change(publish(other, reports, "broken"))
    words = section(render(reports, "Broken"))
    assert f"Caution. The published run broken cannot be shown: {reason}" in words
    assert "Publish it again with: python -m pipeline.publish ARCHIVE broken --replace" in words
    assert "whole laptop preset NVIDIA H100 beef00000000" in words
    assert "broken laptop preset" not in words


def test_none_that_can_be_read(reports: Path, other: Path) -> None:
    (publish(other, reports, "broken") / "claims.json").write_text("", encoding="utf-8")
    words = section(render(reports, "Broken"))
    assert "None can be shown." in words
    assert "cannot be shown: claims.json is not what was published" in words


def test_markup_in_a_published_run_stays_text(reports: Path, other: Path) -> None:
    folder = publish(other, reports, "hostile")
    spoil(folder, "provenance.json", lambda content: content["cells"][0].update(status="partial", message=HOSTILE))
    spoil(folder, "provenance.json", lambda content: content["recipes"]["lunet_released"].update(label=HOSTILE))
    spoil(folder, "claims.json", lambda content: content["claims"][0].update(label=HOSTILE))
    seal(folder, commit=HOSTILE, dirty=True)
    html = render(reports, "Hostile")
    page = Page(html)
    assert page.open == []
    assert html.count("<script") == 1
    assert not [image for image in page.all("img") if image.get("onerror")]
    assert section(html).count("{{ 7 * 7 }}") >= 4


def test_names_that_start_with_a_dot_are_left_alone(reports: Path, other: Path) -> None:
    publish(other, reports, ".half-written")
    assert read_published(reports / "published") == ([], [])
    assert read_published(reports / "nowhere") == ([], [])
