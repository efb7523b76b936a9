"""The page's script in a browser: tables that sort, filter and are saved, contents that follow, raw values."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_results import Project, parameters
from headless import ask, browser
from published_run import publish

from pipeline.page.view import render

pytestmark = pytest.mark.page
# What is done to the page, one thing after the other; the answer is left where `--dump-dom` shows it.
ACTIONS = """
const pause = time => new Promise(done => setTimeout(done, time));
const regions = [...document.querySelectorAll(".scroll")];
const region = name => regions.find(one => one.getAttribute("aria-label") === name);
const shown = table => [...table.tBodies[0].rows].filter(row => !row.hidden);
const column = (table, place) => shown(table).map(row => row.cells[place].innerText.trim());
(async () => {
  const answer = {};
  const likelihood = region("Results for MNIST").querySelector("table");
  const head = [...likelihood.tHead.rows[0].cells].find(cell => cell.innerText.trim() === "Bits/dim");
  answer.sorted = [];
  for (let clicks = 0; clicks < 4; clicks += 1) {
    answer.sorted.push([head.getAttribute("aria-sort"), column(likelihood, 0)]);
    head.querySelector("button").click();
  }
  const others = region("Likelihood of all runs").querySelector("table");
  others.tHead.rows[0].cells[3].querySelector("button").click();
  answer.missingLast = column(others, 3);
  answer.marked = document.querySelectorAll("th[aria-sort]").length;

  const long = region("Time and memory of all runs");
  const field = long.previousElementSibling.querySelector("label input[type=search]");
  answer.whole = column(long.querySelector("table"), 0).length;
  field.value = "TRAINING net";
  field.dispatchEvent(new Event("input"));
  answer.filtered = column(long.querySelector("table"), 0);
  answer.status = long.previousElementSibling.querySelector("[role=status]").textContent;
  field.value = "";
  field.dispatchEvent(new Event("input"));
  answer.all = column(long.querySelector("table"), 0).length;

  const saved = [];
  URL.createObjectURL = blob => { saved.push(blob); return "blob:none"; };
  const names = [];
  HTMLAnchorElement.prototype.click = function () { names.push(this.download); };
  const save = one => one.nextElementSibling.querySelector("button").click();
  [likelihood, others].map(table => table.closest(".scroll")).forEach(save);
  [region("The paper's table for MNIST"), region("Data sets")].forEach(save);
  answer.names = names;
  answer.saved = await Promise.all(saved.map(blob => blob.text()));
  answer.tables = document.querySelectorAll("table:not(.facts)").length;
  const buttons = [...document.querySelectorAll("button")];
  answer.buttons = buttons.filter(one => one.textContent === "Download as CSV").length;

  const raw = likelihood.querySelector(".raw");
  const behind = document.getElementById(raw.getAttribute("popovertarget"));
  const open = () => behind.matches(":popover-open");
  answer.raw = [open()];
  raw.dispatchEvent(new PointerEvent("pointerenter"));
  answer.raw.push(open());
  raw.dispatchEvent(new PointerEvent("pointerleave"));
  answer.raw.push(open());
  raw.focus();
  answer.raw.push(open());
  await pause(100);
  const [place, at] = [behind.getBoundingClientRect(), raw.getBoundingClientRect()];
  const apart = Math.min(Math.abs(place.top - at.bottom), Math.abs(place.bottom - at.top));
  answer.near = [Math.abs(place.left - at.left), apart];
  raw.blur();
  answer.raw.push(open());
  raw.click();
  answer.raw.push(open());

  const left = document.createElement("pre");
  left.id = "answer";
  left.textContent = JSON.stringify(answer);
  parent.document.body.append(left);
})();
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Four recipes with three seeds each; beside them the same run as published, and one with fewer recipes."""
    root = tmp_path_factory.mktemp("script")
    (root / "few").mkdir()
    recipes = ["lunet", "realnvp", "gaussian", "histogram"]
    project = Project(root, parameters(grid__datasets=["mnist"], grid__recipes=recipes, grid__seeds=[0, 1, 2]))
    few = Project(root / "few", parameters(grid__datasets=["mnist"], grid__recipes=["gaussian", "lunet"]))
    publish(few, project.reports, "few")
    project.collect()
    return project


@pytest.fixture(scope="module")
def answer(project: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of the actions."""
    html = render(project.reports, "Script")
    found, console = ask(tmp_path_factory.mktemp("frame"), html, questions=ACTIONS)
    assert console == ""
    return found


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@browser
def test_a_head_sorts_upwards_then_downwards_then_as_it_was(answer: dict[str, Any]) -> None:
    as_it_was = ["LU-Net", "RealNVP", "Gaussian", "Pixel histograms"]
    upwards = ["RealNVP", "Pixel histograms", "LU-Net", "Gaussian"]
    assert answer["sorted"] == [
        [None, as_it_was],
        ["ascending", upwards],
        ["descending", upwards[::-1]],
        [None, as_it_was],
    ]
    assert answer["marked"] == 2


