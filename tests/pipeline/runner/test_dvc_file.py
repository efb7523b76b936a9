"""The steps read from dvc.yaml: their commands, and the features that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from workshop import ROOT, write_yaml

from pipeline.core.console import UserError
from pipeline.presets.merged import PRESETS, load_preset, preset_values
from pipeline.run import CELLS
from pipeline.runner.dvc_file import read_steps


@pytest.mark.parametrize("preset", PRESETS)
def test_steps_are_those_of_dvc_yaml_with_the_commands_of_the_records(preset: str) -> None:
    params = load_preset(preset)
    grid = params.grid
    steps = read_steps(preset_values(preset), ROOT / "dvc.yaml")
    pairs = len(grid.datasets) * len(grid.recipes)
    assert len(steps) == len(grid.datasets) + 2 * pairs * len(grid.seeds) + pairs + 3
    for step in steps:
        if step.stage in CELLS:
            assert " ".join(step.command).startswith(step.key.command(step.stage))
            assert any(step.cell in out for out in step.outs)
        assert not any("$" in text for text in (*step.command, *step.deps, *step.params, *step.outs))
    (collect,) = [step for step in steps if step.stage == "collect"]
    assert {"reports/metrics.json", "reports/curves.csv", "reports/figures"} <= set(collect.outs)


def test_unsupported_features_of_dvc_are_refused(tmp_path: Path) -> None:
    write_yaml(tmp_path / "dvc.yaml", {"stages": {"data": {"cmd": "a", "foreach": [1], "deps": ["${item}"]}}})
    with pytest.raises(UserError, match="only DVC understands"):
        read_steps({}, tmp_path / "dvc.yaml")
