"""Tests of the evidence beside likelihoods and samples: other bases, margins, and shares of samples by class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_results import EVIDENCE, Project, parameters
from parsed_page import Page
from scipy.stats import norm

from pipeline.page.evidence import class_samples, evidence_of, margin
from pipeline.page.view import render
from pipeline.results.tables import results_table

RECIPES = ("lunet", "realnvp", "histogram")


def rows_of(root: Path, **changes: Any) -> pd.DataFrame:
    project = Project(root, parameters(grid__datasets=["mnist"], grid__recipes=list(RECIPES), **changes))
    return results_table(project.read())


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return rows_of(tmp_path_factory.mktemp("evidence"), grid__seeds=[0, 1], recipes__lunet__classes="each")


def test_bases_are_means_over_seeds_and_recipes_without_one_are_left_out(rows: pd.DataFrame) -> None:
    bases = evidence_of(rows, RECIPES)["bases"]
    assert [*bases] == ["lunet", "realnvp"]
    assert bases["lunet"]["gaussian"]["mean"] == pytest.approx((1.80 + 1.81) / 2)
    assert bases["lunet"]["gaussian"]["raw"]["values"] == pytest.approx([1.80, 1.81])
    assert bases["lunet"]["class_gaussians"] is bases["lunet"]["shrinkage"] is None
    assert bases["realnvp"]["shrinkage"]["mean"] == 0.25
    assert bases["realnvp"]["images"] == 96


def test_margins_have_the_share_of_all_samples_that_lie_inside(rows: pd.DataFrame) -> None:
    rows = rows.copy()
    rows.loc[(rows["recipe"] == "lunet") & (rows["seed"] == 1), "outside_cube_images_inside"] = 7
    margins = evidence_of(rows, RECIPES)["margins"]
    assert [*margins] == ["lunet", "realnvp"]
    assert margins["lunet"]["inside"] == (1 + 7) / 24
    assert margins["lunet"]["closed_form"]["mean"] == pytest.approx((2.25 + 2.26) / 2)
    assert (margins["lunet"]["least"]["mean"], margins["lunet"]["most"]["mean"]) == (0.01, 0.03)


def test_shares_of_samples_are_those_of_all_seeds_with_wilson_s_interval(rows: pd.DataFrame) -> None:
    found = class_samples(rows, RECIPES)
    columns = [("lunet", "fitted"), ("lunet", "standard_normal"), ("realnvp", "fitted")]
    assert [(column["recipe"], column["base"]) for column in found["columns"]] == columns
    assert [column["of"] for column in found["columns"]] == 3 * [2400]
    assert [row["title"] for row in found["rows"]] == ["All", "0", "1", "2"]
    assert [row["shares"][1]["value"] for row in found["rows"]] == pytest.approx([0.4, 0.4, 0.3, 0.5])
    share, z, n = (360 + 361) / 800, norm.ppf(0.975), 800
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    found_share = found["rows"][2]["shares"][0]
    assert (found_share["low"], found_share["high"]) == pytest.approx((middle - half, middle + half))


def test_a_failed_cell_has_no_part(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(grid__datasets=["mnist"], grid__recipes=["lunet", "realnvp"]))
    project.fail("mnist-lunet-0")
    found = evidence_of(results_table(project.read()), ["lunet", "realnvp"])
    assert [*found["bases"]] == [*found["margins"]] == ["realnvp"]
    assert [column["recipe"] for column in found["class_samples"]["columns"]] == ["realnvp"]


@pytest.mark.parametrize(
    ("value", "words"), [(0.001, "0.001"), (1e-06, "1e-6"), ([0.05, 0.0], "0.05 and 0"), (None, "no logit")]
)
def test_margins_in_words(value: Any, words: str) -> None:
    assert margin(value) == words


# The page


def test_the_page_has_other_bases_margins_and_shares_by_class(page: Page) -> None:
    assert "MNIST LU-Net 1.860[1.835, 1.885] 1.810[1.785, 1.835] 1.780[1.755, 1.805] 0.25 96" in page.words
    assert (
        "MNIST LU-Net 0.001 1.860[1.835, 1.885] 2.260[2.235, 2.285] 4.870[4.820, 4.920] 2 % 8.3 % 0.010–0.030"
        in page.words
    )
    assert "By chance that is one in 3." in page.words
    assert "LU-Net Gaussian of the class, 3,600 samples" in page.words
    assert "All 0.902[0.892, 0.912]" in page.words
    assert "each model has one Gaussian of its own" not in page.words
    alts = [image["alt"] or "" for image in page.all("img")]
    assert sum("one row a class, latents from a Gaussian fitted to those of the class" in alt for alt in alts) == 8


def test_the_page_says_that_one_model_a_class_has_one_gaussian_each(tmp_path: Path) -> None:
    changes = {"grid__datasets": ["mnist"], "grid__recipes": ["lunet"], "recipes__lunet__classes": "each"}
    project = Project(tmp_path, parameters(**changes))
    project.collect()
    words = Page(render(project.reports, "Each")).words
    assert "each model has one Gaussian of its own" in words
    assert "LU-Net N(0, I), 1,200 samples" in words
    assert "MNIST LU-Net 1.850 1.800 – – 96" in words


def test_the_page_of_an_older_run_has_neither(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(grid__datasets=["mnist"], grid__recipes=["lunet"]))
    project.change("evaluate/mnist-lunet-0.json", **dict.fromkeys(EVIDENCE))
    project.collect()
    words = Page(render(project.reports, "Older")).words
    for absent in ("With another base", "What the margin changes", "How many look like their class?"):
        assert absent not in words
