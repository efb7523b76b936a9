"""The pipeline under DVC: its plots, one whole run on the bundled subset, and the stages that a change affects."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_results import Project, parameters
from round_trips import assert_images_come_back

from pipeline.core.dataset import load_dataset
from pipeline.core.params import read_yaml

ROOT = Path(__file__).parents[2]
# The whole run takes longer than the other tests.
pytestmark = pytest.mark.order("first")


# Plots


def test_the_plots_draw_what_collect_writes(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(grid__seeds=[0, 1], grid__datasets=["mnist"]))
    project.collect()
    shutil.copytree(ROOT / ".dvc/plots", tmp_path / ".dvc/plots")
    shutil.copy(ROOT / ".dvc/config", tmp_path / ".dvc/config")
    plots = {"plots": read_yaml(ROOT / "dvc.yaml")["plots"]}
    (tmp_path / "dvc.yaml").write_text(json.dumps(plots), encoding="utf-8")
    run(tmp_path, "dvc", "config", "core.no_scm", "true")
    shown = json.loads(run(tmp_path, "dvc", "plots", "show", "--json"))
    assert "errors" not in shown
    assert [*shown["data"]] == [name for plot in plots["plots"] for name in plot]
    for name, (plot,) in shown["data"].items():
        content = plot["content"]
        rows = content["data"]["values"]
        assert {row["recipe"] for row in rows} >= {"lunet", "realnvp"}, name
        fields = set(re.findall(r'"field": "(\w+)"', json.dumps(content["encoding"])))
        assert fields <= set(rows[0]), name
        assert "DVC_METRIC" not in json.dumps(content), name


# A whole run


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, run once with the smoke preset."""
    folder = tmp_path_factory.mktemp("a copy") / "lunet"
    folder.mkdir()
    for name in ("lunet", "pipeline"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    (folder / "reports/published").mkdir(parents=True)
    (folder / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")
    run(folder, "dvc", "config", "core.no_scm", "true")
    run(folder, "pipeline.preset", "smoke")
    output = run(folder, "dvc", "repro")
    assert output.count("Running stage") == 20
    return folder


def run(folder: Path, module: str, *arguments: str) -> str:
    """The output of a module run with this interpreter, offline: every proxy is a closed port."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    offline = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https", "all")}
    command = [sys.executable, "-m", module, *arguments]
    finished = subprocess.run(
        command, cwd=folder, env={**os.environ, **offline, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


def changed(folder: Path) -> set[str]:
    """The stages whose dependencies have changed, by `dvc status`."""
    status: dict[str, Any] = json.loads(run(folder, "dvc", "status", "--json").splitlines()[-1])
    return set(status)


def test_a_whole_run_ends_with_every_cell_in_metrics_and_report(checkout: Path) -> None:
    metrics = json.loads((checkout / "reports/metrics.json").read_text(encoding="utf-8"))
    assert set(metrics) == {"mnist", "fashion_mnist"}
    assert all(set(recipes) == {"gaussian", "lunet", "realnvp"} for recipes in metrics.values())
    bits = {(d, r): values["bits_per_dim"]["mean"] for d, recipes in metrics.items() for r, values in recipes.items()}
    assert all(0.5 < value < 8 for value in bits.values())
    for dataset in metrics:
        assert bits[dataset, "lunet"] < bits[dataset, "gaussian"]
        assert bits[dataset, "realnvp"] < bits[dataset, "gaussian"]
    assert (checkout / "reports/index.html").stat().st_size > 100_000


def test_the_trained_lu_net_restores_images(checkout: Path) -> None:
    images = load_dataset(checkout / "data/mnist").test_images
    assert_images_come_back(checkout / "runs/train/mnist-lunet-0/flows/all", images)


def test_a_second_run_executes_no_stage(checkout: Path) -> None:
    assert changed(checkout) == set()
    assert "Running stage" not in run(checkout, "dvc", "repro")


def test_a_changed_template_affects_only_the_report(checkout: Path) -> None:
    template = checkout / "pipeline/page/templates/page.html"
    before = template.read_bytes()
    template.write_bytes(before + b"\n")
    assert changed(checkout) == {"report"}
    template.write_bytes(before)
    assert changed(checkout) == set()


def test_a_changed_parameter_of_a_recipe_affects_only_that_recipe(checkout: Path) -> None:
    params = checkout / "params.yaml"
    before = params.read_bytes()
    assert b"ridge: 0.1" in before
    params.write_bytes(before.replace(b"ridge: 0.1", b"ridge: 0.2"))
    cells = {
        f"{stage}@{dataset}-gaussian-0" for stage in ("train", "evaluate") for dataset in ("mnist", "fashion_mnist")
    }
    assert changed(checkout) == {*cells, "measure@mnist-gaussian", "collect"}
    params.write_bytes(before)