@browser
def test_what_has_no_figure_is_sorted_last(answer: dict[str, Any]) -> None:
    assert answer["missingLast"] == ["1.850", "2", "–", "–"]


@browser
def test_a_long_table_is_filtered_by_words(answer: dict[str, Any]) -> None:
    assert answer["filtered"] == ["Training step", "Memory of training, at the peak"]
    assert answer["whole"] == answer["all"] == 20
    assert answer["status"] == f"2 of {answer['whole']} rows"


@browser
def test_every_table_can_be_saved_with_all_digits(project: Project, answer: dict[str, Any]) -> None:
    assert answer["buttons"] == answer["tables"] > 20
    assert answer["names"][0] == "results-for-mnist.csv"
    metrics = json.loads((project.reports / "metrics.json").read_text(encoding="utf-8"))["mnist"]
    rows = {row["Recipe"]: row for row in table(answer["saved"][0])}
    assert len(rows) == 4
    own = metrics["lunet"]["bits_per_dim"]
    for name, key in (("Bits/dim", "mean"), ("Bits/dim low", "ci_low"), ("Bits/dim high", "ci_high")):
        assert float(rows["LU-Net"][name]) == own[key]
    others = table(answer["saved"][1])
    head = "few laptop preset A processor, CPU beef00000000"
    assert {row["Recipe"]: row[head] for row in others}["Gaussian"] == "2.0"


@browser
def test_heads_and_cells_that_span_several_places_are_written_in_each(project: Project, answer: dict[str, Any]) -> None:
    poster = table(answer["saved"][2])
    assert poster[0]["Quantity"].startswith("GPU memory usage")
    assert {"Poster LU-Net", "Ours, honest RealNVP", "Ours, the poster’s way LU-Net"} <= set(poster[0])
    files = pd.read_csv(io.StringIO(answer["saved"][3]))
    data = json.loads((project.reports / "provenance.json").read_text(encoding="utf-8"))["datasets"]["mnist"]
    assert dict(zip(files["File"], files["SHA-256"], strict=True)) == data["sha256"]
    assert set(files["Data set"]) == {"MNIST"}


@browser
@pytest.mark.parametrize("section", ["likelihood", "times", "provenance"])
def test_the_contents_mark_the_section_that_is_read(project: Project, tmp_path: Path, section: str) -> None:
    questions = f"""
    document.documentElement.style.scrollBehavior = "auto";
    let looks = 0;
    const look = () => {{
      const marked = [...document.querySelectorAll(".contents [aria-current=true]")];
      if (!marked.length && looks++ < 200) {{
        // What is above may still be laid out, and a busy machine draws few frames.
        document.getElementById("{section}").scrollIntoView();
        return setTimeout(look, 100);
      }}
      const left = document.createElement("pre");
      left.id = "answer";
      left.textContent = JSON.stringify({{marked: marked.map(link => link.hash)}});
      parent.document.body.append(left);
    }};
    document.getElementById("{section}").scrollIntoView();
    setTimeout(look, 500);
    """
    found, _ = ask(tmp_path, render(project.reports, "Contents"), questions=questions)
    assert found["marked"] == [f"#{section}"]


@browser
def test_raw_values_open_when_pointed_at_focused_or_clicked(answer: dict[str, Any]) -> None:
    assert answer["raw"] == [False, True, False, True, False, True]
    assert answer["near"] == pytest.approx([0, 0], abs=2)


@browser
def test_in_a_narrow_window_nothing_overflows_and_images_keep_their_pixels(project: Project, tmp_path: Path) -> None:
    questions = """
    const sizes = one => [one.clientWidth - one.naturalWidth, one.clientHeight - one.naturalHeight];
    const images = [...document.querySelectorAll(".gallery img")].filter(one => one.checkVisibility());
    for (const button of document.querySelectorAll(".raw")) button.focus();
    const left = document.createElement("pre");
    left.id = "answer";
    setTimeout(() => {
      left.textContent = JSON.stringify({
        scroll: document.documentElement.scrollWidth, shown: images.length, scaled: images.flatMap(sizes).some(Boolean),
      });
      parent.document.body.append(left);
    }, 500);
    """
    found, _ = ask(tmp_path, render(project.reports, "Narrow"), width=360, questions=questions)
    assert found["scroll"] <= 360
    assert found["shown"] > 5
    assert not found["scaled"]
