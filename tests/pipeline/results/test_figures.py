"""Tests of the drawn figures: reproducible bytes, ink, and the values that they show."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from collected import content
from fake_results import Project, parameters

from pipeline.results.figures import (
    MASSES,
    _levels,
    bundle,
    curves,
    determinant,
    likelihoods,
    memory,
    mixture,
    poster_times,
    progress,
    times,
)
from pipeline.results.looks import INK, KNOWN, looks

LOOKS = looks(["lunet", "realnvp"])
BAR = r'd="M ([\d.]+) ([\d.]+) \nL ([\d.]+) [\d.]+ \nL [\d.]+ ([\d.]+) \nL [\d.]+ [\d.]+ \nz'


def texts(path: Path) -> list[str]:
    """All text of a figure."""
    return re.findall(r"<text[^>]*>(.*?)</text>", path.read_text(encoding="utf-8"))


def timing(recipe: str, quantity: str, *values: float, process: Any = pd.NA) -> pd.DataFrame:
    return pd.DataFrame({"recipe": recipe, "quantity": quantity, "process": process, "value": values})


def test_the_same_values_give_the_same_bytes_without_a_date(tmp_path: Path) -> None:
    rows = pd.concat([timing("lunet", "step", 1.0, 1.1), timing("realnvp", "step", 9.0, 9.9)])
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        times(tmp_path / folder / "times.svg", rows, LOOKS, {})
    first, second = ((tmp_path / folder / "times.svg").read_bytes() for folder in ("one", "two"))
    assert first == second
    assert b"<dc:date>" not in first
    assert not re.search(rb"Matplotlib v", first)


def test_ids_differ_between_figures(tmp_path: Path) -> None:
    rows = timing("lunet", "step", 1.0, 1.1)
    for name in ("a", "b"):
        times(tmp_path / f"{name}.svg", rows, LOOKS, {})
    clips = [set(re.findall(r'clipPath id="(.*?)"', (tmp_path / f"{n}.svg").read_text())) for n in ("a", "b")]
    assert clips[0]
    assert not clips[0] & clips[1]


def test_everything_but_the_recipes_is_drawn_in_ink(tmp_path: Path) -> None:
    times(tmp_path / "times.svg", timing("lunet", "step", 1.0, 2.0), LOOKS, {"step": {"lunet": 1.2}})
    colours = set(re.findall(r"#[0-9a-f]{6}", (tmp_path / "times.svg").read_text(encoding="utf-8")))
    assert colours == {INK, LOOKS["lunet"].colour}


def test_times_name_the_quantities_and_mark_the_poster(tmp_path: Path) -> None:
    rows = timing("lunet", "density_large", 0.1, 0.2, 0.3)
    times(tmp_path / "without.svg", rows, LOOKS, {})
    times(tmp_path / "with.svg", rows, LOOKS, {"density_large": {"lunet": 0.158, "realnvp": 0.553}})
    assert "density, large batch, per image" in texts(tmp_path / "with.svg")
    assert "RealNVP" not in texts(tmp_path / "with.svg")
    uses = [(tmp_path / f"{name}.svg").read_text(encoding="utf-8").count("<use") for name in ("without", "with")]
    assert uses[1] == uses[0] + 1


def test_every_repetition_is_drawn(tmp_path: Path) -> None:
    for n in (5, 25):
        times(tmp_path / f"{n}.svg", timing("lunet", "step", *np.linspace(1, 2, n)), LOOKS, {})
    uses = {n: (tmp_path / f"{n}.svg").read_text(encoding="utf-8").count("<use") for n in (5, 25)}
    assert uses[25] - uses[5] == 20


def test_a_time_has_an_interval_only_over_processes(tmp_path: Path) -> None:
    for name, process in {"one": 1, "two": [1, 1, 2], "three": [1, 2, 3]}.items():
        times(tmp_path / f"{name}.svg", timing("lunet", "step", 1.0, 1.1, 1.3, process=process), LOOKS, {})
    intervals = {
        path.stem: path.read_text(encoding="utf-8").count("stroke-width: 1.4") for path in tmp_path.glob("*.svg")
    }
    assert intervals == {"one": 0, "two": 0, "three": 1}


def test_the_cost_of_a_call_is_a_line_beside_the_determinants(tmp_path: Path) -> None:
    widths = timing("lunet", "determinant_diagonal", 0.01, 0.02).assign(width=[64, 128])
    call = timing("lunet", "determinant_call", 0.006).assign(width=1)
    for name, rows in {"without": widths, "with": pd.concat([widths, call])}.items():
        determinant(tmp_path / f"{name}.svg", rows, LOOKS["lunet"])
    label = "LU layer: a call without any work"
    assert [label in texts(tmp_path / f"{name}.svg") for name in ("without", "with")] == [False, True]


def test_our_likelihoods_and_published_ones_are_sorted_together(tmp_path: Path) -> None:
    figures: dict[str, dict[str, Any]] = {
        "lunet": {"mean": 1.85, "ci_low": 1.84, "ci_high": 1.86},
        "realnvp": {"mean": 1.45, "ci_low": None, "ci_high": None},
    }
    references = [{"label": "Glow & <co> $x$", "value": 1.5}]
    likelihoods(tmp_path / "bars.svg", figures, references, LOOKS)
    shown = texts(tmp_path / "bars.svg")
    order = [text for text in shown if text in {"LU-Net", "RealNVP", "Glow &amp; &lt;co&gt; $x$"}]
    assert order == ["RealNVP", "Glow &amp; &lt;co&gt; $x$", "LU-Net"]
    assert "1.85" in shown


def test_the_axis_of_curves_ignores_the_untrained_model(tmp_path: Path) -> None:
    bits = {"train_bits_per_dim": [None, 2.1, 1.9], "holdout_bits_per_dim": [900.0, 2.2, 2.0]}
    rows = pd.DataFrame({"recipe": "lunet", "seed": 0, "model": "all", "epoch": [0, 1, 2], **bits})
    curves(tmp_path / "curves.svg", rows, LOOKS)
    ticks = [float(text) for text in texts(tmp_path / "curves.svg") if re.fullmatch(r"\d+\.\d+", text)]
    assert ticks
    assert max(ticks) < 3


def test_the_mixture_s_regions_contain_their_share_of_the_mass(tmp_path: Path) -> None:
    x, y = np.meshgrid(np.linspace(-5, 5, 201), np.linspace(-5, 5, 201))
    standard = (-(x**2 + y**2) / 2 - np.log(2 * np.pi)).astype(np.float32)
    # Of a standard normal in the plane, the region of a share p is the disc with squared radius -2 ln(1 - p).
    expected = [float(np.log((1 - share) / (2 * np.pi))) for share in MASSES]
    assert _levels(standard, 0.05**2) == pytest.approx(expected, abs=0.05)
    wide = (-(x**2 + y**2) / 18 - np.log(2 * np.pi * 9)).astype(np.float32)
    assert _levels(wide, 0.05**2)[:2] == [None, None]
    path = tmp_path / "mixture.svg"
    mixture(path, {"truth": standard, "gaussian": wide}, (-5.0, 5.0, -5.0, 5.0), [(0.0, 0.0), (1.0, 1.0)])
    assert {"the mixture itself", "Gaussian"} <= set(texts(path))
    assert "LU-Net" not in texts(path)
    assert set(re.findall(r"#[0-9a-f]{6}", path.read_text(encoding="utf-8"))) == {INK, KNOWN["gaussian"].colour}


def test_curves_of_several_seeds_are_their_mean_and_a_band(tmp_path: Path) -> None:
    seeds = [0, 0, 0, 1, 1, 2]
    bits = [3.0, 2.0, 1.0, 3.0, 1.0, math.nan]  # the second one ended early, the third at its start
    rows = pd.DataFrame({"recipe": "lunet", "seed": seeds, "model": "all", "epoch": [0, 1, 2, 0, 1, 0]})
    rows = rows.assign(holdout_bits_per_dim=bits, train_bits_per_dim=bits)
    curve = bundle(rows, "epoch", "holdout_bits_per_dim")
    assert curve["mean"].tolist() == [3.0, 1.5, 1.0]
    assert curve[["low", "high"]].to_numpy().tolist() == [[3.0, 3.0], [1.0, 2.0], [1.0, 1.0]]
    assert curve["n"].tolist() == [2, 2, 1]
    bands = {}
    for name, selected in {"one": rows[rows["seed"] == 0], "three": rows}.items():
        curves(tmp_path / f"{name}.svg", selected, LOOKS)
        bands[name] = (tmp_path / f"{name}.svg").read_text(encoding="utf-8").count("FillBetweenPolyCollection")
    assert bands == {"one": 0, "three": 1}


def test_progress_leaves_out_the_untrained_model(tmp_path: Path) -> None:
    rows = pd.DataFrame(
        {
            "recipe": "lunet",
            "seed": 0,
            "model": "all",
            "step": [0, 10, 20, 30],
            "seconds": [0.2, 5.0, 50.0, 500.0],
            "holdout_bits_per_dim": [900.0, 2.2, 2.1, 2.0],
        }
    )
    progress(tmp_path / "progress.svg", rows, LOOKS)
    svg = (tmp_path / "progress.svg").read_text(encoding="utf-8")
    # One marker for each validation after the initialisation, and one in the legend.
    assert len(re.findall(rf'<use [^>]*style="fill: {LOOKS["lunet"].colour}', svg)) == 4
    assert "RealNVP" not in texts(tmp_path / "progress.svg")
    assert {"10", "20", "50", "100"} <= set(texts(tmp_path / "progress.svg"))


def test_memory_labels_both_phases_and_marks_their_floors(tmp_path: Path) -> None:
    peaks = {("lunet", "training"): 1127.4, ("lunet", "sampling"): 800.0, ("realnvp", "sampling"): 9.0}
    floors = {"lunet": {"training": 563.7, "sampling": 9.4}}
    memory(tmp_path / "memory.svg", peaks, floors, LOOKS)
    assert {"1,127 training", "800 sampling", "9 sampling"} <= set(texts(tmp_path / "memory.svg"))
    text = (tmp_path / "memory.svg").read_text(encoding="utf-8")
    marks = re.findall(rf'd="M ([\d.]+) ([\d.]+) \nL ([\d.]+) ([\d.]+) \n"[^/]*stroke: {INK}; stroke-width: 1.8', text)
    left, top, right, bottom = next(re.finditer(BAR + rf"[^/]*fill: {LOOKS['lunet'].colour}", text)).groups()
    # The first mark crosses the first bar at half of its length; a bar without a floor has no mark.
    assert len(marks) == 2
    assert marks[0] == (marks[0][0], top, marks[0][0], bottom)
    assert float(marks[0][0]) == pytest.approx((float(left) + float(right)) / 2, abs=0.01)


def test_the_poster_s_times_are_corrected_to_compare_with_ours(small_project: Project) -> None:
    small_project.collect()
    times = poster_times(content(small_project, "claims.json")["poster"])
    assert set(times) == {"optimizer_step", "density_large"}
    assert times["optimizer_step"] == {"lunet": 1.2, "realnvp": 56.0}
    assert times["density_large"]["lunet"] == pytest.approx(37.10 / 234.375)
    assert content(small_project, "timings.json")["mnist"]["lunet"]["released_density_ms"]["images"] == 1024


def test_memory_floors_are_those_of_the_measurements(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(grid__datasets=["mnist"], grid__recipes=["lunet", "realnvp", "gaussian"]))
    project.change("measure/mnist-lunet.json", floors_mib={"sampling": 12.0, "training": 36.5})
    project.change("measure/mnist-realnvp.json", floors_mib=None)

    def marks() -> int:
        project.collect()
        text = (project.reports / "figures" / "memory-mnist.svg").read_text(encoding="utf-8")
        return len(re.findall(rf"stroke: {INK}; stroke-width: 1.8", text))

    # Two of LU-Net, and one of the Gaussian, which has no training steps.
    assert marks() == 3
    project.change("measure/mnist-lunet.json", floors_mib={"sampling": 12.0})
    assert marks() == 2
