"""Reading a data set from disk: its name must be the requested one."""

from __future__ import annotations

from pathlib import Path

from small_trainings import folder_with, stage


def test_data_of_another_name_are_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    assert stage("pipeline.data", "--dataset", "mnist", "--out", "data/mnist", cwd=folder).returncode == 0
    arguments = ("--dataset", "fashion_mnist", "--data", "data/mnist", "--recipe", "gaussian", "--out", "runs/x")
    finished = stage("pipeline.train", *arguments, cwd=folder)
    assert finished.returncode == 1
    assert "holds the data set mnist, not fashion_mnist" in finished.stderr
