"""A rehearsal of a lent machine with the real stages: a plan, its gate, two calls, and the published run at home."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from workshop import ROOT, write_yaml

from pipeline.core.console import StopRequest
from pipeline.core.files import read_json
from pipeline.presets.merged import preset_values
from pipeline.publish import publish
from pipeline.results.kept import Manifest, read_kept
from pipeline.run import TIME_IS_UP, Runner, write_plan
from pipeline.runner.merging import Published
from pipeline.runner.plan import GATE, Budget, Gate

# It takes longer than the other tests.
pytestmark = pytest.mark.order("first")
CELL = "train mnist-realnvp-0", "evaluate mnist-realnvp-0"
LIMIT = 1000.0


def small_plan() -> dict[str, Any]:
    """The smallest plan with a training in classes."""
    values = preset_values("smoke")
    values["grid"] |= {"datasets": ["mnist"], "recipes": ["realnvp"]}
    values["recipes"]["realnvp"] |= {"classes": "each", "model": {**values["recipes"]["realnvp"]["model"], "planes": 2}}
    values["recipes"]["realnvp"]["training"] |= {"epochs": 4, "batch_size": 32}
    values["measure"]["seconds"] = 0.01
    return values


def until_some_classes_are_trained() -> float:
    """A clock that jumps, once three classes are, to where a training must stop and its evaluation may still run."""
    return LIMIT - 40 if len([*Path(".checkpoints").glob("*/*.pt")]) > 3 else 0.0


def call(clock: Any, published: Published | None = None) -> int:
    path = write_plan("plan.yaml", published)
    budget = Budget(LIMIT, clock, begin=0.0)
    return Runner(path, budget, StopRequest(), Path("archive"), published, gated=True).run()


def statuses(archive_or_published: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    cells = Manifest.model_validate(archive_or_published).cells
    return {f"{cell.stage} {cell.key}": (cell.status, cell.message) for cell in cells}


def test_two_calls_on_a_lent_machine_and_the_page_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("lunet", "pipeline"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    write_yaml(tmp_path / "plan.yaml", small_plan())
    Path("runs").mkdir()

    assert call(until_some_classes_are_trained) == TIME_IS_UP
    gate = Gate.model_validate(read_json(GATE))
    assert (gate.classes, len(gate.trials)) == (10, 6)
    run = read_json(Path("runs/train/mnist-realnvp-0/run.json"))
    count = len(run["models"])
    assert 3 <= count < 10
    message = f"{count} of 10 classes trained"
    assert {name: run["recipe_params"]["training"][name] for name in gate.chosen.settings} == gate.chosen.settings
    evaluation = read_json(Path("runs/evaluate/mnist-realnvp-0.json"))
    assert (evaluation["status"], evaluation["message"], evaluation["test"]) == ("partial", message, None)
    assert set(evaluation["per_class"]) == set(run["models"])
    assert [*Path(".checkpoints").glob("*/*.pt")]
    publish(Path("archive/run.tar.gz"), "cpu", replace=False)
    published = Published.read(Path("reports/published/cpu"))
    assert {name: statuses(published.manifest.model_dump())[name] for name in CELL} == dict.fromkeys(
        CELL, ("partial", message)
    )
    (shown,), warnings = read_kept(Path("reports/published"))
    (cell,) = shown.results.cells
    assert (len(cell.evaluation.per_class or {}), warnings) == (count, [])

    output = capfd.readouterr().out
    assert call(lambda: 0.0, published) == 0
    assert "gate: realnvp on mnist" in output
    output = capfd.readouterr().out
    assert "gate: realnvp on mnist" in output
    assert "tf32" not in output  # the published recipe keeps its arithmetic, and no other is tried
    assert output.count("taken from its checkpoint") == count
    again = read_json(Path("runs/train/mnist-realnvp-0/run.json"))
    assert {name: again["models"][name] for name in run["models"]} == run["models"]
    words = publish(Path("archive/run.tar.gz"), "cpu", replace=False)
    assert "3 of 3 cells" in words
    manifest = read_json(Path("reports/published/cpu/manifest.json"))
    assert set(statuses(manifest).values()) == {("complete", None)}
    # What was measured first is still of the first run.
    assert len({cell["run"] for cell in manifest["cells"]}) == 2
    (shown,), _ = read_kept(Path("reports/published"))
    assert len(shown.subjects["mnist"]["realnvp"].metrics["bits_per_dim"]) == 1
