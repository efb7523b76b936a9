"""Deterministic mode: apart from clock times, two runs write the same bytes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_results import ENVIRONMENT, Project, parameters

from pipeline import evaluate, report, train
from pipeline.core.console import UserError
from pipeline.core.environment import determinism
from pipeline.core.params import Params, validate
from pipeline.page import view

RECIPES = ["lunet", "realnvp"]


def everything(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Every file of a small grid that was trained, evaluated, collected and reported with the clock stopped."""
    values = parameters(deterministic=True, grid__datasets=["mnist"], grid__recipes=RECIPES, device="cpu")
    values["recipes"]["lunet"]["model"]["start"] = "standardise"
    for recipe in RECIPES:
        values["recipes"][recipe]["training"] |= {"epochs": 3, "batch_size": 4, "holdout": 0.25}
    root.mkdir()
    project = Project(root, values)
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    for module in (train, evaluate):
        monkeypatch.setattr(module, "describe_environment", lambda _: ENVIRONMENT)
        monkeypatch.setattr(module.OtherCores, "mean", lambda _: 0.0)
    monkeypatch.chdir(root)
    for recipe in RECIPES:
        cell = ["--dataset", "mnist", "--recipe", recipe]
        for module, out in ((train, f"train/mnist-{recipe}-0"), (evaluate, f"evaluate/mnist-{recipe}-0.json")):
            monkeypatch.setattr(sys, "argv", ["stage", *cell, "--out", f"runs/{out}"])
            module.main()
    project.collect()
    monkeypatch.setattr(sys, "argv", ["report"])
    report.main()
    folders = (root / "runs", root / "reports")
    return {str(path.relative_to(root)): path.read_bytes() for folder in folders for path in folder.rglob("*.*")}


def test_two_runs_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (everything(tmp_path / name, monkeypatch) for name in ("first", "second"))
    assert {name for name in first if first[name] != second.get(name)} == set()
    assert set(first) == set(second)
    assert "runs/train/mnist-lunet-0/flows/all/weights.safetensors" in first
    words = re.sub(r"\s+", " ", first["reports/index.html"].decode())
    assert "Deterministic mode: training and evaluation used only algorithms that give the same bytes" in words


def test_the_report_says_that_the_mode_is_off(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(grid__recipes=RECIPES))
    project.collect()
    assert "Not in deterministic mode" in view.render(project.reports, "title")


def params(*, deterministic: bool) -> Params:
    return validate(parameters(deterministic=deterministic), "the test")


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_mode_applies_only_in_its_block(*, deterministic: bool) -> None:
    with determinism(params(deterministic=deterministic)):
        assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert not torch.are_deterministic_algorithms_enabled()


def fail(words: str) -> Any:
    raise RuntimeError(words)


def test_the_error_for_a_nondeterministic_algorithm_names_it_and_the_remedy() -> None:
    words = "cumsum_cuda_kernel does not have a deterministic implementation, but you set ..."
    refusal = pytest.raises(UserError, match=r"cumsum_cuda_kernel .* Set deterministic: false")
    with refusal, determinism(params(deterministic=True)):
        fail(words)
    with pytest.raises(RuntimeError, match="shapes"), determinism(params(deterministic=True)):
        fail("shapes do not fit")
