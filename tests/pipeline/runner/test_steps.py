"""The steps of dvc.yaml: their commands, the features that are refused, and the record of those that are done."""

from __future__ import annotations

from pathlib import Path

import pytest
from runner_calls import without_report, work
from workshop import ROOT, Workshop, write_yaml

from pipeline.core.cell import cells_of
from pipeline.core.console import UserError
from pipeline.core.params import read_yaml
from pipeline.presets.merged import PRESETS, load_preset, preset_values
from pipeline.run import CELLS
from pipeline.runner.steps import Ledger, read_steps


@pytest.mark.parametrize("preset", PRESETS)
def test_steps_are_those_of_dvc_yaml_with_the_commands_of_the_records(preset: str) -> None:
    params = load_preset(preset)
    grid = params.grid
    steps = read_steps(preset_values(preset), ROOT / "dvc.yaml")
    cells = {(stage, key) for stage, keys in cells_of(params).items() for key in keys}
    assert {(step.stage, step.key) for step in steps if step.stage in CELLS} == cells
    assert len(steps) == len(grid.datasets) + len(cells) + 3
    for step in steps:
        if step.stage in CELLS:
            assert " ".join(step.command).startswith(step.key.command(step.stage))
            assert any(str(step.key) in out for out in step.outs)
        assert not any("$" in text for text in (*step.command, *step.deps, *step.params, *step.outs))
    (collect,) = [step for step in steps if step.stage == "collect"]
    assert {"reports/metrics.json", "reports/curves.csv", "reports/figures"} <= set(collect.outs)


@pytest.mark.parametrize("foreach", [[1], "data", "${data}"])
def test_unsupported_features_of_dvc_are_refused(tmp_path: Path, foreach: object) -> None:
    write_yaml(tmp_path / "dvc.yaml", {"stages": {"data": {"cmd": "a", "foreach": foreach, "deps": ["${item}"]}}})
    with pytest.raises(UserError, match="only DVC understands"):
        read_steps({}, tmp_path / "dvc.yaml")


def test_a_step_whose_code_changed_while_it_ran_is_not_done(workshop: Workshop) -> None:
    without_report(workshop)
    work()
    values = read_yaml(workshop.folder / "params.yaml")
    steps = read_steps(values)
    ledger = Ledger(steps, values)
    (step,) = [step for step in steps if str(step) == "train mnist lunet 0"]
    assert ledger.is_done(step)
    ledger.begin(step)
    assert not ledger.is_done(step)
    assert ledger.is_begun(step)
    Path("code.py").write_text("second")
    ledger.finish(step)
    assert not ledger.is_done(step)
