"""The likelihoods of trained models computed again without lunet or pipeline."""

from __future__ import annotations

import ast
import importlib
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from import_graph import IMPORTS
from ruamel.yaml import YAML

from pipeline.presets.merged import preset_values
from tools import independent

ROOT = Path(__file__).parents[2]
RUNS = ("mnist-gaussian-0", "mnist-lunet-0")
# The smallest mistake that must show: 255 in place of 256, in bits per pixel.
SMALLEST = math.log2(256 / 255)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LU-Net and a Gaussian a class, trained for a moment on the bundled MNIST and evaluated."""
    folder, values = tmp_path_factory.mktemp("project"), preset_values("smoke")
    values["recipes"]["lunet"]["margin"] = 0.001
    values["recipes"]["gaussian"] |= {"classes": "each", "margin": [0.01, 0.001]}
    values["recipes"]["gaussian"]["model"]["ridge"] = 10.0
    values["evaluate"] |= {"draws": 16, "sample_rows": 10, "sample_columns": 1, "round_trip_images": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with Path("params.yaml").open("w", encoding="utf-8") as file:
            YAML(typ="safe", pure=True).dump(values, file)
        run(patch, "data", "--dataset", "mnist", "--out", "data/mnist")
        for name in RUNS:
            cell = ["--dataset", "mnist", "--recipe", name.split("-")[1], "--seed", "0"]
            run(patch, "train", *cell, "--out", f"runs/train/{name}")
            run(patch, "evaluate", *cell, "--out", f"runs/evaluate/{name}.json")
    return folder


def run(patch: pytest.MonkeyPatch, stage: str, *arguments: str) -> None:
    patch.setattr(sys, "argv", [stage, *arguments])
    importlib.import_module(f"pipeline.{stage}").main()


def again(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.chdir(folder)
    patch.setattr(sys, "argv", ["independent", "--draws", "16", "--seed", "0"])
    independent.main()


def test_every_evaluation_agrees(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    again(project, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [*RUNS]
    assert all(line.endswith(": agrees") for line in lines)


@pytest.mark.parametrize("name", RUNS)
def test_the_smallest_mistake_exceeds_the_noise(name: str, project: Path) -> None:
    random = np.random.default_rng(0)
    comparison = independent.compare(project / "runs", project / "data", name, 16, random)
    assert comparison.agrees
    assert comparison.allowed + abs(comparison.recomputed - comparison.evaluated) < SMALLEST
    assert not replace(comparison, evaluated=comparison.evaluated + SMALLEST).agrees


def test_a_wrong_evaluation_is_refused(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    path = copy / "runs/evaluate/mnist-lunet-0.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["test"]["bits_per_dim"]["mean"] += SMALLEST
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"^1 of 2 differ by more than noise: mnist-lunet-0$"):
        again(copy, monkeypatch)


def test_other_weights_are_refused(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    flows = copy / "runs/train/mnist-gaussian-0/flows"
    shutil.copytree(flows / "3", flows / "8", dirs_exist_ok=True)
    with pytest.raises(SystemExit, match="mnist-gaussian-0"):
        again(copy, monkeypatch)


def test_nothing_to_compare_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="no evaluated LU-Net or Gaussian; run: dvc repro"):
        again(tmp_path, monkeypatch)


def test_nothing_of_the_project_and_no_torch_is_used() -> None:
    path = Path("tools/independent.py")
    assert IMPORTS[path] == set()
    assert not {"torch", "lunet", "pipeline"} & {
        name.partition(".")[0]
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        + ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
    }
