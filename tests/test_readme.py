"""The README: its links lead to files, no placeholder is left, and its code runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.results.kept import read_run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_link_within_the_project_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_no_placeholder_is_left() -> None:
    assert re.findall(r"@[A-Za-z_.]+@", README) == []


def test_the_example_of_the_library_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "runs/mine/weights.safetensors").is_file()


# Figures


def honest(evaluation: Path) -> float:
    """The test bits/dim in the record of an evaluation."""
    return float(json.loads(evaluation.read_text(encoding="utf-8"))["test"]["bits_per_dim"]["mean"])


def test_the_figures_of_the_laptop_preset_are_those_of_the_results() -> None:
    metrics = json.loads((ROOT / "reports/metrics.json").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) \|", README, re.MULTILINE)
    assert {name for name, _, _ in rows} == {*metrics["mnist"]}
    for name, *shown in rows:
        bits = [metrics[dataset][name]["bits_per_dim"]["mean"] for dataset in ("mnist", "fashion_mnist")]
        assert shown == [f"{value:.2f}" for value in bits], name


def test_the_figures_over_five_seeds_are_those_of_the_kept_run() -> None:
    kept = read_run(ROOT / "reports/published/laptop-seeds")
    for name in ("lunet", "lunet_learned", "realnvp"):
        bits = [
            kept.subjects[dataset][name].metrics["bits_per_dim_class_base"] for dataset in ("mnist", "fashion_mnist")
        ]
        assert [len(by_seed) for by_seed in bits] == [5, 5]
        mnist, fashion = (f"{np.mean([*by_seed.values()]):.2f}" for by_seed in bits)
        assert re.search(rf"{mnist} \| {fashion}\sfor\s`{name}`", README), name


def test_the_figures_of_kept_runs_are_those_of_their_records() -> None:
    published = ROOT / "reports/published"
    overnight, released = (published / name / "runs/evaluate" for name in ("overnight-cpu", "released-cpu"))
    for name in ("realnvp", "lunet_learned", "lunet"):
        mnist, fashion = (honest(overnight / f"{dataset}-{name}-0.json") for dataset in ("mnist", "fashion_mnist"))
        assert re.search(rf"{mnist:.2f} \| {fashion:.2f}\s\(`{name}`", README), name
    for dataset, title in (("mnist", "MNIST"), ("fashion_mnist", "Fashion-MNIST")):
        record = json.loads((released / f"{dataset}-lunet_released-0.json").read_text(encoding="utf-8"))["test"]
        printed, bits = record["poster_bits_per_pixel"], record["bits_per_dim"]["mean"]
        assert re.search(rf"{printed:.2f}\s(?:bits\sper\spixel\s)?on\s{title}", README), title
        assert re.search(rf"needs\s(?:[\d.]+\sand\s)?{bits:.2f}\s", README), title
        assert re.search(rf"medians\sof\s(?:[\d.]+\sand\s)?{record['bits_per_dim']['median']:.2f}\b", README), title
