"""Tests of the page: its content, its independence of the network, and the escaping of all input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from collected import own_script
from fake_results import Project, parameters
from parsed_page import HOSTILE, Page

from pipeline.core.console import UserError
from pipeline.core.files import sha256
from pipeline.page.view import TEMPLATES, duration, inline_svg, mixtures, poster_row, render


def collected(root: Path, **changes: Any) -> Project:
    project = Project(root, parameters(**changes))
    project.collect()
    return project


def test_nothing_is_loaded_and_nothing_runs_but_the_page_s_own_script(html: str, page: Page) -> None:
    assert own_script(html) == (TEMPLATES / "script.js").read_text(encoding="utf-8")
    assert not page.all("link")
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), value
    assert not re.search(r"@import|url\((?!#)", html.replace(own_script(html), ""))


def test_size_and_bytes(project: Project, html: str) -> None:
    assert len(html.encode()) < 3_000_000
    assert render(project.reports, "Does it hold?") == html


def test_tags_are_balanced_ids_unique_and_links_lead_somewhere(page: Page) -> None:
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    targets = [link["href"] for link in page.all("a")] + [use["href"] for use in page.all("use")]
    assert len(targets) > 50
    assert {target[1:] for target in targets if target} <= set(page.ids)


def test_landmarks_captions_scopes_and_alternatives(page: Page) -> None:
    names = [name for name, _ in page.elements]
    assert all(names.count(landmark) == 1 for landmark in ("main", "nav", "h1"))
    assert names.count("caption") == names.count("table")
    assert all(heading.get("scope") for heading in page.all("th"))
    assert all(len(image["alt"] or "") > 30 for image in page.all("img"))
    drawings = page.all("svg")
    assert len(drawings) == 14
    assert all(drawing["role"] == "img" and len(drawing["aria-label"] or "") > 60 for drawing in drawings)
    assert any("LU-Net 1.860" in (drawing["aria-label"] or "") for drawing in drawings)


def test_figures_take_the_page_s_ink(html: str) -> None:
    assert "#010203" not in html
    assert html.count("currentColor") > 100


def test_the_answer_is_counted_from_the_verdicts(project: Project, page: Page) -> None:
    claims = json.loads((project.reports / "claims.json").read_text(encoding="utf-8"))["claims"]
    replicated = sum(claim["verdict"] == "replicated" for claim in claims)
    assert (
        f"With the laptop preset (short trainings) on a CPU, of the paper’s 10 claims {replicated} are replicated"
        in page.words
    )
    assert "is undecided. MNIST. Counted alike, LU-Net needs 1.86" in page.words
    assert "rests on 3 seeds and 12 test images of MNIST and 12 test images of Fashion-MNIST:" in page.words
    # The standard deviation of made-up results over images is 0.3.
    assert f"± {0.3 / 12**0.5:.3f}" in page.words
    assert "intervals over seeds are given beside" in page.words


def test_every_claim_has_its_rule_its_history_and_the_paper_s_words(project: Project, page: Page) -> None:
    for claim in json.loads((project.reports / "claims.json").read_text(encoding="utf-8"))["claims"]:
        assert f"claim-{claim['id']}" in page.ids
        for part in ("title", "words", "rule", "reason", "interval"):
            assert " ".join(claim[part].split()) in page.words
        for change in claim["history"]:
            assert f"Changed {change['date']}, after results were seen. {change['change']}" in page.words
    assert page.words.count("rule changed 2026-11-28, after results were seen") == 10


def test_decided_claims_have_cards_and_all_others_a_line_and_a_fold(project: Project, page: Page) -> None:
    claims = json.loads((project.reports / "claims.json").read_text(encoding="utf-8"))["claims"]
    # Of RealNVP on MNIST one of three seeds has diverged, so that only Fashion-MNIST decides on the likelihood.
    nll = next(claim for claim in claims if claim["id"] == "nll")
    assert [nll["verdict"], *(row["verdict"] for row in nll["datasets"])] == [
        "undecided",
        "undecided",
        "not_replicated",
    ]
    decided = {"nll", "inverse", "determinant", "likelihood", "samples"}
    tags = {attributes["id"]: name for name, attributes in page.elements if "id" in attributes}
    for claim in claims:
        assert tags[f"claim-{claim['id']}"] == ("article" if claim["id"] in decided else "details")
    line = page.words[page.words.index("Not decided here.") :]
    assert line.startswith("Not decided here. Not comparable: LU-Net’s optimization step is faster; ")
    assert "Not tested at this scale: LU-Net trains in less GPU memory than RealNVP. Undecided: LU-Net needs" in line
    assert "would hold" not in page.words
    assert "LU-Net needs fewer epochs to reach its best likelihood: undecided" in page.words


def test_the_poster_s_table_stands_beside_ours_in_both_currencies(page: Page) -> None:
    start = page.words.index("Test negative log-likelihood bits per pixel")
    row = page.words[start : start + 200]
    numbers = re.findall(r"\d\.\d+", row)
    assert numbers[:2] == ["3.2424", "5.6819"]
    assert numbers[2] == "1.860"
    assert "7.46" in row


def test_the_page_mentions_scale_failures_and_mixed_machines(page: Page) -> None:
    assert "This is not the paper’s scale." in page.words
    assert "1 cell of the grid did not finish" in page.words
    assert "seed 1: diverged" in page.words
    assert "2 of 3" in page.words
    assert "This table mixes 2 machines: 0123abcd, other000." in page.words


def test_the_plane_has_its_entropy_and_the_implausible_figure(page: Page) -> None:
    assert (
        "entropy of 1.005 nats, here found by numeric integration. The released program prints 0.900, a mean"
        in page.words
    )
    # 0.1052 below, and a 95 % interval of 0.2 over as many points.
    assert "That is 2.1 standard errors below the entropy, thus implausible" in page.words
    assert "The released program, as printed 0.900 −0.105" in page.words
    assert "so the figure means 1.593." in page.words
    assert "LU-Net, 12 + 1 layers 1.300[1.000, 1.200]" in page.words
    assert any("One full-covariance Gaussian (5.000 nats)" in (svg["aria-label"] or "") for svg in page.all("svg"))


def test_the_page_mentions_a_diverged_mixture_model(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(grid__datasets=["mnist"], grid__recipes=["lunet"]))
    figures = json.loads((project.runs / "mixture.json").read_text(encoding="utf-8"))["models"]
    left = {name: figures[name] for name in ("truth", "gaussian")}
    densities = np.load(project.runs / "mixture.npy")[[0, 2]]
    np.save(project.runs / "mixture.npy", densities)
    project.change(
        "mixture.json",
        status="diverged",
        message="the training loss is nan after step 20",
        models=left,
        densities=[*left],
        densities_sha256=sha256(project.runs / "mixture.npy"),
    )
    project.collect()
    page = Page(render(project.reports, "One"))
    assert "LU-Net diverged: the training loss is nan after step 20." in page.words
    assert "LU-Net, 12 + 1 layers" not in page.words


def test_draws_have_their_interval_or_say_that_there_is_one(page: Page, tmp_path: Path) -> None:
    assert "[Student’s t interval, 95 %, over three seeds or more]" in page.words
    assert "1.860[1.835, 1.885] 3 of 3 0.001 n = 1 1.810" in page.words
    project = Project(tmp_path, parameters(grid__datasets=["mnist"], grid__recipes=["lunet"]))
    project.change("evaluate/mnist-lunet-0.json", draws=3, test__bits_per_dim_by_draw=[1.84, 1.85, 1.86])
    project.collect()
    # t(0.975, 2) = 4.302653 times 0.01 / sqrt(3)
    assert "1.850 1 of 1 0.001 ± 0.025 n = 3 1.800" in Page(render(project.reports, "One")).words


def test_latents_stand_against_the_fitted_gaussian_too(page: Page) -> None:
    start = page.words.index("the same latents, standardised by the Gaussian fitted to training latents")
    table = page.words[start : start + 600]
    assert "LU-Net 0 0.040 0.090 (0.600) 0.610 (0.375) " in table
    assert "RealNVP" not in table[: table.index("LU-Net 2 0.040")]


def test_nearest_images_and_interpolations_are_folded_away(page: Page) -> None:
    alts = [image["alt"] or "" for image in page.all("img")]
    for dataset in ("MNIST", "Fashion-MNIST"):
        assert (
            f"Grid of the {dataset} training images that are nearest to the samples of RealNVP, in the same places."
            in alts
        )
        assert (
            f"Rows of images on the way from one {dataset} test image to another through the latents of Gaussian."
            in alts
        )
    assert page.words.count("From one test image of") == 2


def test_what_one_seed_cannot_give_is_said_in_the_claims(tmp_path: Path) -> None:
    small = collected(tmp_path, grid__recipes=["lunet", "realnvp"], grid__datasets=["mnist"])
    words = Page(render(small.reports, "One")).words
    difference = (
        "LU-Net needs 1.85 and RealNVP 1.45 bits/dim, a difference of 0.400. Without an interval this decides nothing."
    )
    assert difference in words
    assert "LU-Net minus RealNVP bits/dim 0.4000 n = 1" in words
    assert (
        "on a CPU, of the paper’s 10 claims 1 is replicated; 5 are undecided; 4 are not tested at this scale." in words
    )


def test_the_page_shows_the_provenance(project: Project, page: Page) -> None:
    checksums = json.loads((project.data / "mnist" / "dataset.json").read_text(encoding="utf-8"))["sha256"]
    assert all(checksum in page.words for checksum in checksums.values())
    assert "grid.seeds 0, 1, 2 0" in page.words
    assert "PyTorch 2.15.0" in page.words
    assert "python -m pipeline.measure --dataset mnist --recipe lunet --out runs/measure/mnist-lunet.json" in page.words
    assert "2026-01-02 03:04 UTC" in page.words


def test_the_way_to_the_page_has_cells_and_durations(project: Project, page: Page) -> None:
    assert "data 2 cells train 30 cells, 3 min 45 s → , then evaluate 30 cells, 30 s measure 5 cells" in page.words
    assert "mixture 1 cell, 9 s collect 1 cell report 1 cell The stages that DVC runs" in page.words
    # The sum of 30 trainings, 30 evaluations and the mixture.
    assert "data 2 – – train 30 225.0 0.05 evaluate 30 30.0 – measure 5 – – mixture 1 9.0 –" in page.words
    assert "Together 264.0" in page.words


def test_a_run_of_before_has_no_such_way(project: Project, tmp_path: Path) -> None:
    for path in project.reports.iterdir():
        (tmp_path / path.name).symlink_to(path)
    content = json.loads((project.reports / "provenance.json").read_text(encoding="utf-8"))
    (tmp_path / "provenance.json").unlink()
    (tmp_path / "provenance.json").write_text(json.dumps({**content, "stages": []}), encoding="utf-8")
    assert "The stages that DVC runs" not in Page(render(tmp_path, "Old")).words


def test_one_seed_and_no_failures(tmp_path: Path) -> None:
    project = collected(tmp_path, grid__datasets=["mnist"], grid__recipes=["lunet"])
    page = Page(render(project.reports, "One"))
    assert "None: all 2 cells of the grid finished." in page.words
    assert "rests on 1 seed and 12 test images of MNIST:" in page.words
    assert "what another seed would change is not known" in page.words
    assert "did not finish" not in page.words
    assert "The grid has no realnvp." in page.words


def test_all_cells_failed(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(grid__datasets=["mnist"], grid__recipes=["lunet", "realnvp"]))
    for recipe in ("lunet", "realnvp"):
        project.fail(f"mnist-{recipe}-0")
        history = project.runs / "train" / f"mnist-{recipe}-0" / "history.csv"
        history.write_text(history.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
        project.change(f"measure/mnist-{recipe}.json", status="diverged", times=None, memory=None, determinant=None)
    project.collect()
    page = Page(render(project.reports, "Nothing"))
    assert "4 cells of the grid did not finish" in page.words
    assert "10 are not tested" in page.words


def test_means_and_medians_have_their_raw_values(project: Project, page: Page) -> None:
    buttons = page.all("button")
    assert [button["popovertarget"] for button in buttons] == [*page.behind]
    assert {button["type"] for button in buttons} == {"button"}
    behind = [" ".join(words.split()) for words in page.behind.values()]
    assert behind.count("Mean of 3 seeds seed 0: 1.850, seed 1: 1.860, seed 2: 1.870") >= 2
    assert "Mean of 2 seeds seed 0: 1.450, seed 2: 1.470" in behind
    timings = pd.read_csv(project.reports / "timings.csv")
    step_timings = timings[
        (timings["dataset"] == "mnist") & (timings["recipe"] == "lunet") & (timings["quantity"] == "step")
    ]
    values = ", ".join(f"{value:#.4g}" for value in step_timings["value"])
    assert len(step_timings) == 8
    assert f"Medians of 8 repetitions in 3 processes, ms {values}" in behind


def test_a_single_value_has_no_raw_values(tmp_path: Path) -> None:
    small = collected(tmp_path, grid__recipes=["lunet", "realnvp"], grid__datasets=["mnist"])
    behind = Page(render(small.reports, "One")).behind.values()
    assert behind
    assert not [words for words in behind if "seed" in words]


def test_markup_in_a_message_and_in_the_title_stays_text(project: Project, html: str, page: Page) -> None:
    assert HOSTILE.split("{{")[0].strip() in page.words
    assert own_script(html)
    assert "{{ 7 * 7 }}" in page.words
    titled = render(project.reports, HOSTILE)
    assert own_script(titled) == own_script(html)
    assert Page(titled).open == []


def test_markup_in_the_data_s_title_and_classes_stays_text(project: Project, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    reports.mkdir()
    (reports / "figures").symlink_to(project.reports / "figures")
    for path in project.reports.glob("*.*"):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            inner = json.dumps('"><b onmouseover=x>')[1:-1]
            text = text.replace('"MNIST"', f'"{inner}"').replace("A processor", inner)
        (reports / path.name).write_text(text, encoding="utf-8")
    page = Page(render(reports, "t"))
    assert '"><b onmouseover=x>' in page.text
    assert not page.all("b")
    assert any('"><b onmouseover=x>' in (image["alt"] or "") for image in page.all("img"))


def test_the_poster_s_density_is_what_its_stopwatch_has_said() -> None:
    row = {"ours": "density_large_ms", "stopwatch": "released_density_ms", "factors": {"lunet": 234.375}}
    honest = {"median": 0.16, "ci_low": 0.1, "ci_high": 0.2, "n": 20}
    printed = {"median": 41.5, "ci_low": None, "ci_high": None, "n": 1, "images": 1024, "of": 60_000}
    timings = {"density_large_ms": honest, "released_density_ms": printed}
    shown_row = poster_row(row, {}, {"lunet": timings})
    assert (shown_row["honest"], shown_row["printed"]) == ([honest, None], [printed, None])
    assert shown_row["scaled"] == (1024, 60_000)
    whole = {**timings, "released_density_ms": {**printed, "images": 60_000}}
    assert poster_row(row, {}, {"lunet": whole})["scaled"] is None


def test_a_scaled_time_is_marked_as_scaled(page: Page) -> None:
    assert "Density evaluation, the poster’s way: timed on 1,024 images and scaled to all 60,000." in page.words


def test_mixtures_are_named_and_alike_rows_are_not() -> None:
    row = {"host": "a", "device": "cpu", "commit": "1"}
    assert mixtures(pd.DataFrame([row, row])) == []
    assert mixtures(pd.DataFrame([row, row | {"device": "cuda"}])) == ["This table mixes 2 devices: cpu, cuda."]
    assert any("not committed" in warning for warning in mixtures(pd.DataFrame([row | {"commit": "1+"}])))


def test_a_missing_file_is_named(project: Project, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"provenance\.json is missing"):
        render(tmp_path, "t")
    for path in project.reports.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"figures.*is missing"):
        render(tmp_path, "t")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.040 s"), (9.94, "9.9 s"), (42.4, "42 s"), (119.4, "119 s"), (192, "3 min 12 s"), (7384, "2 h 3 min")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_figure_without_a_box_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.svg").write_text("<svg></svg>", encoding="utf-8")
    with pytest.raises(UserError, match="not a figure"):
        inline_svg(tmp_path / "x.svg", "alt")
