"""The record of finished steps."""

from __future__ import annotations

from pathlib import Path

from runner_calls import without_report, work
from workshop import Workshop

from pipeline.core.params import read_yaml
from pipeline.runner.dvc_file import read_steps
from pipeline.runner.ledger import Ledger


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
